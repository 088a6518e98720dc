"""params.yaml brought to life: its networks, tables and runs, each looked at once, before anything is made.

Networks are built on torch's meta device (`networks/architecture.py`) for the images that a data set's settings
promise, so a tap, a feature or a size that does not exist is an error here, and not after a teacher has been trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

from numpy.typing import NDArray

from pipeline import plugin
from pipeline.data.dataset import ImageFacts
from pipeline.data.views import ViewSpace, check_channels, check_size, num_slots, view_space
from pipeline.distillation.method import Known, Needs
from pipeline.errors import ParamsError
from pipeline.features.encoding import tables_of
from pipeline.networks import own_weights, pretrained
from pipeline.networks.architecture import Architecture, architecture, blank, check_training
from pipeline.networks.catalogue import family_of, source_of
from pipeline.networks.network import Network
from pipeline.networks.spec import LARGEST, NetworkSpec
from pipeline.networks.weight_file import read
from pipeline.params.assistants import AssistantParams
from pipeline.params.base import placed, validate
from pipeline.params.course import check_course
from pipeline.params.detection import BoxViews, box_views, check_boxless
from pipeline.params.matchings import MatchingParams
from pipeline.params.pairs import RunBlock
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe
from pipeline.params.runs import RunParams
from pipeline.params.sections import Sections, changed, merged
from pipeline.params.size import sides
from pipeline.params.students import StudentParams
from pipeline.params.tasks import CLASSIFICATION, DETECTION, Task, task_of
from pipeline.params.teachers import FeatureParams, TeacherParams
from pipeline.params.top import Top
from pipeline.params.views import (
    OneView,
    Slots,
    TwoViews,
    ViewParams,
    dataset_views,
    two_views,
    view_params,
    weak,
)
from pipeline.params.weights import Head, Weights, WeightsFile, file_settings, is_file, library
from pipeline.runs import demands, mixing, taught
from pipeline.runs.composition import Composition
from pipeline.runs.rehearsal import feature_shape, rehearse
from pipeline.tables.table import TableConfig

CLASSES = (
    10  # where only the files know: no shape depends on it but the logits' and the number of sub-classes
)
Kind = Literal["teachers", "students", "assistants"]


class Project:
    """All of params.yaml, plug-ins included.

    Args:
        params: params.yaml, its names checked.

    Attributes:
        hashed: whether blocks of it get the hash of their code; a check alone needs none.
    """

    def __init__(self, params: Sections) -> None:
        self.params = params
        self.hashed = True
        self._architectures: dict[str, Architecture] = {}
        # Each run of a teacher asks for these again.
        self._features: dict[str, dict[str, FeatureParams]] = {}
        self._tables: dict[tuple[str, str], TableConfig] = {}
        self._runs: dict[tuple[str, str], RunBlock] = {}
        # Hashes, by the file of weights and by the network's name: many ask for them.
        self._files: dict[str, str] = {}
        self._sources: dict[str, str] = {}
        self._fitting: set[str] = set()
        self._trainable: set[str] = set()
        self._last: tuple[str, Network] | None = None

    # Data

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        """What networks learn of each data set.

        Raises:
            UnknownNameError: there is no such source.
        """
        known = {}
        for name, dataset in self.params.datasets.items():
            with placed(f"datasets.{name}.source"):
                known[name] = task_of(plugin.load("datasets", dataset.source.name))
        return known

    @cached_property
    def images(self) -> Mapping[str, ImageFacts]:
        """What the images of each data set without boxes are like, by its settings alone.

        Raises:
            UnknownNameError: there is no such source.
            ParamsError: its settings are wrong, or its images too large.
        """
        known = {}
        for name, task in self.tasks.items():
            source = self.params.datasets[name].source
            module, place = plugin.load("datasets", source.name), f"datasets.{name}.source.{source.name}"
            config = validate(module.Config, source.settings, place)
            if task != CLASSIFICATION:
                continue
            known[name] = module.image(config)
            # A network is probed with one, which must not fill the memory.
            longest = max(sides(known[name].size))
            if longest > LARGEST:
                raise ParamsError(
                    f"params.yaml: {place} has images of {longest:,} pixels a side, expected "
                    f"{LARGEST:,} at most. Choose smaller ones."
                )
        return known

    @cached_property
    def views(self) -> Mapping[str, ViewParams]:
        """The view space of each data set without boxes.

        Raises:
            UnknownNameError: there is no such space.
            ParamsError: its settings are wrong, or its padding is too large for the images.
        """
        spaces = {}
        for name in self.images:
            dataset, where = self.params.datasets[name], f"datasets.{name}"
            check_boxless(dataset.views, f"{where}.views")
            check_boxless(dataset.strong_views or (), f"{where}.strong_views")
            views = spaces[name] = dataset_views(dataset.views, dataset.strong_views, where)
            self._check_images(name, weak(views), f"{where}.views")
            if isinstance(views, TwoViews):
                self._check_images(name, views.strong, f"{where}.strong_views")
        return spaces

    def _check_images(self, dataset: str, views: OneView, where: str) -> None:
        check_size(views, self.images[dataset].size, where)
        check_channels(views, self.images[dataset].channels, where)

    @cached_property
    def box_views(self) -> Mapping[str, BoxViews]:
        """The view space of each data set with boxes.

        Raises:
            UnknownNameError: there is no such space.
            ParamsError: its settings are wrong.
        """
        for name, task in self.tasks.items():
            if task == DETECTION and self.params.datasets[name].strong_views is not None:
                raise ParamsError(
                    f"params.yaml: datasets.{name} has strong_views, which are for images without boxes. Drop them, "
                    "then: dvc repro params"
                )
        return {
            name: box_views(self.params.datasets[name].views, f"datasets.{name}.views")
            for name, task in self.tasks.items()
            if task == DETECTION
        }

    def images_of(self, teacher: str) -> ImageFacts:
        """Return what the images of a teacher's data set are like."""
        return self.images[self.params.teachers[teacher].dataset]

    # Networks

    def spec(self, kind: Kind, name: str) -> NetworkSpec:
        """Return what a teacher, student or assistant is.

        Raises:
            UnknownNameError: no family has the network.
            ParamsError: weights are asked for that the family does not have, or that read other images.
        """
        network: TeacherParams | StudentParams | AssistantParams = getattr(self.params, kind)[name]
        with placed(f"{kind}.{name}.network"):
            family, known = family_of(network.network)
            if network.network not in self._sources:
                self._sources[network.network] = source_of(family, known)
        # An assistant sees what its teacher has seen.
        images = (
            self.images_of(network.teacher)
            if isinstance(network, AssistantParams)
            else self.images[network.dataset]
        )
        weights: Weights = "none"
        if not isinstance(network, AssistantParams):
            head = network.head if isinstance(network, TeacherParams) else "own"
            weights = self._weights(network.weights, f"{kind}.{name}.weights", head)
        if not isinstance(weights, WeightsFile):
            with placed(f"{kind}.{name}.weights"):
                pretrained.check(family, known, weights, images.channels)
        return NetworkSpec(
            family=family,
            network=known,
            size=images.size,
            channels=images.channels,
            classes=images.classes or CLASSES,
            weights=weights,
            source=self._sources[network.network],
        )

    def architecture(self, kind: Kind, name: str) -> Architecture:
        """Return the units and taps of a teacher, student or assistant.

        Raises:
            ShapeError: the network cannot read images of this size.
        """
        spec = self.spec(kind, name)
        # Without the weights, which change no shape.
        key = spec.model_dump_json(exclude={"weights"})
        if key not in self._architectures:
            with placed(f"{kind}.{name}"):
                self._architectures[key] = architecture(spec)
        return self._architectures[key]

    def detector_weights(self, kind: Kind, name: str) -> Weights:
        """Return where a detector's first weights come from.

        Raises:
            DataError: a file is not there.
            ParamsError: a setting of it is wrong.
        """
        return self._weights(getattr(self.params, kind)[name].weights, f"{kind}.{name}.weights", "own")

    def check_training(self, kind: Kind, name: str) -> None:
        """Refuse to train a teacher, student or assistant of another library that gives other outputs in training.

        Raises:
            ParamsError: it does.
            ShapeError: it cannot read images of this size in training.
        """
        spec = self.spec(kind, name)
        key = spec.model_dump_json(exclude={"weights"})
        if key in self._trainable or not getattr(plugin.load("networks", spec.family), "OPEN", False):
            return
        with placed(f"{kind}.{name}.network"):
            check_training(spec)
        self._trainable.add(key)

    def _weights(self, weights: Plug, where: str, head: Head) -> Weights:
        """Return where first weights come from; a file has its hash, so that another one is another network."""
        if not is_file(weights):
            return library(weights)
        settings = file_settings(weights, where)
        if weights.name not in self._files:
            self._files[weights.name] = own_weights.sha256(weights.name)
        classifier = "fresh" if head == "linear" else settings.classifier
        fields = settings.model_dump() | {"classifier": classifier}
        return WeightsFile(path=weights.name, sha256=self._files[weights.name], **fields)

    def check_weights(self, kind: Kind, name: str) -> None:
        """Check that a file's weights fit a teacher or student; nothing is read for others.

        Raises:
            DataError: the file does not hold tensors.
            ParamsError: their names or shapes are not the network's.
        """
        spec = self.spec(kind, name)
        key = spec.model_dump_json()
        if not isinstance(spec.weights, WeightsFile) or key in self._fitting:
            return
        file = spec.weights
        # Where only the images know how many classes there are, the classifier's shape is checked with them.
        if not self.images[getattr(self.params, kind)[name].dataset].classes:
            file = file.model_copy(update={"classifier": "fresh"})
        with placed(f"{kind}.{name}.weights"):
            own_weights.fitted(self._blank(spec), file, read(file.path, file))
        self._fitting.add(key)

    def recipe(self, kind: Kind, name: str) -> Recipe:
        """Return how a teacher, student or assistant is trained.

        Raises:
            ParamsError: it does not go together with the views of the data set.
        """
        network, where = getattr(self.params, kind)[name], f"{kind}.{name}.recipe"
        recipe = self.params.recipe(network.recipe, where)
        owner = self.params.teachers[network.teacher] if isinstance(network, AssistantParams) else network
        if owner.dataset in self.views:  # those of boxes mix no images
            mixing.check_recipe(recipe, self.views[owner.dataset], where)
        return recipe

    # What a teacher's store holds, and what is fitted to it

    def features(self, teacher: str) -> dict[str, FeatureParams]:
        """Return the features that a teacher's store holds, by name, "last" replaced.

        Raises:
            UnknownNameError: the teacher has no such tap, or there is no such encoding.
            ParamsError: a feature is there twice, or needs a table.
        """
        if teacher in self._features:
            return self._features[teacher]

        network, where = self.architecture("teachers", teacher), f"teachers.{teacher}.features"
        known: dict[str, FeatureParams] = {}
        for name, feature in self.params.teachers[teacher].features.items():
            resolved = network.resolved(name)
            demands.check_feature(self, teacher, resolved, where)
            if tables_of([resolved]):
                raise ParamsError(
                    f"params.yaml: {where} has '{name}', which is encoded with a table. Drop it: codes are made "
                    "where a run asks for them."
                )
            # "last" and "stage3" may be one feature, which two settings cannot share.
            if resolved in known:
                raise ParamsError(f"params.yaml: {where} has '{resolved}' twice. Name it once.")
            if feature.top is not None:
                demands.check_top(self, teacher, resolved, feature.top)
            known[resolved] = feature
        self._features[teacher] = known
        return known

    def _largest(self, teacher: str, names: Iterable[str]) -> dict[str, Top]:
        """Return the largest logits that a teacher's store keeps, of those features that it does not keep whole."""
        stored = self.features(teacher)
        kept = {name: stored[name].kept for name in names if name in stored}
        return {name: top for name, top in kept.items() if top is not None}

    def slots(self, teacher: str, slots: Slots, what: str) -> int:
        """Return a number of view slots of a teacher's data set.

        Raises:
            ParamsError: "all" of an unbounded view space, or more than there are views.
        """
        return num_slots(view_space(self.views[self.params.teachers[teacher].dataset]), slots, what)

    def table(self, teacher: str, name: str) -> TableConfig:
        """Return the settings of a table recipe for a teacher: its own values merged, "last" replaced.

        Raises:
            ParamsError: a setting is wrong.
            UnknownNameError: there is no such table, or the teacher has no such tap.
        """
        if (teacher, name) in self._tables:
            return self._tables[teacher, name]

        recipe, own = self.params.tables[name], self.params.teachers[teacher].tables.get(name, {})
        # After the merge nobody knows which half is wrong; a teacher's own values are the likelier one.
        place = f"tables.{name}.{recipe.name}" if not own else f"teachers.{teacher}.tables.{name}"
        config: TableConfig = validate(
            plugin.load("tables", recipe.name).Config, merged(recipe.settings, own), place
        )
        feature = self.architecture("teachers", teacher).resolved(config.feature)
        self._tables[teacher, name] = config.model_copy(update={"feature": feature})
        return self._tables[teacher, name]

    def _stand_ins(self, teacher: str, names: Iterable[str]) -> dict[str, dict[str, NDArray[Any]]]:
        """Return arrays of the sizes of a teacher's tables, by table; without those of which none are known."""
        taps, classes = self.architecture("teachers", teacher).taps, self.spec("teachers", teacher).classes
        arrays = {}
        for name in names:
            module, config = plugin.load("tables", self.params.tables[name].name), self.table(teacher, name)
            if hasattr(module, "stand_in"):
                channels = feature_shape(taps, config.feature, classes)[0]
                arrays[name] = module.stand_in(config, channels, classes)
        return arrays

    def known(self, teacher: str, student: str) -> Known:
        """Return what settings of a pair's runs are filled in from."""
        fitted = {name: self.table(teacher, name).feature for name in self.params.tables}
        return Known(self.architecture("students", student), self.architecture("teachers", teacher), fitted)

    # Runs

    def run(self, pair: str, run: str) -> RunBlock:
        """Return a run of a pair with all that it consists of, checked against what the pair has.

        Raises:
            ParamsError: settings are wrong, or the run needs what is not asked for; the message says what to add.
            UnknownNameError: it names what does not exist.
        """
        # Many ask for a run, and its rehearsal builds networks.
        if (pair, run) not in self._runs:
            self._runs[pair, run] = self._run(pair, run)
        return self._runs[pair, run]

    def distilled(self) -> Iterator[tuple[str, str, RunBlock]]:
        """Give pair, run and block of all that `distill` asks for, those of detectors left out."""
        for item in self.params.distill:
            pair, _, run = item.partition("/")
            if self.tasks[self.params.students[self.params.pairs[pair].student].dataset] == CLASSIFICATION:
                yield pair, run, self.run(pair, run)

    def _run(self, pair: str, run: str) -> RunBlock:
        names, settings = self.params.pairs[pair], self.params.run(pair, run)
        where = f"pairs.{pair}.overrides.{run}" if run in names.overrides else f"runs.{run}"
        known = self.known(names.teacher, names.student)
        # One run may fit one pair and not another, so the error names the pair.
        with placed(f"{where} (of pair {pair})"):
            composition = Composition.of(settings, where, known)

        plain = self.recipe("students", names.student).model_dump(mode="json")
        recipe = validate(Recipe, changed(plain, settings.recipe), f"{where}.recipe")
        check_course(recipe, f"{where}.recipe")

        needs, online = composition.needs, settings.source == "online"
        dataset = self.params.students[names.student].dataset
        views = self._run_views(dataset, settings, where)
        space = view_space(views or self.views[dataset])
        # The codes in a store are made already; the teacher that makes them beside the student needs their tables.
        tables = dict.fromkeys((*needs.tables, *(tables_of(needs.teacher) if online else ())))

        block = RunBlock(
            methods=composition.plugs(),
            schedule=Plug.of(settings.schedule.name, **composition.schedule_config.model_dump(mode="json")),
            transform=None
            if settings.transform is None
            else Plug.of(settings.transform.name, **composition.transform_config.model_dump(mode="json")),
            source=settings.source,
            slots=_run_slots(space, settings.slots, online, f"{where}.slots"),
            recipe=recipe,
            features=needs.teacher,
            checkpoints=composition.checkpoints,
            tables=tuple(tables),
            changes=composition.changes,
            network=needs.network,
            copies={name: taught.stage_of(self, name) for name in composition.copies},
            matchings=needs.matchings,
            plugins=composition.plugins,
            views=views,
            largest=self._largest(names.teacher, needs.teacher) if online else {},
        )
        _check_pairs(block, needs, settings, views, dataset, where)

        # First what is there at all: its errors say what to add, the rehearsal's only what does not fit.
        demands.check_run(self, pair, block, needs.student, where)
        stand_ins = self._stand_ins(names.teacher, needs.tables)
        with placed(f"{where} (of pair {pair})"):
            rehearse(composition, self.spec("students", names.student), known, stand_ins, self._blank)
        shown = views or self.views[dataset]
        mixing.check_run(composition, block, shown, stand_ins, self.params.matchings, where)
        return block

    def _blank(self, spec: NetworkSpec) -> Network:
        """Return a student without weights; runs of one student follow each other, so the last one is kept."""
        key = spec.model_dump_json()
        if self._last is None or self._last[0] != key:
            self._last = key, blank(spec)
        return self._last[1]

    def _run_views(self, dataset: str, run: RunParams, where: str) -> ViewParams | None:
        """Return the views of a run; None where they are those of its student alone."""
        theirs = self.views[dataset]
        own, strong = weak(theirs), theirs.strong if isinstance(theirs, TwoViews) else None
        if run.views is not None:
            own = view_params(run.views, f"{where}.views")
            self._check_images(dataset, own, f"{where}.views")
            if mixing.mixes(own) and run.strong_views is None:
                return None if own == theirs else own  # in the place of both
        if run.strong_views is not None:
            strong = view_params(run.strong_views, f"{where}.strong_views")
            self._check_images(dataset, strong, f"{where}.strong_views")

        if strong is not None:
            return two_views(own, strong, where)
        return None if own == theirs else own

    def borrowed(self, pair: str, teacher: str, matching: str) -> str | None:
        """Return the key of `borrowed` that asks for a matching of a pair with another teacher, if one does."""
        for name, entry in self.params.borrowed.items():
            if (entry.pair, entry.teacher, entry.matching) == (pair, teacher, matching):
                return name
        return None

    def matching(self, teacher: str, student: str, name: str) -> MatchingParams:
        """Return the recipe of a matching, "last" replaced."""
        recipe = self.params.matchings[name]
        taps = {
            "student_tap": self.architecture("students", student).resolved(recipe.student_tap),
            "teacher_feature": self.architecture("teachers", teacher).resolved(recipe.teacher_feature),
        }
        return recipe.model_copy(update=taps)


