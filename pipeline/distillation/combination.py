"""The methods of one run as one: their terms add up.

The loss is the plain sum of the methods' own losses, but for the labels: every method brings `ce` with a weight of its
own, and of several only the first one's counts. So `{kd: {}, fitnet: {}}` is KD as it is, and FitNet's hint beside it.
Other terms that two methods name alike get their method's prefix ("kd_kd" and "dskd_kd"), whether both occur in a
batch or not.

A method alone is returned as it is. Each starts in a random scope of its own, and so alike alone and with others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from functools import reduce
from operator import or_
from typing import Any

from torch import nn

from pipeline import plugin, seeding
from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    Known,
    MethodConfig,
    Needs,
    Operations,
    StepWeights,
    Tables,
    Terms,
    Weights,
)
from pipeline.errors import ParamsError
from pipeline.networks.layer import LayerSpec
from pipeline.networks.network import Shape, Taps
from pipeline.params.recipe import Epoch, Phase, Recipe

LABELS = "ce"  # the term that counts once
STRONG_LABELS = "ce_strong"  # the same of the strong view
ONCE = (LABELS, STRONG_LABELS)
Configs = Mapping[str, MethodConfig]  # settings by the method's name, in the order of params.yaml


def resolved(configs: Configs, known: Known) -> dict[str, MethodConfig]:
    """Return all settings resolved.

    Raises:
        ParamsError: settings do not fit the networks or tables.
        UnknownNameError: they name something that these do not have.
    """
    return {name: config.resolved(known) for name, config in configs.items()}


def needs(configs: Configs) -> Needs:
    """Return what any of the methods reads."""
    return reduce(or_, (_method(name).needs(config) for name, config in configs.items()))


def compared(configs: Configs) -> tuple[str, str] | None:
    """Return the student tap and the teacher feature whose distance is measured: those of the first with any."""
    pairs = (_method(name).compared(config) for name, config in configs.items())
    return next((pair for pair in pairs if pair is not None), None)


def operations(
    configs: Configs, student: Mapping[str, Shape], teacher: Mapping[str, Shape], tables: Tables
) -> Operations:
    """Return what the methods do to the student for good, all together.

    Args:
        configs: the methods' settings, resolved.
        student: shapes of the plain student's taps.
        teacher: shapes of the needed features.
        tables: arrays of the needed tables.

    Raises:
        ParamsError: two methods put different layers at one tap, or give the classifier different widths.
    """
    insert: dict[str, LayerSpec] = {}
    width: int | None = None
    inserted_by: dict[str, str] = {}
    widened_by = ""
    borrowed = False
    for name, config in configs.items():
        own = _method(name).operations(config, student, teacher, tables)
        for tap, layer in own.insert.items():
            # The same layer from two methods is one layer.
            if insert.setdefault(tap, layer) != layer:
                raise ParamsError(
                    f"Methods '{inserted_by[tap]}' and '{name}' of one run put different layers at student tap "
                    f"'{tap}': {_in_words(insert[tap])}, and {_in_words(layer)}. Change the settings of either, in "
                    "params.yaml."
                )
            inserted_by.setdefault(tap, name)

        borrowed |= own.teacher_classifier
        if own.classifier_width is None:
            continue
        if width not in (None, own.classifier_width):
            raise ParamsError(
                f"Methods '{widened_by}' and '{name}' of one run have classifiers that read {width} and "
                f"{own.classifier_width} features. Change the settings of either, in params.yaml."
            )
        width, widened_by = own.classifier_width, name
    return Operations(insert, width, borrowed)


def assemble(configs: Configs, context: Context) -> BaseMethod[Any]:
    """Build a run's methods: the only one as it is, several as one that adds up their terms.

    Raises:
        ParamsError: settings do not fit what is known of the run.
    """
    methods = {}
    for name, config in configs.items():
        # One scope a method: what another one draws does not change how it starts.
        with seeding.scope(context.seed, "method"):
            methods[name] = _method(name)(config, context)
    return next(iter(methods.values())) if len(methods) == 1 else Combined(methods, context)


class CombinedConfig(MethodConfig):
    """The settings of several methods.

    Attributes:
        methods: the settings by the method's name, in their order.
    """

    methods: dict[str, MethodConfig]


class Combined(BaseMethod[CombinedConfig]):
    """Several methods, applied to every batch.

    Args:
        methods: the methods by name, in their order.
        context: what may be known before training.

    Raises:
        ParamsError: a term's prefixed name is the name of another term.
    """

    def __init__(self, methods: Mapping[str, BaseMethod[Any]], context: Context) -> None:
        configs = {name: method.config for name, method in methods.items()}
        names = _names({name: config.weights for name, config in configs.items()})
        weights = {new: configs[method].weights[term] for (method, term), new in names.items()}
        super().__init__(CombinedConfig(weights=weights, methods=configs), context)
        self.names = names
        self.methods = nn.ModuleDict(methods)

    @classmethod
    def needs(cls, config: CombinedConfig) -> Needs:
        """Return what any of the methods reads."""
        return needs(config.methods)

    @classmethod
    def operations(
        cls,
        config: CombinedConfig,
        student: Mapping[str, Shape],
        teacher: Mapping[str, Shape],
        tables: Tables,
    ) -> Operations:
        """Return what the methods do to the student, all together."""
        return operations(config.methods, student, teacher, tables)

    @classmethod
    def compared(cls, config: CombinedConfig) -> tuple[str, str] | None:
        """Return what evaluation compares of the first method that names it."""
        return compared(config.methods)

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        """Return the phases of the one method that has phases of its own, if any; the others learn in all of them.

        Raises:
            ParamsError: two methods have phases of their own.
        """
        whole = super().phases(recipe)
        own = {name: phases for name, method in self._each() if (phases := method.phases(recipe)) != whole}
        if len(own) > 1:
            raise ParamsError(
                f"Methods {' and '.join(map(repr, own))} each train in phases of their own, and a run has one order of "
                "phases. Name one of these in the run's methods, in params.yaml."
            )
        return next(iter(own.values()), whole)

    def weights(self, batch: Batch) -> StepWeights:
        """Return the weights of all methods' terms at this batch."""
        return self._merged({name: method.weights(batch) for name, method in self._each()})

    def start(self, epoch: Epoch) -> Hashable:
        """Begin an epoch of every method."""
        return tuple(method.start(epoch) for _, method in self._each())

    def check(self, batch: Batch) -> None:
        """Let every method look at the first batch."""
        for _, method in self._each():
            method.check(batch)

    def diagnose(self) -> dict[str, float]:
        """Return what the methods showed in the epoch; where two use one name, with their prefixes."""
        shown = {name: method.diagnose() for name, method in self._each()}
        twice = _repeated(shown.values())
        return {
            f"{name}_{key}" if key in twice else key: value
            for name, values in shown.items()
            for key, value in values.items()
        }

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return the terms of all methods, unweighted."""
        return self._merged({name: method(student, batch) for name, method in self._each()})

    def _each(self) -> list[tuple[str, BaseMethod[Any]]]:
        methods: list[Any] = list(self.methods.items())
        return methods

    def _merged(self, by_method: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return values by the terms' names in the sum, without the labels that do not count."""
        counted = set(ONCE) & set(self.names.values())
        return {
            # A term without a default weight is a plug-in's fault, and the trainer's error names it.
            self.names.get((name, term), f"{name}_{term}"): value
            for name, values in by_method.items()
            for term, value in values.items()
            if term not in ONCE or (name, term) in self.names or term not in counted
        }


