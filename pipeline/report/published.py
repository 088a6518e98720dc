"""Published numbers, to stand beside measured ones: the rows of `published.csv`.

The table holds every accuracy and average precision that the papers' tables print for a network, in the names of this
project: data set, teacher, student, and by `pipeline.report.key` what a run consists of. Its columns:

    source, table            where the number was read; letKD's tables S1 to S6 are those of its supplement
    dataset, teacher, student
    method, run              the label as published, and the key; empty where no run of this project has it
    metric, value, std       in percent, and points over the trials
    teacher_value, student_value    teacher and student alone in the same table
    epochs                   of the student's training; of KCD, iterations times batch over the number of images
    rule                     the epoch whose weights are reported: last, best (on the test split), or unknown
    unsure, note             what was inferred, and what a reader should know
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any, Literal

Rule = Literal["last", "best", "unknown"]
NUMBERS = ("value", "std", "teacher_value", "student_value", "epochs")


@dataclass(frozen=True)
class Published:
    """A published number.

    Attributes:
        source: where it was read.
        table: which of its tables; empty where it has none.
        dataset: the name that its source gives to the data, for instance "CIFAR-100".
        teacher: the teacher's network; of an average precision both are detectors.
        student: the student's network.
        method: the label as published.
        run: what a run consists of, as `pipeline.report.key` writes it; "student" and "teacher" are networks trained
            alone, empty is what no run of this project is.
        metric: "top1", "top5" or "AP", which is of boxes.
        value: the number.
        std: its standard deviation over trials, or None.
        teacher_value: the teacher's in the same table, or None.
        student_value: the student's that was trained alone, or None.
        epochs: of the student's training, or None.
        rule: which epoch is reported.
        unsure: what was inferred; empty where nothing was.
        note: what a reader should know; may be empty.
    """

    source: str
    table: str
    dataset: str
    teacher: str
    student: str
    method: str
    run: str
    metric: str
    value: float
    std: float | None
    teacher_value: float | None
    student_value: float | None
    epochs: float | None
    rule: Rule
    unsure: str
    note: str


@cache
def published() -> tuple[Published, ...]:
    """Return all published numbers, in the table's order."""
    # As a package's resource: it is found in an installed wheel too.
    text = (resources.files("pipeline.report") / "published.csv").read_text("utf-8")
    return tuple(_rows(text))


def _rows(text: str) -> Iterator[Published]:
    for row in csv.DictReader(text.splitlines()):
        names = [field.name for field in fields(Published)]
        values: dict[str, Any] = {name: row[name] for name in names}
        values |= {name: float(row[name]) if row[name] else None for name in NUMBERS}
        yield Published(**values)
