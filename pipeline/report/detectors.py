"""What a report has of data sets with boxes: detectors, pairs and runs, as plain values in memory.

Average precisions are never mixed with top-1: they have their own section, files and part of `summary.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.detection.layout import Meta
from pipeline.detection.stored import StoredSplit
from pipeline.params.detection import BoxViews
from pipeline.report.trainings import History, InSeeds, Matched, Network, OfRuns, Settings

# Of the last weights, in percent; a size that no object of the test split has is in no metrics.
MEASURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
BEST = "best_AP"  # of the epoch that was chosen on the test split
COSTS = ("best_epoch", "epochs", "params", "train_seconds", "images_per_second", "peak_bytes")
CURVES = ("AP", "AP50")  # of which precision is drawn by recall


@dataclass(frozen=True)
class BoxData:
    """A data set with boxes.

    Attributes:
        name: key of `datasets`.
        meta: what its `meta.json` holds.
        test: the test split.
        views: the augmented views that training may show.
    """

    name: str
    meta: Meta
    test: StoredSplit
    views: BoxViews

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Hash of each split, by its name."""
        return self.meta.fingerprint


@dataclass(frozen=True)
class Found:
    """The boxes that a detector found; those of image i are rows `offsets[i]` to `offsets[i + 1]`.

    Attributes:
        boxes: float32 (M, 4): left, top, right and bottom edge, in pixels of the image.
        scores: float32 (M,), 0 to 1.
        labels: int64 (M,).
        offsets: int64 (N + 1,).
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Detector(Network):
    """A trained detector.

    Attributes:
        seed: of its training.
        metrics: numbers by name, as `pipeline.evaluation.detectors` makes them.
        found: what its last weights find in the test images.
        recalls: where `curves` are sampled, (101,), 0 to 1.
        curves: precision at each recall, (101,), 0 to 1, by `CURVES`.
        history: values by epoch; most epochs of a long training are not evaluated, and lack average precisions.
        device: the kind of device it was trained on.
        weights: hash of each file of its weights, by name.
    """

    seed: int
    metrics: Mapping[str, Any]
    found: Found
    recalls: NDArray[np.float64]
    curves: Mapping[str, NDArray[np.float64]]
    history: History
    device: str
    weights: Mapping[str, str]

    @property
    def measures(self) -> list[str]:
        """The average precisions that it has, in order."""
        return [name for name in MEASURES if name in self.metrics]


@dataclass(frozen=True)
class BoxRun(InSeeds[Detector]):
    """A run of a pair of detectors, in all seeds.

    Attributes:
        name: key of `runs`, or `ALONE`.
        key: what it consists of, by which a published number finds it; see `pipeline/report/key.py`.
        composition: methods and transform, in words.
        students: one a seed, in the order of `seeds`; without those that are missing.
        settings: how they are trained.
        planned: number of seeds that params.yaml has.
    """

    name: str
    key: str
    composition: str
    students: tuple[Detector, ...]
    settings: Settings
    planned: int

    MEASURES = MEASURES


@dataclass(frozen=True)
class Finder:
    """A teacher that finds boxes.

    Attributes:
        name: key of `teachers`.
        dataset: the data set it was trained on.
        trained: the detector.
        built: how it is built.
    """

    name: str
    dataset: BoxData
    trained: Detector
    built: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BoxPair(OfRuns[BoxRun]):
    """A teacher and a student that find boxes.

    Attributes:
        name: key of `pairs`.
        teacher: the teacher.
        student: key of `students`.
        runs: the student alone first, then the runs in the order of params.yaml.
        matchings: the matchings of their channels.
        built: how the student is built.
    """

    name: str
    teacher: Finder
    student: str
    runs: tuple[BoxRun, ...]
    matchings: tuple[Matched, ...] = ()
    built: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dataset(self) -> BoxData:
        """The data that both were trained on."""
        return self.teacher.dataset

    @property
    def measures(self) -> list[str]:
        """The average precisions that its networks have: one test split, so all have the same."""
        return self.teacher.trained.measures


@dataclass(frozen=True)
class Detection:
    """All that is reported of data sets with boxes.

    Attributes:
        datasets: data sets by name.
        teachers: teachers by name.
        pairs: pairs in the order of params.yaml.
    """

    datasets: Mapping[str, BoxData] = field(default_factory=dict)
    teachers: Mapping[str, Finder] = field(default_factory=dict)
    pairs: tuple[BoxPair, ...] = ()

    @property
    def detectors(self) -> dict[str, Detector]:
        """Every detector once, by its folder: a student alone is shared by the pairs that have it."""
        found = {f"teachers/{name}": teacher.trained for name, teacher in self.teachers.items()}
        for pair in self.pairs:
            for run in pair.runs:
                owner = (
                    f"pretrained/{pair.student}" if run is pair.alone else f"students/{pair.name}/{run.name}"
                )
                found |= {f"{owner}/{student.seed}": student for student in run.students}
        return found
