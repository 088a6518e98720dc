"""params.yaml brought to life: its networks, tables and runs, each looked at once, before anything is made.

Networks are built on torch's meta device (`networks/architecture.py`) for the images that a data set's settings
promise, so a tap, a feature or a size that does not exist is an error here, and not after a teacher has been trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

from numpy.typing import NDArray

from pipeline import plugin
from pipeline.data.dataset import ImageFacts
from pipeline.data.views import check_size, num_slots, view_space
from pipeline.distillation.method import Known
from pipeline.errors import ParamsError, UnknownNameError, unknown_name
from pipeline.features.encoding import Feature, tables_of
from pipeline.networks.architecture import Architecture, architecture
from pipeline.networks.catalogue import family_of
from pipeline.networks.spec import NetworkSpec
from pipeline.params.base import placed, validate
from pipeline.params.matchings import MatchingParams
from pipeline.params.pairs import RunBlock, WantedMatching
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe
from pipeline.params.sections import Sections, merged
from pipeline.params.students import StudentParams
from pipeline.params.teachers import FeatureParams, TeacherParams, checkpoints_of
from pipeline.params.views import Slots, ViewParams, view_params
from pipeline.runs.composition import Composition
from pipeline.runs.rehearsal import feature_shape, rehearse
from pipeline.tables.table import TableConfig

CLASSES = (
    10  # where only the files know: no shape depends on it but the logits' and the number of sub-classes
)
Kind = Literal["teachers", "students"]
_STAGE = re.compile(r"(?P<stage>stage\d+)(?P<place>(_\w+)?)")


class Project:
    """All of params.yaml, plug-ins included.

    Args:
        params: params.yaml, its names checked.
    """

    def __init__(self, params: Sections) -> None:
        self.params = params
        self._architectures: dict[str, Architecture] = {}
        self._runs: dict[tuple[str, str], RunBlock] = {}

    # Data

    @cached_property
    def images(self) -> Mapping[str, ImageFacts]:
        """What the images of each data set are like, by its settings alone.

        Raises:
            UnknownNameError: there is no such source.
            ParamsError: its settings are wrong.
        """
        known = {}
        for name, dataset in self.params.datasets.items():
            with placed(f"datasets.{name}.source"):
                module = plugin.load("datasets", dataset.source.name)
            place = f"datasets.{name}.source.{dataset.source.name}"
            known[name] = module.image(validate(module.Config, dataset.source.settings, place))
        return known

    @cached_property
    def views(self) -> Mapping[str, ViewParams]:
        """The view space of each data set.

        Raises:
            UnknownNameError: there is no such space.
            ParamsError: its settings are wrong, or its padding is too large for the images.
        """
        spaces = {}
        for name, dataset in self.params.datasets.items():
            where = f"datasets.{name}.views"
            spaces[name] = view_params(dataset.views, where)
            check_size(spaces[name], self.images[name].size, where)
        return spaces

    # Networks

    def spec(self, kind: Kind, name: str) -> NetworkSpec:
        """Return what a teacher or student is.

        Raises:
            UnknownNameError: no family has the network.
        """
        network: TeacherParams | StudentParams = getattr(self.params, kind)[name]
        with placed(f"{kind}.{name}.network"):
            family, known = family_of(network.network)
        images = self.images[network.dataset]
        return NetworkSpec(
            family=family,
            network=known,
            size=images.size,
            channels=images.channels,
            classes=images.classes or CLASSES,
            weights=network.weights if isinstance(network, TeacherParams) else "none",
        )

    def architecture(self, kind: Kind, name: str) -> Architecture:
        """Return the units and taps of a teacher or student.

        Raises:
            ShapeError: the network cannot read images of this size.
        """
        spec = self.spec(kind, name)
        key = spec.model_dump_json(exclude={"weights"})
        if key not in self._architectures:
            with placed(f"{kind}.{name}"):
                self._architectures[key] = architecture(spec)
        return self._architectures[key]

    def recipe(self, kind: Kind, name: str) -> Recipe:
        """Return how a teacher or student is trained."""
        return self.params.recipe(getattr(self.params, kind)[name].recipe, f"{kind}.{name}.recipe")

    # What a teacher's store holds, and what is fitted to it

    def features(self, teacher: str) -> dict[str, FeatureParams]:
        """Return the features that a teacher's store holds, by name, "last" replaced.

        Raises:
            UnknownNameError: the teacher has no such tap, or there is no such encoding.
            ParamsError: a feature is there twice, or needs a table.
        """
        network, where = self.architecture("teachers", teacher), f"teachers.{teacher}.features"
        known: dict[str, FeatureParams] = {}
        for name, feature in self.params.teachers[teacher].features.items():
            resolved = network.resolved(name)
            self._check_feature(teacher, resolved, where)
            if tables_of([resolved]):
                raise ParamsError(
                    f"params.yaml: {where} has '{name}', which is encoded with a table. Drop it: codes are made "
                    "where a run asks for them."
                )
            if resolved in known:
                raise ParamsError(f"params.yaml: {where} has '{resolved}' twice. Name it once.")
            known[resolved] = feature
        return known

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
        recipe, own = self.params.tables[name], self.params.teachers[teacher].tables.get(name, {})
        place = f"tables.{name}.{recipe.name}" if not own else f"teachers.{teacher}.tables.{name}"
        config: TableConfig = validate(
            plugin.load("tables", recipe.name).Config, merged(recipe.settings, own), place
        )
        network = self.architecture("teachers", teacher)
        return config.model_copy(update={"feature": network.resolved(config.feature)})

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
        if (pair, run) not in self._runs:
            self._runs[pair, run] = self._run(pair, run)
        return self._runs[pair, run]

    def distilled(self) -> Iterator[tuple[str, str, RunBlock]]:
        """Give pair, run and block of all that `distill` asks for."""
        for item in self.params.distill:
            pair, _, run = item.partition("/")
            yield pair, run, self.run(pair, run)

    def _run(self, pair: str, run: str) -> RunBlock:
        names, settings = self.params.pairs[pair], self.params.run(pair, run)
        where = f"pairs.{pair}.overrides.{run}" if run in names.overrides else f"runs.{run}"
        known = self.known(names.teacher, names.student)
        with placed(f"{where} (of pair {pair})"):
            composition = Composition.of(settings, where, known)

        changed = merged(self.recipe("students", names.student).model_dump(mode="json"), settings.recipe)
        recipe = validate(Recipe, changed, f"{where}.recipe")
        needs, online = composition.needs, settings.source == "online"
        # The codes in a store are made already; the teacher that makes them beside the student needs their tables.
        tables = dict.fromkeys((*needs.tables, *(tables_of(needs.teacher) if online else ())))
        block = RunBlock(
            methods=composition.plugs(),
            schedule=Plug.of(settings.schedule.name, **composition.schedule_config.model_dump(mode="json")),
            transform=None
            if settings.transform is None
            else Plug.of(settings.transform.name, **composition.transform_config.model_dump(mode="json")),
            source=settings.source,
            slots=self._run_slots(names.teacher, settings.slots, online, where),
            recipe=recipe,
            features=needs.teacher,
            checkpoints=composition.checkpoints,
            tables=tuple(tables),
            changes=composition.changes,
            network=needs.network,
            copies=composition.copies,
            matchings=tuple(WantedMatching(**wanted._asdict()) for wanted in needs.matchings),
            plugins=composition.plugins,
        )
        self._check_student_taps(names.student, needs.student, where)
        self._check_reads(names.teacher, block, where)
        with placed(f"{where} (of pair {pair})"):
            rehearse(
                composition,
                self.spec("students", names.student),
                known,
                self._stand_ins(names.teacher, needs.tables),
            )
        self._check_copies(names.teacher, block, where)
        self._check_matchings(pair, block, where)
        return block

    def _run_slots(self, teacher: str, slots: Slots, online: bool, where: str) -> int | None:
        space = view_space(self.views[self.params.teachers[teacher].dataset])
        if online and slots == "all" and space.count is None:
            return None
        return num_slots(space, slots, f"{where}.slots")

    # Checks

    def _check_student_taps(self, student: str, taps: tuple[str, ...], where: str) -> None:
        network = self.architecture("students", student)
        for tap in taps:
            # What an inserted layer computes is recorded as "<tap>.<name>".
            if tap.partition(".")[0] not in network.taps:
                name = self.params.students[student].network
                raise _no_tap(f"student tap of {where}:", tap, name, network)

    def _check_feature(self, teacher: str, name: str, where: str) -> None:
        network, spec = self.architecture("teachers", teacher), self.spec("teachers", teacher)
        with placed(where):
            feature = Feature.parse(name)
        if feature.tap not in network.taps:
            known = self.params.teachers[teacher].network
            raise _no_tap(f"teacher tap of {where}:", feature.tap, known, network)
        with placed(where):
            feature_shape(network.taps, name, spec.classes)  # which the encodings can encode

    def _check_reads(self, teacher: str, run: RunBlock, where: str) -> None:
        """Check that the teacher has what a run reads, and that its store holds it where the run is cached."""
        for name in run.tables:
            if name not in self.params.tables:
                raise unknown_name(f"table of {where}:", name, self.params.tables, "Add it to 'tables'.")
            if self.table(teacher, name).feature in run.changes:
                raise ParamsError(
                    f"params.yaml: {where} reads table '{name}', which is fitted to "
                    f"'{self.table(teacher, name).feature}', and its transform changes that feature. Drop the "
                    "transform, or take the feature out of its features."
                )
            self.check_table(teacher, name)
        for name in run.features:
            self._check_feature(teacher, name, where)
            for table in tables_of([name]):
                if table not in self.params.tables:
                    raise unknown_name(f"table of {where}:", table, self.params.tables, "Add it to 'tables'.")
                self.check_table(teacher, table)
        kept = self.params.teachers[teacher]
        for checkpoint in run.checkpoints:
            if checkpoint not in (names := checkpoints_of(kept)):
                hint = f"Training keeps anchor_025 where teachers.{teacher}.anchors has 0.25."
                raise unknown_name(f"checkpoint of {where}:", checkpoint, names, hint)
            if run.source == "cached" and checkpoint not in kept.checkpoints:
                raise ParamsError(
                    f"params.yaml: {where} learns from checkpoint '{checkpoint}', and the store of teacher '{teacher}' "
                    f"holds {', '.join(kept.checkpoints)}. Add it to teachers.{teacher}.checkpoints."
                )
        if run.source == "cached":
            self._check_stored(teacher, run, where)

    def _check_stored(self, teacher: str, run: RunBlock, where: str) -> None:
        stored = self.features(teacher)
        for name in run.features:
            if tables_of([name]):
                if any(checkpoint != "last" for checkpoint in run.checkpoints):
                    raise ParamsError(
                        f"params.yaml: {where} learns from the codes '{name}' of {', '.join(run.checkpoints)}, and "
                        "codes are made of the last checkpoint. Set 'source: online' of the run."
                    )
                continue  # made where a run asks for it
            if name not in stored:
                raise ParamsError(
                    f"params.yaml: {where} reads '{name}' of teacher '{teacher}', whose store holds "
                    f"{', '.join(stored)}. Add it to teachers.{teacher}.features, or set 'source: online' of the run."
                )
            place = f"teachers.{teacher}.features.{name}.slots"
            slots = self.slots(teacher, stored[name].slots, place)
            if run.slots is not None and slots < run.slots:
                raise ParamsError(
                    f"params.yaml: {where} shows {run.slots} view slots, and {place} is {slots}. Raise it, or set "
                    "'slots' or 'source: online' of the run."
                )

    def check_table(self, teacher: str, name: str) -> None:
        """Check that a teacher's store holds what a table is fitted to.

        Raises:
            ParamsError: it does not; the message says what to add.
        """
        feature, stored = self.table(teacher, name).feature, self.features(teacher)
        self._check_feature(teacher, feature, f"tables.{name}")
        if feature not in stored:
            raise ParamsError(
                f"params.yaml: tables.{name} is fitted to '{feature}', and the store of teacher '{teacher}' holds "
                f"{', '.join(stored)}. Add {feature}: {{slots: 0}} to teachers.{teacher}.features."
            )
        if "last" not in self.params.teachers[teacher].checkpoints:
            raise ParamsError(
                f"params.yaml: tables.{name} is fitted to the last checkpoint of teacher '{teacher}', and its store "
                f"holds {', '.join(self.params.teachers[teacher].checkpoints)}. Add last to "
                f"teachers.{teacher}.checkpoints."
            )

    def _check_copies(self, teacher: str, run: RunBlock, where: str) -> None:
        for name in run.copies:
            copies = {key: copy for key, copy in self.params.copies.items() if copy.teacher == teacher}
            if name not in copies:
                raise unknown_name(
                    f"copy of teacher '{teacher}' of {where}:",
                    name,
                    copies,
                    "Add it to 'copies' in params.yaml.",
                )
            self.check_copy(name)
            if run.slots is None:
                raise ParamsError(
                    f"params.yaml: {where} shows an unbounded number of views, and the logits of copy '{name}' are "
                    "stored. Set 'slots' of the run to a number."
                )
            slots = self.slots(teacher, copies[name].slots, f"copies.{name}.slots")
            if slots < run.slots:
                raise ParamsError(
                    f"params.yaml: {where} shows {run.slots} view slots, and copies.{name}.slots is {slots}. Raise "
                    "it, or set 'slots' of the run."
                )

    def check_copy(self, name: str) -> None:
        """Check that the store of a copy's teacher holds the logits that it learns from.

        Raises:
            ParamsError: it does not; the message says what to add.
        """
        copy = self.params.copies[name]
        slots = self.slots(copy.teacher, copy.slots, f"copies.{name}.slots")
        logits = self.features(copy.teacher).get("logits")
        place = f"teachers.{copy.teacher}.features.logits"
        if logits is None or "last" not in self.params.teachers[copy.teacher].checkpoints:
            raise ParamsError(
                f"params.yaml: copies.{name} learns from the logits of teacher '{copy.teacher}', which its store does "
                f"not hold. Add {place}."
            )
        if self.slots(copy.teacher, logits.slots, f"{place}.slots") < slots:
            raise ParamsError(
                f"params.yaml: copies.{name} sees {slots} view slots, and {place}.slots is {logits.slots}. Raise it, "
                f"or lower copies.{name}.slots."
            )

    def _check_matchings(self, pair: str, run: RunBlock, where: str) -> None:
        names = self.params.pairs[pair]
        for wanted in run.matchings:
            if wanted.matching not in self.params.matchings:
                known = self.params.matchings
                raise unknown_name(f"matching of {where}:", wanted.matching, known, "Add it to 'matchings'.")
            if wanted.seed is not None and wanted.seed not in self.params.seeds:
                raise ParamsError(
                    f"params.yaml: {where} takes the matching of seed {wanted.seed}, and seeds are "
                    f"{', '.join(map(str, self.params.seeds))}. Name one of these."
                )
            if wanted.teacher is not None and self.borrowed(pair, wanted.teacher, wanted.matching) is None:
                raise ParamsError(
                    f"params.yaml: {where} takes the matching '{wanted.matching}' with teacher '{wanted.teacher}'. "
                    f"Add {wanted.teacher}-{wanted.matching}: {{pair: {pair}, teacher: {wanted.teacher}, student: "
                    f"{names.student}, matching: {wanted.matching}}} to 'borrowed'."
                )
            self.check_matching(wanted.teacher or names.teacher, names.student, wanted.matching)

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

    def check_matching(self, teacher: str, student: str, name: str) -> None:
        """Check that a matching's student has the tap, and that its teacher's store holds the feature.

        Raises:
            ParamsError: it does not; the message says what to add.
        """
        recipe, where = self.matching(teacher, student, name), f"matchings.{name}"
        self._check_student_taps(student, (recipe.student_tap,), where)
        self._check_feature(teacher, recipe.teacher_feature, where)
        stored, kept = self.features(teacher), self.params.teachers[teacher].checkpoints
        if recipe.teacher_feature not in stored:
            raise ParamsError(
                f"params.yaml: {where} matches '{recipe.teacher_feature}', and the store of teacher '{teacher}' holds "
                f"{', '.join(stored)}. Add it to teachers.{teacher}.features."
            )
        if recipe.teacher_checkpoint not in kept:
            raise ParamsError(
                f"params.yaml: {where} matches checkpoint '{recipe.teacher_checkpoint}', and the store of teacher "
                f"'{teacher}' holds {', '.join(kept)}. Add it to teachers.{teacher}.checkpoints."
            )
        classes = self.images[self.params.students[student].dataset].classes
        for setting, value in (("ranges", recipe.ranges), ("pictured", recipe.pictured + 1)):
            if classes is not None and value > classes:
                raise ParamsError(
                    f"params.yaml: {where}.{setting} is {getattr(recipe, setting)}, and the data have {classes} "
                    "classes. Lower it."
                )


def _no_tap(what: str, tap: str, name: str, network: Architecture) -> UnknownNameError:
    """Return the error for a tap that a network does not have; it advises the one that the last stage has."""
    hint = ""
    if ":" in tap:
        hint = "A student's tap has no encoding."
    elif (match := _STAGE.fullmatch(tap)) and network.stages and match["stage"] not in network.stages:
        last, place = network.stages[-1], match["place"]
        if last + place in network.taps:
            hint = f"The last stage of {name} is {last}: write {last}{place}, or last{place}."
    return unknown_name(what, tap, network.taps, hint)
