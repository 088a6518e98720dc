"""Published numbers beside measured ones: which are of a pair's data, networks and runs, and how far ours lie apart.

Numbers are compared where data set, teacher's and student's network and what a run consists of are the same. The data
set is the same only if it is the whole official one: a part of it, or other images to test on, is another task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from pipeline.data.layout import Meta
from pipeline.params.sections import ALONE
from pipeline.params.size import shown
from pipeline.report.published import Published, published
from pipeline.report.results import Pair, Run, Trained
from pipeline.report.statistics import Estimate, estimate

TEACHER = "teacher"  # the published run that a teacher is
NEAR = 1.0  # points of top-1, and epochs, that are taken for the same


@dataclass(frozen=True)
class Official:
    """What an official data set is like.

    Attributes:
        source: the plug-in that reads it; empty where none is its own.
        example: what the name of one of its classes begins with, however it is read.
        classes: number of classes.
        size: of an image that networks see, in pixels.
        samples: number of images by split, as the published numbers have them.
    """

    source: str
    example: str
    classes: int
    size: int
    samples: dict[str, int]


OFFICIAL = {
    "CIFAR-100": Official("cifar", "aquarium_fish", 100, 32, {"train": 50_000, "test": 10_000}),
    "ImageNet": Official("", "n01440764", 1000, 224, {"train": 1_281_167, "test": 50_000}),
    # letKD's split: half of the validation images of each class choose the epoch, the other half are tested on.
    "Tiny-ImageNet": Official("tiny_imagenet", "n01443537", 200, 64, {"train": 100_000, "test": 5_000}),
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
        teacher: top-1 of our teacher.
    """

    row: Published
    tables: tuple[str, ...]
    name: str
    last: Estimate
    best: Estimate
    epochs: int
    teacher: float

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
        comparable = self.row.metric == "top1" and self.row.run not in (ALONE, TEACHER)
        if comparable and expected is not None and abs(self.teacher - expected) > NEAR:
            remarks.append(f"our teacher has {self.teacher:.2f}, theirs {expected:.2f}")
        return [*remarks, *filter(None, (self.row.unsure, self.row.note))]


def beside(pair: Pair) -> list[Beside]:
    """Return the published numbers of a pair's teacher, student alone and runs, in the order of its runs."""
    meta = pair.dataset.prepared.meta
    dataset = official(meta)
    if dataset is None or unlike(meta, dataset):
        return []

    rows = _rows_of(pair, dataset)
    trained = {TEACHER: (TEACHER, (pair.teacher.trained,))} | {
        run.name: (run.key, run.students) for run in pair.runs
    }
    listed = (_of(rows, name, key, students, pair) for name, (key, students) in trained.items())
    return list(chain.from_iterable(listed))


def preferred(run: Run, listed: list[Beside]) -> Beside | None:
    """Return the published top-1 that stands for a run where there is room for one: the first, sure ones before."""
    names = (run.name, run.key, "top1")
    numbers = [
        compared for compared in listed if (compared.name, compared.row.run, compared.row.metric) == names
    ]
    return min(numbers, key=lambda compared: bool(compared.row.unsure), default=None)


def uncompared(pair: Pair) -> str:
    """Return why published numbers of a pair's networks are not compared; empty where they are, or there are none."""
    meta = pair.dataset.prepared.meta
    dataset = official(meta)
    if dataset is None or not (difference := unlike(meta, dataset)) or not _rows_of(pair, dataset):
        return ""
    return f"{pair.dataset.name} is {dataset} with {difference}, so published numbers of this pair are not compared."


def official(meta: Meta) -> str | None:
    """Return the name of the official data set that prepared data are of, whole or in part."""
    for name, known in OFFICIAL.items():
        named = any(label.replace(" ", "_").startswith(known.example) for label in meta.classes)
        if len(meta.classes) == known.classes and (meta.source == known.source or named):
            return name
    return None


def unlike(meta: Meta, dataset: str) -> str:
    """Return in which way prepared data are not the whole official set; empty where they are."""
    known = OFFICIAL[dataset]
    if meta.size != known.size:
        size = meta.size if isinstance(meta.size, int) else shown(meta.size)
        return f"images of {size} pixels in the place of {known.size}"
    for split, expected in known.samples.items():
        if meta.samples.get(split) != expected:
            return f"{meta.samples.get(split, 0):,} {split} images in the place of {expected:,}"
    return ""


def _rows_of(pair: Pair, dataset: str) -> list[Published]:
    networks = (pair.teacher.trained.metrics["network"], pair.alone.shared("network"))
    return [row for row in published() if row.dataset == dataset and (row.teacher, row.student) == networks]


def _of(
    rows: list[Published], name: str, key: str, students: tuple[Trained, ...], pair: Pair
) -> Iterator[Beside]:
    """Give what is published of a run; a number that several tables of a source print is one."""
    tables: dict[tuple[str, str, float, str], list[Published]] = {}
    for row in rows:
        if row.run == key:
            tables.setdefault((row.source, row.metric, row.value, row.rule), []).append(row)

    for (_, metric, _, _), same in tables.items():
        last, best = (
            estimate([float(student.metrics[prefix + metric]) for student in students])
            for prefix in ("", "best_")
        )
        printed = tuple(dict.fromkeys(row.table for row in same if row.table))
        epochs, teacher = students[0].metrics["epochs"], pair.teacher.trained.metrics["top1"]
        yield Beside(same[0], printed, name, last, best, epochs, teacher)
