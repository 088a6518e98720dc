"""Contract of `pipeline/distillation/methods/`: what a student is trained to minimize, one method a file.

A plug-in file holds a docstring (paper, formula, what differs), `Config` (a `MethodConfig`) and `Method` (a
`BaseMethod`). Settings are read in two steps: from params.yaml alone, and then `resolved`, when both networks are
known. A method says what it needs, and returns every term of its loss by name, unweighted; the trainer weights and
sums them. It touches no disk, and never runs the teacher. A file whose method inserts layers names their files in
`LAYERS`, so that a run depends on their code.

A step is a function of tensors on the device, so that a GPU can repeat it as one graph: `forward` makes no tensor on
the CPU, reads no value back and branches on none. What follows the training is computed from `Batch.epoch` and
`Batch.step`, which are tensors; what changes once an epoch belongs into `start`. A method that cannot keep to this
still works: its steps run eagerly, and the log says so.

Example:
    A student that learns the teacher's logits as they are, and takes the weight of the labels from its defaults:

    >>> import torch.nn.functional as F
    >>> class Config(MethodConfig):
    ...     weights: Weights = {"ce": 1.0, "logits": 0.1}
    >>> class Method(BaseMethod[Config]):
    ...     @classmethod
    ...     def needs(cls, config: Config) -> Needs:
    ...         return Needs(student=("logits",), teacher=("logits",))
    ...
    ...     def forward(self, student: Taps, batch: Batch) -> Terms:
    ...         s, t = student["logits"], batch.teacher["logits"]
    ...         return {"ce": batch.cross_entropy(s), "logits": F.mse_loss(s, t)}
    >>> Config(weights={"logits": 0.5}).weights
    {'ce': 1.0, 'logits': 0.5}
    >>> Method.needs(Config())
    Needs(student=('logits',), teacher=('logits',), tables=(), network=False, matchings=(), label=False, strong=False)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Self, TypeVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import field_validator
from torch import Tensor, nn

from pipeline import seeding
from pipeline.data.mixing import Mixture
from pipeline.errors import ParamsError
from pipeline.matching.matching import Matching
from pipeline.networks.architecture import Architecture
from pipeline.networks.layer import LayerSpec
from pipeline.networks.network import Network, Shape, Taps
from pipeline.params.base import Block
from pipeline.params.matchings import Wanted
from pipeline.params.numbers import Effective, Weight
from pipeline.params.recipe import Epoch, Phase, Recipe

Terms = dict[str, Tensor]  # scalars by name
Weights = Annotated[dict[str, Weight], Effective]
# Of one step: those that follow the training are scalars on the device.
StepWeights = Mapping[str, float | Tensor]
Tables = Mapping[str, Mapping[str, NDArray[Any]]]  # arrays of fitted tables, by table and array name
Matchings = Mapping[str, Matching]  # by the key of what was wanted


@dataclass(frozen=True)
class Known:
    """What settings are resolved with: it is known before anything is trained.

    Attributes:
        student: the plain student's architecture.
        teacher: the teacher's architecture.
        fitted: the teacher feature that each table is fitted to, by the names of `tables` in params.yaml.
    """

    student: Architecture
    teacher: Architecture
    fitted: Mapping[str, str] = field(default_factory=dict)


class MethodConfig(Block):
    """Settings that every method has.

    Attributes:
        weights: the terms' weights, by name, 0 or above and not all 0; those that are left out keep the method's
            defaults.
        insert: layers to put into the student for good, by tap, beside those of the method itself; so a method
            can be compared with another at the same number of parameters.
    """

    weights: Weights
    insert: dict[str, LayerSpec] = {}

    @field_validator("weights", mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        default = cls.model_fields["weights"]
        # Combined methods have no defaults of their own; what is no mapping is refused by the model.
        if default.is_required() or not isinstance(given, Mapping):
            return given

        terms = default.get_default(call_default_factory=True)
        unknown = sorted(given.keys() - terms.keys())
        if unknown:
            raise ValueError(f"'{unknown[0]}' is no term of this method. Its terms are {', '.join(terms)}")
        return terms | given

    def resolved(self, known: Known) -> Self:
        """Return these settings with every name in full, and what depends on networks or tables filled in.

        Raises:
            ParamsError: a setting does not fit the networks or tables.
            UnknownNameError: a setting names something that they do not have.
        """
        return self.model_copy(update={"insert": resolved_taps("insert", self.insert, known.student)})


T = TypeVar("T")


def resolved_taps(setting: str, by_tap: Mapping[str, T], student: Architecture) -> dict[str, T]:
    """Return a setting's values by the student's taps, their names in full.

    Raises:
        ParamsError: two names are the same tap.
    """
    result: dict[str, T] = {}
    for name, value in by_tap.items():
        tap = student.resolved(name)
        if tap in result:
            raise ParamsError(
                f"{setting} has '{tap}' of the student under two names, {' and '.join(by_tap)}. Name it once, in the "
                "run's settings in params.yaml."
            )
        result[tap] = value
    return result


@dataclass(frozen=True)
class Needs:
    """What a method reads; schedules and transforms say theirs in the same words.

    Attributes:
        student: taps of the student, all that `forward` reads.
        teacher: features of the teacher, for instance "logits" or "stage3:attention".
        tables: fitted tables, by the names of `tables` in params.yaml.
        network: whether it reads the teacher's own modules (its classifier for SimKD, its BN for OFD).
        matchings: assignments of the teacher's channels to the student's.
        label: whether it reads `Batch.label`, one class a sample: then views must not mix samples.
        strong: whether it reads a second, strong view of each sample, and student and teacher of it.
    """

    student: tuple[str, ...] = ("logits",)
    teacher: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    network: bool = False
    matchings: tuple[Wanted, ...] = ()
    label: bool = False
    strong: bool = False

    def __or__(self, other: Needs) -> Needs:
        """Return what either reads, in the order of first mention."""
        return Needs(
            tuple(dict.fromkeys(self.student + other.student)),
            tuple(dict.fromkeys(self.teacher + other.teacher)),
            tuple(dict.fromkeys(self.tables + other.tables)),
            self.network or other.network,
            tuple(dict.fromkeys(self.matchings + other.matchings)),
            self.label or other.label,
            self.strong or other.strong,
        )


@dataclass(frozen=True)
class Operations:
    """What a method does to the student for good: it is saved, evaluated and counted.

    Attributes:
        insert: layers after taps, by tap; what they compute inside is recorded as "<tap>.<name>".
        classifier_width: number of features that the classifier reads, where a layer inserted at `final` changes them.
        teacher_classifier: the classifier is a copy of the teacher's and is never trained; `Needs.network` is needed.
    """

    insert: Mapping[str, LayerSpec] = field(default_factory=dict)
    classifier_width: int | None = None
    teacher_classifier: bool = False


@dataclass(frozen=True)
class Context:
    """What may be known before training.

    Attributes:
        num_classes: number of classes.
        labels: labels of the training samples, int64 (N,); an index of a batch points into it.
        student: the network that is trained, operations done. Build heads from it (`rest`), but do not keep
            it as a submodule: what a method keeps is trained beside the student and dropped afterwards.
        student_shapes: shape of every student tap, without the batch axis.
        teacher_shapes: shapes of the needed features, after the transform, without the batch axis.
        tables: arrays of the needed tables, by table and array name.
        teacher: the frozen teacher when `Needs.network` asks for it.
        seed: the run's seed, for `pipeline.seeding`.
        matchings: the needed matchings, by their keys.
        autocast: the context in which added networks (heads, self-learning teachers) run their forward pass;
            losses are computed outside it, in float32.
    """

    num_classes: int
    labels: Tensor
    student: Network
    student_shapes: Mapping[str, Shape]
    teacher_shapes: Mapping[str, Shape]
    tables: Tables = field(default_factory=dict)
    teacher: Network | None = None
    seed: int = 0
    matchings: Matchings = field(default_factory=dict)
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def num_samples(self) -> int:
        """Number of training samples."""
        return len(self.labels)


@dataclass(frozen=True)
class StrongView:
    """A second view of the samples of a batch, in their order, for methods that need both.

    Attributes:
        image: normalized views (B, C, H, W).
        student: needed taps of the student, (B, ...), float32, with gradients. It sees this view after the weak one,
            in a forward pass of its own, so a batch norm has the statistics of one view at a time.
        teacher: needed features by name, (B, ...), without gradients.
    """

    image: Tensor
    student: Taps
    teacher: Taps


@dataclass(frozen=True)
class Batch:
    """A training batch.

    Attributes:
        image: normalized views (B, C, H, W).
        label: labels, int64 (B,); what a method compares with them itself says so in its needs, for where views are
            mixed these are one of two.
        index: positions of the samples in the training split, int64 (B,).
        teacher: needed features by name, (B, ...), without gradients.
        epoch: the epoch, counted from 0 within the phase, int64 ().
        epochs: number of epochs of the phase.
        step: the step, counted from 0 over all phases, int64 ().
        phase: the phase's name.
        seed: of the run.
        mixture: the second label of each sample, where views are mixed.
        strong: the strong view of its samples, where a method of the run needs it.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    teacher: Taps
    epoch: Tensor
    epochs: int
    step: Tensor
    phase: str
    seed: int
    mixture: Mixture | None = None
    strong: StrongView | None = None

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Return the cross-entropy of the labels, a scalar: the mean over the batch, of both labels where it is mixed.

        Args:
            logits: (B, K).
        """
        if self.mixture is None:
            return F.cross_entropy(logits, self.label)
        return self.mixture.mean(lambda label: F.cross_entropy(logits, label, reduction="none"), self.label)

    def both(self) -> StrongView:
        """Return the strong view, for a method whose needs have it."""
        assert self.strong is not None, "Needs.strong asks for the strong view"
        return self.strong

    def uniform(self, *shape: int, draw: int = 0) -> Tensor:
        """Return float32 draws from [0, 1), of any shape; they are a function of seed, step and `draw` alone.

        So a training that is resumed draws what an uninterrupted one would, on every device.

        Args:
            shape: of what is returned.
            draw: tells apart what a method draws in one step.
        """
        key = seeding.mix(self.step + seeding.derive(self.seed, "step", draw))
        places = torch.arange(1, 1 + math.prod(shape), device=self.step.device)
        return seeding.uniform(seeding.mix(key + places)).view(shape)


C = TypeVar("C", bound=MethodConfig)


class BaseMethod(nn.Module, Generic[C]):
    """A method. Its own parameters (projectors, heads) are trained with the student and dropped afterwards.

    Args:
        config: the method's settings, resolved.
        context: what may be known before training.
    """

    def __init__(self, config: C, context: Context) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def needs(cls, config: C) -> Needs:
        """Return all that the method reads under `config`, resolved."""
        return Needs()

    @classmethod
    def operations(
        cls, config: C, student: Mapping[str, Shape], teacher: Mapping[str, Shape], tables: Tables
    ) -> Operations:
        """Return what is done to the student for good; `config.insert` by default.

        Args:
            config: the method's settings, resolved.
            student: shapes of the plain student's taps.
            teacher: shapes of the needed features.
            tables: arrays of the needed tables.
        """
        return Operations(insert=config.insert)

    @classmethod
    def compared(cls, config: C) -> tuple[str, str] | None:
        """Return the student tap and the teacher feature whose distance evaluation measures; none by default."""
        return None

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        """Return the parts of the training, in their order; the student's recipe is the only one by default."""
        return (Phase("main", recipe),)

    def weights(self, batch: Batch) -> StepWeights:
        """Return the weights of the terms at this batch; override it for a warm-up.

        Example:
            >>> def weights(self, batch: Batch) -> StepWeights:  # over 20 epochs
            ...     return {"ce": 1.0, "kd": 0.9 * (batch.epoch / 20).clamp(max=1)}
        """
        return self.config.weights

    def start(self, epoch: Epoch) -> Hashable:
        """Begin an epoch, outside of its steps; return what makes them other steps than those of other epochs.

        Steps of equal values are the same function of tensors, and a GPU repeats them as one graph.
        """
        return None

    def check(self, batch: Batch) -> None:
        """Refuse features that do not suit the settings; called with the first batch, where values may be read.

        Raises:
            ParamsError: they do not.
        """

    def diagnose(self) -> dict[str, float]:
        """Return what the epoch showed beside its terms, for the history; called once, at an epoch's end.

        A name has a dot, which no term has.
        """
        return {}

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return every term, unweighted.

        Args:
            student: needed taps of the student, (B, ...), float32, with gradients.
            batch: images, labels and the teacher's features.
        """
        raise NotImplementedError(f"{type(self).__module__} has no forward")


def warmed_up(weights: Weights, names: Iterable[str], epochs: int, batch: Batch) -> StepWeights:
    """Return weights of which some grow evenly over the first epochs, counted from 1 as DKD and ReviewKD do.

    Args:
        weights: by the terms' names.
        names: those that grow.
        epochs: in how many; 0 is none.
        batch: says which epoch it is.
    """
    if not epochs:
        return weights
    share = ((batch.epoch + 1) / epochs).clamp(max=1)
    return weights | {name: share * weights[name] for name in names}
