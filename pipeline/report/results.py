"""What a report is about: data sets, teachers, pairs, runs and seeds, as plain values in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import plugin
from pipeline.data.prepared import Prepared
from pipeline.params.views import ViewParams
from pipeline.report.detectors import Detection
from pipeline.report.provenance import Provenance
from pipeline.report.trainings import History, InSeeds, Matched, Network, OfRuns, Settings

PLACES = ("nearest_sample", "nearest_row", "nearest_column")  # arrays of a table's exemplars
PICTURED = ("pictured", "pictured_subclass")  # samples, and the sub-class of each pixel of their maps

# What every trained network is measured by.
ACCURACIES = ("top1", "top5", "best_top1", "best_epoch")
COSTS = ("params", "macs", "latency_ms", "train_seconds", "images_per_second", "peak_bytes")

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Trained(Network):
    """A trained network.

    Attributes:
        seed: the seed of its training.
        metrics: numbers by name, as `pipeline.evaluation.evaluate` makes them.
        prediction: predicted classes of the test split by the last weights, int32 (N,).
        history: values by epoch.
        correlation: correlation of the logits of every two classes over the test split, float32 (K, K).
        pooled: what the classifier reads of some test samples, float32 (n, D).
        pooled_index: these samples, int64 (n,).
        device: the kind of device it was trained on.
        weights: hash of each file of its weights, by name.
    """

    seed: int
    metrics: Metrics
    prediction: NDArray[np.int32]
    history: History
    correlation: NDArray[np.float32]
    pooled: NDArray[np.float32]
    pooled_index: NDArray[np.int64]
    device: str
    weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run(InSeeds[Trained]):
    """A run of a pair, in all seeds.

    Attributes:
        name: key of `runs`, or `ALONE`.
        composition: methods, transform and schedule, in words.
        students: one a seed, in the order of `seeds`; without those that are missing.
        settings: how they are trained.
        planned: number of seeds that params.yaml has.
        key: what it consists of, as published numbers are found by (`pipeline.report.key`); `ALONE` of the student
            alone.
    """

    name: str
    composition: str
    students: tuple[Trained, ...]
    settings: Settings
    planned: int
    key: str

    MEASURES = ("top1", "top5")


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        name: key of `datasets`.
        prepared: its prepared data, opened.
        views: the augmented views that training may show.
    """

    name: str
    prepared: Prepared
    views: ViewParams

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.prepared.meta.classes

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels of the test split (N,)."""
        return self.prepared.split("test").labels

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Hash of each split, by its name."""
        return self.prepared.meta.fingerprint

    @property
    def chooser(self) -> str:
        """The split on which the best epoch was chosen."""
        return "holdout" if "holdout" in self.prepared.meta.samples else "test"


@dataclass(frozen=True)
class Field:
    """What the places of a map see of the image.

    Attributes:
        rows: first and last row of pixels for each row of the map, int64 (H, 2).
        columns: first and last column of pixels for each column of the map, int64 (W, 2).
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


@dataclass(frozen=True)
class Teacher:
    """A teacher and what its caches hold.

    Attributes:
        name: key of `teachers`.
        dataset: the data set it was trained on.
        trained: the network.
        store: the store's content as `check_features` describes it: `bytes`, `files`, `features`.
        check: its comparison to the live teacher: `precision`, `largest_error`, `largest_share`, `error` by array.
    """

    name: str
    dataset: Dataset
    trained: Trained
    store: dict[str, Any]
    check: dict[str, Any]

    def field(self, feature: str) -> Field:
        """Return the receptive field of a stored map."""
        spans = self.store["features"][feature]["field"]
        return Field(np.array(spans["rows"], np.int64), np.array(spans["columns"], np.int64))


@dataclass(frozen=True)
class Pair(OfRuns[Run]):
    """A teacher and a student.

    Attributes:
        name: key of `pairs`.
        teacher: the teacher.
        student: key of `students`.
        runs: the student alone first, then the runs in the order of params.yaml.
        matchings: the matchings of their channels.
    """

    name: str
    teacher: Teacher
    student: str
    runs: tuple[Run, ...]
    matchings: tuple[Matched, ...] = ()

    @property
    def dataset(self) -> Dataset:
        """The data set of both."""
        return self.teacher.dataset

    @property
    def compared(self) -> list[Run]:
        """The runs of which there is room for one picture each: alone, baseline and the best, where they differ."""
        runs = {run.name: run for run in (self.alone, self.baseline, self.best) if run is not None}
        return list(runs.values())


@dataclass(frozen=True)
class Table:
    """A fitted table.

    Attributes:
        name: key of `tables`.
        teacher: the teacher whose outputs it was fitted to.
        plugin: the file of `pipeline/tables/fits` that made it.
        feature: the feature that it was fitted to.
        quality: numbers by name.
        arrays: arrays by name.
    """

    name: str
    teacher: Teacher
    plugin: str
    feature: str
    quality: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    def has(self, *names: str) -> bool:
        """Return whether it holds all of these arrays."""
        return all(name in self.arrays for name in names)

    @property
    def title(self) -> str:
        """Teacher and table: every teacher may have one by the same recipe."""
        return f"{self.teacher.name}/{self.name}"

    @property
    def unit(self) -> str:
        """What one of the groups is called, into which it parts the pixels."""
        return plugin.load("tables", self.plugin).UNIT or "cluster"

    @property
    def units(self) -> str:
        """The plural of its unit."""
        return self.unit + ("es" if self.unit.endswith("s") else "s")


@dataclass(frozen=True)
class Code:
    """Codes of a teacher's views, made with a fitted table.

    Attributes:
        teacher: key of `teachers`.
        name: the code's full name: "stage2:nearest@words".
        slots: augmented views of each sample.
        lost: mean KL(code || p_T) of the plain training pixels, in nats.
    """

    teacher: str
    name: str
    slots: int
    lost: float


@dataclass(frozen=True)
class Assistant:
    """A copy or an assistant of a teacher.

    Attributes:
        name: key of `copies` or `assistants`.
        teacher: key of `teachers`.
        network: its network.
        learned_from: "teacher", and assistants.
        epochs: of its training.
        top1: of the last of them, on the split that epochs are chosen on, in percent; None where no epoch ran.
    """

    name: str
    teacher: str
    network: str
    learned_from: tuple[str, ...]
    epochs: int
    top1: float | None


@dataclass(frozen=True)
class Missing:
    """What a report leaves out.

    Attributes:
        what: it, in words.
        stage: DVC's name of the last stage that makes it.
        reason: why it is left out.
    """

    what: str
    stage: str
    reason: str

    @property
    def command(self) -> str:
        """The command that makes it."""
        return f"dvc repro {self.stage}"


@dataclass(frozen=True)
class Results:
    """All that is reported.

    Attributes:
        seeds: the students' seeds.
        datasets: data sets by name.
        teachers: teachers by name.
        pairs: pairs in the order of params.yaml.
        tables: fitted tables, teacher by teacher.
        codes: codes, teacher by teacher.
        taught: assistants and copies, teacher by teacher.
        provenance: where the report comes from.
        missing: what params.yaml lists and is left out, because it is not there or is of something else.
        detection: all of data sets with boxes.
    """

    seeds: tuple[int, ...]
    datasets: dict[str, Dataset]
    teachers: dict[str, Teacher]
    pairs: tuple[Pair, ...]
    tables: tuple[Table, ...]
    codes: tuple[Code, ...]
    provenance: Provenance
    taught: tuple[Assistant, ...] = ()
    missing: tuple[Missing, ...] = ()
    detection: Detection = field(default_factory=Detection)
