"""From params.yaml and the artifacts to `Results`.

params.yaml decides what is read, so what a removed run has left behind is not reported. What it lists and is not there,
or was made from something else than the project has now, is left out and named with the stage to run. What is damaged
is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.data.prepared import Prepared
from pipeline.errors import MissingArtifactError
from pipeline.params.datasets import DatasetParams
from pipeline.params.pairs import PairBlock, RunBlock
from pipeline.params.sections import ALONE
from pipeline.params.tasks import CLASSIFICATION
from pipeline.params.views import dataset_views
from pipeline.report.collect.blocks import Blocks
from pipeline.report.collect.checked import checked
from pipeline.report.collect.detectors import detection
from pipeline.report.collect.ingredients import Ingredients, assistants
from pipeline.report.collect.matched import matched
from pipeline.report.collect.missing import Omissions
from pipeline.report.collect.resolved import alone_inputs, run_inputs
from pipeline.report.collect.settings import alone_settings, run_settings
from pipeline.report.collect.tables import codes, tables
from pipeline.report.collect.training import Source, read
from pipeline.report.key import key
from pipeline.report.provenance import gather
from pipeline.report.results import Dataset, Pair, Results, Run, Teacher, Trained


def collect(params: Path, artifacts: Path, prepared: Path) -> Results:
    """Read everything that is reported.

    Args:
        params: folder of the blocks of params.yaml.
        artifacts: folder of all artifacts.
        prepared: folder of all prepared data sets.

    Raises:
        ParamsError: params.yaml is wrong.
        MissingArtifactError: of the teachers and pairs that it lists none can be shown.
        DamagedArtifactError: a file is not what was written.
    """
    collector = _Collector(Blocks.of(params), artifacts, prepared)
    sections, omissions = collector.blocks.sections, collector.omissions
    datasets = collector.datasets()
    teachers = collector.teachers(datasets)
    ingredients = Ingredients(
        tables(artifacts, collector.blocks, teachers, omissions),
        codes(artifacts, collector.blocks, teachers, omissions),
    )
    # Without a seed no student is trained.
    pairs = collector.pairs(teachers, ingredients) if sections.seeds else ()

    of_boxes = detection(collector.blocks, artifacts, prepared, omissions)
    if omissions.entries and not teachers and not pairs and not of_boxes.teachers:
        first = omissions.entries[0]
        raise MissingArtifactError(
            f"No teacher and no pair can be reported. The first that is left out is the {first.what}: {first.reason} "
            f"Make it with: {first.command}"
        )

    return Results(
        seeds=sections.seeds,
        datasets=datasets,
        teachers=teachers,
        pairs=pairs,
        tables=ingredients.tables,
        codes=ingredients.codes,
        taught=assistants(artifacts, collector.blocks, teachers, omissions),
        provenance=gather(Path()),
        missing=omissions.entries,
        detection=of_boxes,
    )


@dataclass(frozen=True)
class _Collector:
    """Collects what is whole.

    Attributes:
        blocks: the blocks of params.yaml.
        artifacts: folder of all artifacts.
        prepared: folder of all prepared data sets.
        omissions: what is left out.
    """

    blocks: Blocks
    artifacts: Path
    prepared: Path
    omissions: Omissions = field(default_factory=Omissions)

    def datasets(self) -> dict[str, Dataset]:
        """Return the data sets by name."""
        datasets = {}
        for name, entry in self.blocks.sections.datasets.items():
            if self.blocks.task(name) != CLASSIFICATION:
                continue  # what has boxes is collected apart
            opened = partial(self._dataset, name, entry)
            dataset = self.omissions.whole(f"data set {name}", f"prepare_data@{name}", opened)
            if dataset is not None:
                datasets[name] = dataset
        return datasets

    def teachers(self, datasets: dict[str, Dataset]) -> dict[str, Teacher]:
        """Return the teachers by name, those that are whole."""
        teachers = {}
        for name, entry in self.blocks.sections.teachers.items():
            if self.blocks.task(entry.dataset) != CLASSIFICATION:
                continue
            what, stage = f"teacher {name}, with its tables and codes", f"evaluate_teacher@{name}"
            if entry.dataset not in datasets:
                self.omissions.add(what, stage, f"Its data set {entry.dataset} is left out.")
                continue

            dataset = datasets[entry.dataset]
            trained = self.omissions.whole(what, stage, partial(self._taught, name, dataset))
            if trained is None:
                continue
            reading = partial(checked, self.artifacts, self.blocks.checking(name), dataset, trained)
            store = self.omissions.whole(what, f"check_features@{name}", reading)
            if store is not None:
                teachers[name] = Teacher(name, dataset, trained, *store)
        return teachers

    def pairs(self, teachers: dict[str, Teacher], ingredients: Ingredients) -> tuple[Pair, ...]:
        """Return the pairs whose teacher and students alone are there."""
        pairs = []
        for name, entry in self.blocks.sections.pairs.items():
            if self.blocks.task(self.blocks.sections.students[entry.student].dataset) != CLASSIFICATION:
                continue
            block = self.blocks.pair(name)
            alone = [] if block.teacher not in teachers else self._alone(block, teachers[block.teacher])
            if not alone:
                self._without(block, teachers)
                continue

            teacher, recipe = teachers[block.teacher], block.student.recipe
            planned = len(self.blocks.sections.seeds)
            runs = [Run(ALONE, "alone", tuple(alone), alone_settings(recipe), planned, ALONE)]
            matchings = matched(self.artifacts, name, self.blocks, teachers, runs[0], self.omissions)
            for run in self.blocks.sections.runs_of(name):  # in the order of params.yaml; a json keeps none
                settings = block.runs[run]
                whole = partial(
                    ingredients.check, self.artifacts, self.blocks, block, settings, teacher, matchings
                )
                students = self._students(block, run, teacher, whole)
                if students:
                    trained = tuple(students), run_settings(settings, recipe), planned
                    runs.append(
                        Run(run, _composition(settings), *trained, key(settings, self.blocks.sections))
                    )
            pairs.append(Pair(name, teacher, block.student.student, tuple(runs), matchings))
        return tuple(pairs)

    def _without(self, block: PairBlock, teachers: dict[str, Teacher]) -> None:
        """Note that a pair is left out whole."""
        name, student = block.teacher, block.student.student
        seed = self.blocks.sections.seeds[0]
        stage, reason = f"evaluate_pretrained@{student}-{seed}", f"Its student {student} alone is left out."
        if name not in teachers:
            stage, reason = f"evaluate_teacher@{name}", f"Its teacher {name} is left out."
        self.omissions.add(f"pair {block.pair}", stage, reason)

    def _dataset(self, name: str, entry: DatasetParams) -> Dataset:
        opened = Prepared.open(self.prepared / name)
        views = dataset_views(entry.views, entry.strong_views, f"datasets.{name}")
        return Dataset(name, opened, views)

    def _taught(self, name: str, dataset: Dataset) -> Trained:
        meta = dataset.prepared.meta
        inputs = self.blocks.training(name).trained_from(meta.fingerprint, meta.mean, meta.std)
        stages = f"evaluate_teacher@{name}", f"train_teacher@{name}"
        return read(self.artifacts, Source(f"teachers/{name}", *stages, inputs, {}), dataset, 0)

    def _alone(self, block: PairBlock, teacher: Teacher) -> list[Trained]:
        """Return the students alone, of the seeds that are there."""
        student, dataset = block.student.student, teacher.dataset

        def one(seed: int) -> Trained:
            inputs = alone_inputs(self.artifacts, block.student, dataset, seed)
            stages = f"evaluate_pretrained@{student}-{seed}", f"pretrain_student@{student}-{seed}"
            about = {"dataset": dataset.name, "student": student, "seed": seed}
            source = Source(f"pretrained/{student}/{seed}", *stages, inputs, about)
            trained = read(self.artifacts, source, dataset, seed)
            # It was evaluated without a teacher, so its agreement with this pair's is counted here.
            agreeing = trained.prediction == teacher.trained.prediction
            trained.metrics["agreement"] = 100 * float(agreeing.mean())
            return trained

        what = f"student {student} alone, seed"
        read_ones = (
            self.omissions.whole(
                f"{what} {seed}", f"evaluate_pretrained@{student}-{seed}", partial(one, seed)
            )
            for seed in self.blocks.sections.seeds
        )
        return [trained for trained in read_ones if trained is not None]

    def _students(
        self, block: PairBlock, run: str, teacher: Teacher, whole: Callable[[], None]
    ) -> list[Trained]:
        """Return the students of a run, of the seeds that are there; `whole` refuses what the run reads."""
        settings, name = block.runs[run], f"{block.pair}/{run}"
        # What a file says of itself must be what params.yaml has now: its path may hold what earlier settings made.
        about = {
            "dataset": teacher.dataset.name,
            "student": block.student.student,
            "pair": block.pair,
            "run": run,
            "teacher": teacher.name,
            "methods": " + ".join(plug.name for plug in settings.methods),
            "source": settings.source,
            "slots": settings.slots,
        }

        def one(seed: int) -> Trained:
            whole()
            inputs = run_inputs(self.artifacts, block, run, teacher, seed)
            stages = f"evaluate@{name}-{seed}", f"distill@{name}-{seed}"
            source = Source(
                f"students/{name}/{seed}", *stages, inputs, about | {"seed": seed}, ("agreement",)
            )
            return read(self.artifacts, source, teacher.dataset, seed)

        read_ones = (
            self.omissions.whole(
                f"student of {name}, seed {seed}", f"evaluate@{name}-{seed}", partial(one, seed)
            )
            for seed in self.blocks.sections.seeds
        )
        return [trained for trained in read_ones if trained is not None]


def _composition(settings: RunBlock) -> str:
    """Return methods, transform and schedule in words."""
    words = [plug.name for plug in settings.methods]
    if settings.transform is not None:
        words.append(settings.transform.name)
    if settings.schedule.name != "final":
        words.append(settings.schedule.name)
    return " + ".join(words)