def _check_pairs(
    run: RunBlock, needs: Needs, settings: RunParams, views: ViewParams | None, dataset: str, where: str
) -> None:
    """Refuse methods that ask for a weak and a strong view where there is one, and a strong one for no method."""
    names = ", ".join(plug.name for plug in run.methods)
    if not needs.strong:
        if settings.strong_views is not None:
            raise ParamsError(
                f"params.yaml: {where} has strong_views, and {names} learn{'s' * (len(run.methods) == 1)} from one "
                "view of each sample. Drop them, or choose a method that learns from both, such as crld, then: "
                "dvc repro params"
            )
        return
    if views is not None and mixing.mixes(views):
        raise ParamsError(
            f"params.yaml: {where} ({names}) learns from a weak and a strong view of each sample, and its views mix "
            "samples. Drop its views, then: dvc repro params"
        )
    if not isinstance(views, TwoViews):
        raise ParamsError(
            f"params.yaml: {where} ({names}) learns from a weak and a strong view of each sample, and "
            f"datasets.{dataset} has views alone. Add strong_views to it, for instance {{crop_flip: {{}}, "
            "rand_augment: {}}, or to a run with 'source: online', then: dvc repro params"
        )
    if run.slots == 0:
        raise ParamsError(
            f"params.yaml: {where} ({names}) learns from a weak and a strong view of each sample, and its slots are 0, "
            "the plain view alone. Set slots to 2 or more, then: dvc repro params"
        )


def _run_slots(space: ViewSpace, slots: Slots, online: bool, where: str) -> int | None:
    # Only a teacher that runs can follow an unbounded number of views: a store has a number of slots.
    if online and slots == "all" and space.count is None:
        return None
    return num_slots(space, slots, where)
