"""Published numbers beside measured ones: which are of a pair's data, networks and runs, and how far ours lie apart.

Numbers are compared where data set, teacher's and student's network and what a run consists of are the same. The data
set is the same only if it is the whole official one: a part of it, or other images to test on, is another task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from pipeline.data.layout import Meta
from pipeline.detection.detector_settings import DetectorSettings
from pipeline.detection.layout import Meta as BoxMeta
from pipeline.params.sections import ALONE
from pipeline.params.size import shown
from pipeline.report.detectors import BoxPair, BoxRun
from pipeline.report.published import Published, published
from pipeline.report.results import Pair, Run
from pipeline.report.statistics import Estimate, estimate

TEACHER = "teacher"  # the published run that a teacher is
NEAR = 1.0  # points of top-1 or AP, and epochs, that are taken for the same
CELLS = ("published", "published_rule", "published_source", "difference")  # columns of one student
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Official:
    """What an official data set is like.

    Attributes:
        source: the plug-in that reads it; empty where none is its own.
        example: what the name of one of its classes begins with, however it is read.
        classes: number of classes.
        size: of an image that networks see, in pixels; None where they have any.
        samples: number of images by split, as the published numbers have them.
    """

    source: str
    example: str
    classes: int
    size: int | None
    samples: dict[str, int]


OFFICIAL = {
    "CIFAR-100": Official("cifar", "aquarium_fish", 100, 32, {"train": 50_000, "test": 10_000}),
    "ImageNet": Official("", "n01440764", 1000, 224, {"train": 1_281_167, "test": 50_000}),
    # letKD's split: half of the validation images of each class choose the epoch, the other half are tested on.
    "Tiny-ImageNet": Official("tiny_imagenet", "n01443537", 200, 64, {"train": 100_000, "test": 5_000}),
    # The papers' trainval35k and minival are the images of COCO 2017.
    "COCO": Official("", "toothbrush", 80, None, {"train": 118_287, "test": 5_000}),
}


@dataclass(frozen=True)
class Beside:
    """A published number beside ours.

    Attributes:
        row: the published number.
        tables: the tables of its source that print it.
        name: our run; "teacher" is the teacher.
        last: ours, of the last epoch.
        best: ours, of the best epoch.
        epochs: of our training.
        teacher: of our teacher, by the same metric.
        otherwise: what else is known to differ of our networks.
    """

    row: Published
    tables: tuple[str, ...]
    name: str
    last: Estimate
    best: Estimate
    epochs: int
    teacher: float
    otherwise: tuple[str, ...] = ()

    @property
    def citation(self) -> str:
        """The source and its tables."""
        if not self.tables:
            return self.row.source
        return f"{self.row.source}, Table{'s' * (len(self.tables) > 1)} {', '.join(self.tables)}"

    @property
    def ours(self) -> Estimate:
        """Ours by the published rule; the last epoch where the rule is unknown."""
        return self.best if self.row.rule == "best" else self.last

    @property
    def difference(self) -> Estimate:
        """Ours less the published number, which is taken for exact."""
        return replace(self.ours, mean=self.ours.mean - self.row.value)

    @property
    def remarks(self) -> list[str]:
        """What differs beside the number, and what is known of it."""
        remarks = []
        if self.row.epochs is not None and abs(self.epochs - self.row.epochs) > NEAR:
            remarks.append(f"ours has {self.epochs} epochs, theirs {self.row.epochs:g}")
        expected = self.row.teacher_value
        # Of top-5 rows it is the teacher's top-5.
        comparable = self.row.metric != "top5" and self.row.run not in (ALONE, TEACHER)
        if comparable and expected is not None and abs(self.teacher - expected) > NEAR:
            remarks.append(f"our teacher has {self.teacher:.2f}, theirs {expected:.2f}")
        return [*remarks, *self.otherwise, *filter(None, (self.row.unsure, self.row.note))]


def beside(pair: Pair | BoxPair) -> list[Beside]:
    """Return the published numbers of a pair's teacher, student alone and runs, in the order of its runs."""
    meta = _meta(pair)
    dataset = official(meta)
    if dataset is None or unlike(meta, dataset):
        return []

    rows, teacher = _rows_of(pair, dataset), pair.teacher.trained.metrics
    measured: list[tuple[str, str, list[Metrics]]] = [(TEACHER, TEACHER, [teacher])]
    measured += [(run.name, run.key, [student.metrics for student in run.students]) for run in pair.runs]
    listed = chain.from_iterable(_of(rows, name, key, students, teacher) for name, key, students in measured)
    if isinstance(pair, Pair):
        return list(listed)
    otherwise = tuple(
        filter(None, (_otherwise("teacher", pair.teacher.built), _otherwise("student", pair.built)))
    )
    return [replace(compared, otherwise=otherwise) for compared in listed]


