"""The gate of an export: whether what was written does on the whole test split what the student does.

A file that can be opened may still compute something else: a constant that was traced, an operation whose rounding
differs, ranges that were measured on too few images. So every file is opened again, as a user would open it, and run
beside the student.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import progress
from pipeline.benchmark.timing import Run, interleaved, timed
from pipeline.compute.machine import Machine
from pipeline.data.normalize import Normalize
from pipeline.errors import StillhouseError
from pipeline.evaluation.forward import PlainSplit
from pipeline.export import models
from pipeline.export.student import Student
from pipeline.params.exports import ExportParams
from pipeline.report.statistics import gain

STUDENT = "student"  # beside the formats
ROUNDS = 15
PASSES = 10  # of one image, in a round
Scores = NDArray[np.float32]  # logits (N, K)


class GateError(StillhouseError, ArithmeticError):
    """What was exported is not the student."""


@dataclass(frozen=True)
class Comparison:
    """An exported file beside its student, on the test split.

    Attributes:
        largest_difference: of a logit.
        share_of_largest: the same, as a share of the student's largest logit.
        agreement: share of the images that are put into the same class, in percent.
        top1: accuracy, in percent.
        top1_change: from the student's, in percentage points.
        top1_interval: the 95 % interval of the change over the test images, paired image by image.
    """

    largest_difference: float
    share_of_largest: float
    agreement: float
    top1: float
    top1_change: float
    top1_interval: tuple[float, float]


def measure(student: Student, paths: Mapping[str, Path], settings: ExportParams) -> dict[str, Any]:
    """Run every file beside the student, and return the numbers by format.

    Args:
        student: the student.
        paths: the files, by format.
        settings: what they may differ by.

    Raises:
        GateError: one differs by more.
    """
    opened = {kind: models.opened(path) for kind, path in paths.items()}
    runs = {STUDENT: models.of_network(student.network), **opened}
    scores, labels = _scores(student, runs)
    numbers: dict[str, Any] = {
        STUDENT: {"top1": _top1(scores[STUDENT], labels), "bytes": _student_bytes(student)}
    }
    for kind, path in paths.items():
        found = compare(scores[STUDENT], scores[kind], labels)
        check(kind, found, settings, f"{student.folder} as {kind}")
        numbers[kind] = vars(found) | {"bytes": path.stat().st_size}

    for kind, milliseconds in latencies(student, runs).items():
        numbers[kind]["latency_ms"] = milliseconds
    return numbers


def compare(student: Scores, exported: Scores, labels: NDArray[np.int64]) -> Comparison:
    """Compare logits (N, K) of the same images.

    Args:
        student: of the student.
        exported: of what was exported.
        labels: (N,).
    """
    difference = float(np.abs(student - exported).max())
    own, other = student.argmax(axis=1), exported.argmax(axis=1)
    right, right_too = ((100.0 * (x == labels)).tolist() for x in (own, other))
    change = gain(right_too, right)
    half = change.half or 0.0
    return Comparison(
        largest_difference=difference,
        share_of_largest=difference / max(float(np.abs(student).max()), 1e-12),
        agreement=100 * float((own == other).mean()),
        top1=float(np.mean(right_too)),
        top1_change=change.mean,
        top1_interval=(change.mean - half, change.mean + half),
    )


def check(kind: str, found: Comparison, settings: ExportParams, what: str) -> None:
    """Refuse what differs from the student by more than the settings allow.

    Args:
        kind: the format.
        found: what was found.
        settings: what may be.
        what: it is, for the error.

    Raises:
        GateError: it differs by more, or is not finite.
    """
    low, high = found.top1_interval
    if not np.isfinite(found.largest_difference):
        raise GateError(
            f"{what} gives logits that are not finite, expected the student's. Nothing was written."
        )
    if kind == "int8":
        if -found.top1_change > settings.accuracy_loss:
            raise GateError(
                f"{what} changes top-1 by {found.top1_change:.2f} points ({low:.2f} to {high:.2f} at 95 %), expected a "
                f"loss of {settings.accuracy_loss:g} at most. Raise calibration or accuracy_loss, or leave int8 out of "
                "formats. Nothing was written."
            )
        return
    if found.share_of_largest > settings.tolerance or found.agreement < settings.agreement:
        raise GateError(
            f"{what} differs from the student: its logits by {found.largest_difference:.3g} "
            f"({found.share_of_largest:.3g} of the largest one, expected {settings.tolerance:g} at most), and "
            f"{found.agreement:.2f} % of its classes agree, expected {settings.agreement:g} % at least. Raise "
            "tolerance or lower agreement, or leave it out of formats. Nothing was written."
        )


def latencies(student: Student, runs: Mapping[str, models.Model]) -> dict[str, float]:
    """Return the median time of one image at inference, in milliseconds, by run; all take turns, each on one thread."""
    image = np.zeros((1, *student.preprocessing.shape), np.float32)

    def turn(run: models.Model) -> Run:
        return timed(lambda: [run(image) for _ in range(PASSES)], PASSES)

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the sessions of onnxruntime have
    try:
        turns = {name: turn(run) for name, run in runs.items()}
        rates = interleaved("latency", turns, ROUNDS)
    finally:
        torch.set_num_threads(before)
    return {name: 1000 / rates.median(name) for name in runs}


def _scores(
    student: Student, runs: Mapping[str, models.Model]
) -> tuple[dict[str, Scores], NDArray[np.int64]]:
    """Return the logits of the test split by run, and its labels."""
    meta, cpu = student.prepared.meta, torch.device("cpu")
    split = PlainSplit.of(student.prepared, "test", Normalize(meta.mean, meta.std, cpu), Machine(cpu))
    parts: dict[str, list[Scores]] = {name: [] for name in runs}
    with progress.bar(f"gate {student.folder}", len(split.labels)) as advance:
        for batch in split.batches():
            for name, run in runs.items():
                parts[name].append(run(batch.numpy()))
            advance(len(batch))
    return {name: np.concatenate(rows) for name, rows in parts.items()}, split.labels.numpy()


def _top1(scores: Scores, labels: NDArray[np.int64]) -> float:
    return 100 * float((scores.argmax(axis=1) == labels).mean())


def _student_bytes(student: Student) -> int:
    return (student.folder / "weights" / f"{student.weights}.safetensors").stat().st_size
