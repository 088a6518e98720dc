"""From params.yaml and the artifacts to what is reported of data sets with boxes; see `collect.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.artifacts import advice, arrays
from pipeline.detection.blocks import DetectorPairBlock, DetectorRunBlock
from pipeline.detection.spec import DetectorStudentBlock
from pipeline.detection.stored import StoredSplit, open_split, read_meta
from pipeline.errors import StaleArtifactError
from pipeline.params.datasets import DatasetParams
from pipeline.params.detection import box_views
from pipeline.params.names import OWN
from pipeline.params.sections import ALONE
from pipeline.params.tasks import DETECTION
from pipeline.report.collect.blocks import Blocks
from pipeline.report.collect.matched import matched
from pipeline.report.collect.missing import Omissions
from pipeline.report.collect.resolved import current, require_files
from pipeline.report.collect.settings import alone_settings, built, detector_settings
from pipeline.report.collect.training import Source, measured, opened, read_history
from pipeline.report.detectors import (
    BEST,
    COSTS,
    CURVES,
    BoxData,
    BoxPair,
    BoxRun,
    Detection,
    Detector,
    Finder,
    Found,
)
from pipeline.report.key import key

T = TypeVar("T")
NUMBERS = ("AP", "AP50", "AP75", BEST, *COSTS)


def detection(blocks: Blocks, artifacts: Path, prepared: Path, omissions: Omissions) -> Detection:
    """Read what is whole of the data sets with boxes.

    Args:
        blocks: the blocks of params.yaml.
        artifacts: folder of all artifacts.
        prepared: folder of all prepared data sets.
        omissions: takes what is left out.

    Raises:
        DamagedArtifactError: a file is not what was written.
    """
    collector = _Collector(blocks, artifacts, prepared, omissions)
    datasets = collector.datasets()
    teachers = collector.teachers(datasets)
    # Without a seed no student is trained.
    return Detection(datasets, teachers, collector.pairs(teachers) if blocks.sections.seeds else ())


@dataclass(frozen=True)
class _Collector:
    """Collects what is whole; the attributes are the arguments of `detection`."""

    blocks: Blocks
    artifacts: Path
    prepared: Path
    omissions: Omissions

    def datasets(self) -> dict[str, BoxData]:
        """Return the data sets by name."""
        datasets = {}
        for name, entry in self.blocks.sections.datasets.items():
            if self.blocks.task(name) == DETECTION:
                opening = partial(_dataset, name, entry, self.prepared / name)
                data = self.omissions.whole(f"data set {name}", f"prepare_data@{name}", opening)
                if data is not None:
                    datasets[name] = data
        return datasets

    def teachers(self, datasets: dict[str, BoxData]) -> dict[str, Finder]:
        """Return the teachers by name."""
        teachers = {}
        for name, entry in self.blocks.sections.teachers.items():
            if self.blocks.task(entry.dataset) != DETECTION:
                continue
            what, stage = f"teacher {name}", f"evaluate_teacher@{name}"
            if entry.dataset not in datasets:
                self.omissions.add(what, stage, f"Its data set {entry.dataset} is left out.")
                continue
            data = datasets[entry.dataset]
            trained = self.omissions.whole(what, stage, partial(self._teacher, name, data))
            if trained is not None:
                block = self.blocks.detector(name)
                teachers[name] = Finder(name, data, trained, built(block, block.spec(data.meta)))
        return teachers

    def pairs(self, teachers: dict[str, Finder]) -> tuple[BoxPair, ...]:
        """Return the pairs whose teacher and students alone are there."""
        sections, pairs = self.blocks.sections, []
        for name, entry in sections.pairs.items():
            if self.blocks.task(sections.students[entry.student].dataset) != DETECTION:
                continue
            block = self.blocks.detectors(name)
            if block.teacher not in teachers:
                stage, reason = (
                    f"evaluate_teacher@{block.teacher}",
                    f"Its teacher {block.teacher} is left out.",
                )
                self.omissions.add(f"pair {name}", stage, reason)
                continue
            teacher, student = teachers[block.teacher], block.student.student
            alone = self._seeds(
                f"student {student} alone, seed {{}}",
                f"evaluate_pretrained@{student}-{{}}",
                partial(self._alone, block.student, teacher.dataset),
            )
            if not alone:
                stage = f"evaluate_pretrained@{student}-{sections.seeds[0]}"
                self.omissions.add(f"pair {name}", stage, f"Its student {student} alone is left out.")
                continue

            recipe, planned = block.student.recipe, len(sections.seeds)
            runs = [BoxRun(ALONE, ALONE, "alone", alone, alone_settings(recipe), planned)]
            matchings = matched(self.artifacts, name, self.blocks, teachers, runs[0], self.omissions)
            for run in sections.runs_of(name):  # in the order of params.yaml; a json keeps none
                students = self._seeds(
                    f"student of {name}/{run}, seed {{}}",
                    f"evaluate@{name}/{run}-{{}}",
                    partial(self._student, block, run, teacher),
                )
                if students:
                    consists = key(sections.run(name, run), sections)
                    settings = detector_settings(block.runs[run], recipe)
                    composition = _composition(block.runs[run])
                    runs.append(BoxRun(run, consists, composition, students, settings, planned))
            how = built(block.student, block.student.spec(teacher.dataset.meta))
            pairs.append(BoxPair(name, teacher, student, tuple(runs), matchings, how))
        return tuple(pairs)

    def _seeds(self, what: str, stage: str, read: Callable[[int], T]) -> tuple[T, ...]:
        """Return what `read` returns for each seed; what is missing is noted."""
        found = (
            self.omissions.whole(what.format(seed), stage.format(seed), partial(read, seed))
            for seed in self.blocks.sections.seeds
        )
        return tuple(one for one in found if one is not None)

    def _teacher(self, name: str, data: BoxData) -> Detector:
        inputs = self.blocks.detector(name).trained_from(data.meta.fingerprint)
        source = Source(f"teachers/{name}", f"evaluate_teacher@{name}", f"train_teacher@{name}", inputs, {})
        return self._read(source, data, 0)

    def _alone(self, block: DetectorStudentBlock, data: BoxData, seed: int) -> Detector:
        name = block.student
        expected = _of_student(block, data) | {"recipe": block.recipe.model_dump(mode="json")}
        path = self.artifacts / "inputs" / "students" / f"{name}.json"
        inputs = current(path, block.stage, expected) | {"seed": seed}
        source = Source(
            f"pretrained/{name}/{seed}",
            f"evaluate_pretrained@{name}-{seed}",
            f"pretrain_student@{name}-{seed}",
            inputs,
            {"dataset": data.name, "student": name, "seed": seed},
        )
        return self._read(source, data, seed)

    def _student(self, block: DetectorPairBlock, run: str, teacher: Finder, seed: int) -> Detector:
        settings = block.runs[run].model_dump(
            mode="json", include={"recipe", "methods", "transform", "features"}
        )
        about = {"pair": block.pair, "run": run, "seed": seed, "teacher": teacher.name}
        expected = _of_student(block.student, teacher.dataset) | settings | about
        expected["weights"] = teacher.trained.weights["last"]
        path = self.artifacts / "inputs" / "pairs" / block.pair / run / f"{seed}.json"
        inputs = current(path, block.stage, expected)
        folder = self.artifacts / "matchings" / block.pair / OWN
        matchings = {
            wanted.key: folder / wanted.matching / f"{seed}.npz" for wanted in block.runs[run].matchings
        }
        require_files(path, inputs.get("matchings"), matchings, block.stage)

        name = f"{block.pair}/{run}"
        about |= {"dataset": teacher.dataset.name, "student": block.student.student}
        source = Source(
            f"students/{name}/{seed}", f"evaluate@{name}-{seed}", f"distill@{name}-{seed}", inputs, about
        )
        return self._read(source, teacher.dataset, seed)

    def _read(self, source: Source, data: BoxData, seed: int) -> Detector:
        """Read what is reported of a detector: its files must be of one training, of what the project has now."""
        training = opened(self.artifacts / source.key, source)
        place, hint = self.artifacts / "predictions" / f"{source.key}.npz", f"dvc repro {source.evaluated}"
        origin = {"weights": training.weights["last"], "inputs": training.inputs}
        origin |= {"fingerprint": data.test.fingerprint}
        told = arrays.read(place, hint, origin)
        for name, value in origin.items():
            if str(told[name]) != value:
                raise StaleArtifactError(f"{place} was made with other {name}. {advice.again(hint)}")

        path, source = self.artifacts / "metrics" / f"{source.key}.json", replace(source, numbers=NUMBERS)
        # Their seal is of the npz too, so what is read of it is what was written.
        metrics = measured(path, source, training, place)
        content = arrays.read(
            place,
            hint,
            ("recalls", *map("curve_{}".format, CURVES), *map("last_{}".format, Found.__dataclass_fields__)),
        )
        return Detector(
            seed,
            metrics,
            Found(**{name: content[f"last_{name}"] for name in Found.__dataclass_fields__}),
            content["recalls"],
            {name: content[f"curve_{name}"] for name in CURVES},
            read_history(training, int(metrics["epochs"])),
            training.device,
            training.weights,
        )


def _dataset(name: str, entry: DatasetParams, folder: Path) -> BoxData:
    meta = read_meta(folder)
    views = box_views(entry.views, f"datasets.{name}.views")
    return BoxData(name, meta, open_split(StoredSplit, folder, "test", meta), views)


def _of_student(block: DetectorStudentBlock, data: BoxData) -> dict[str, Any]:
    """Return what inputs of a student say of it, as `pipeline.runs.detector_inputs` puts them together."""
    asked = block.model_dump(mode="json")
    return {
        "student": block.student,
        "dataset": block.dataset,
        "network": block.spec(data.meta).model_dump(mode="json"),
        "first_weights": asked["weights"],
        "fingerprint": data.meta.fingerprint,
    }


def _composition(settings: DetectorRunBlock) -> str:
    """Return methods and transform in words."""
    plugs = [*settings.methods, *([] if settings.transform is None else [settings.transform])]
    return " + ".join(plug.name for plug in plugs)