def preferred(run: Run | BoxRun, listed: list[Beside], metric: str = "top1") -> Beside | None:
    """Return the published number that stands for a run where there is room for one: the first, sure ones before."""
    names = (run.name, run.key, metric)
    numbers = [
        compared for compared in listed if (compared.name, compared.row.run, compared.row.metric) == names
    ]
    return min(numbers, key=lambda compared: bool(compared.row.unsure), default=None)


def cells(compared: Beside | None, metrics: Metrics) -> dict[str, Any]:
    """Return the published number of a run and how far a seed of it lies above; all of it is empty where none is."""
    if compared is None:
        return dict.fromkeys(CELLS, "")
    row = compared.row
    ours = metrics[f"best_{row.metric}" if row.rule == "best" else row.metric]
    return dict(zip(CELLS, (row.value, row.rule, compared.citation, ours - row.value), strict=True))


def uncompared(pair: Pair | BoxPair) -> str:
    """Return why published numbers of a pair's networks are not compared; empty where they are, or there are none."""
    meta = _meta(pair)
    dataset = official(meta)
    if dataset is None or not (difference := unlike(meta, dataset)) or not _rows_of(pair, dataset):
        return ""
    return f"{pair.dataset.name} is {dataset} with {difference}, so published numbers of this pair are not compared."


def official(meta: Meta | BoxMeta) -> str | None:
    """Return the name of the official data set that prepared data are of, whole or in part."""
    for name, known in OFFICIAL.items():
        named = any(label.replace(" ", "_").startswith(known.example) for label in meta.classes)
        if len(meta.classes) == known.classes and (meta.source == known.source or named):
            return name
    return None


def unlike(meta: Meta | BoxMeta, dataset: str) -> str:
    """Return in which way prepared data are not the whole official set; empty where they are."""
    known = OFFICIAL[dataset]
    if isinstance(meta, Meta) and meta.size != known.size:
        size = meta.size if isinstance(meta.size, int) else shown(meta.size)
        return f"images of {size} pixels in the place of {known.size}"
    for split, expected in known.samples.items():
        if meta.samples.get(split) != expected:
            return f"{meta.samples.get(split, 0):,} {split} images in the place of {expected:,}"
    return ""


def _meta(pair: Pair | BoxPair) -> Meta | BoxMeta:
    return pair.dataset.prepared.meta if isinstance(pair, Pair) else pair.dataset.meta


def _rows_of(pair: Pair | BoxPair, dataset: str) -> list[Published]:
    networks = (pair.teacher.trained.metrics["network"], pair.alone.students[0].metrics["network"])
    return [row for row in published() if row.dataset == dataset and (row.teacher, row.student) == networks]


def _otherwise(role: str, built: Mapping[str, Any]) -> str:
    """Return how a detector is built other than the library's published ones; empty where it is not."""
    usual = {"weights": "imagenet"} | DetectorSettings().resolved(loaded=True).model_dump(mode="json")
    changed = [f"{name} {value}" for name, value in built.items() if name in usual and value != usual[name]]
    return f"our {role} is built with {', '.join(changed)}" if changed else ""


def _of(
    rows: list[Published], name: str, key: str, students: Sequence[Metrics], teacher: Metrics
) -> Iterator[Beside]:
    """Give what is published of a run; a number that several tables of a source print is one."""
    tables: dict[tuple[str, str, float, str], list[Published]] = {}
    for row in rows:
        if row.run == key:
            tables.setdefault((row.source, row.metric, row.value, row.rule), []).append(row)

    for (_, metric, _, _), same in tables.items():
        last, best = (
            estimate([float(metrics[prefix + metric]) for metrics in students]) for prefix in ("", "best_")
        )
        printed = tuple(dict.fromkeys(row.table for row in same if row.table))
        yield Beside(same[0], printed, name, last, best, students[0]["epochs"], float(teacher[metric]))