def _method(name: str) -> type[BaseMethod[Any]]:
    method: type[BaseMethod[Any]] = plugin.load("methods", name).Method
    return method


def _in_words(layer: LayerSpec) -> str:
    settings = ", ".join(f"{key}: {value}" for key, value in layer.settings.items())
    return f"{layer.name} {{{settings}}}"


def _repeated(groups: Iterable[Iterable[str]]) -> set[str]:
    """Return the names that more than one group has."""
    counts = Counter(name for group in groups for name in group)
    return {name for name, count in counts.items() if count > 1}


def _names(weights: Mapping[str, Weights]) -> dict[tuple[str, str], str]:
    """Return every term's name in the sum, by method and own name; labels are the first method's that has them.

    Raises:
        ParamsError: two terms would have one name.
    """
    twice = _repeated(weights.values())
    names: dict[tuple[str, str], str] = {}
    for method, terms in weights.items():
        for term in terms:
            if term not in ONCE:
                names[method, term] = f"{method}_{term}" if term in twice else term
            elif term not in names.values():
                names[method, term] = term

    clash = _repeated([[name] for name in names.values()])
    if clash:
        raise ParamsError(
            f"Two terms of the methods {', '.join(weights)} are called '{min(clash)}'. Rename one in its plug-in."
        )
    return names
