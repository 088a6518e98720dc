"""The histories of trainings, finished or under way, as their folders hold them.

Nothing of a training knows of this: a finished one has its history.csv, and one that runs has its history in the
checkpoint that it writes every ten seconds. Only what is read for the report is compared with its hashes.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pipeline.artifacts import publish
from pipeline.artifacts.hashing import content_hash
from pipeline.errors import MissingArtifactError

KINDS = ("teachers", "pretrained", "copies", "students")  # folders of `artifacts`
SUMMARY, CHECKPOINT = "training.json", "checkpoint.safetensors"
Row = dict[str, float]


@dataclass(frozen=True)
class History:
    """What a training has come to.

    Attributes:
        name: of the training: its folder below `artifacts`.
        rows: the numbers of each epoch, by column; "epoch" counts from 1 over all phases.
        finished: it has ended.
        settings: what it was trained with, from its inputs.json; empty where it has none.
    """

    name: str
    rows: tuple[Row, ...]
    finished: bool
    settings: dict[str, Any]

    @property
    def digest(self) -> str:
        """A hash of name, settings and rows."""
        return content_hash([self.name, self.settings, self.rows])

    def series(self) -> dict[str, list[tuple[int, float]]]:
        """Return (epoch, value) pairs by column; phases differ in their columns, so series differ in length."""
        series: dict[str, list[tuple[int, float]]] = {}
        for row in self.rows:
            for column, value in row.items():
                if column != "epoch":
                    series.setdefault(column, []).append((int(row["epoch"]), value))
        return series


def histories(artifacts: Path, patterns: Sequence[str] = ()) -> list[History]:
    """Return the histories of all trainings that have ended an epoch, by name.

    Args:
        artifacts: folder of all artifacts.
        patterns: of names, for instance "students/*/kd/*"; with none, all trainings.

    Raises:
        MissingArtifactError: there is no folder of artifacts.
    """
    if not artifacts.is_dir():
        raise MissingArtifactError(f"{artifacts} does not exist. Make it with: dvc repro")

    found = {}
    for folder, name in sorted(_folders(artifacts)):
        if patterns and not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        with suppress(OSError, ValueError, KeyError):  # it is being written, moved or removed: next time
            history = _read(folder, name)
            # Of a whole one and what a stopped run has left beside it, the whole one.
            if history.rows and (history.finished or name not in found):
                found[name] = history
    return [found[name] for name in sorted(found)]


def _folders(artifacts: Path) -> Iterator[tuple[Path, str]]:
    """Give the folders that hold a training or a part of one, and its name."""
    for kind in KINDS:
        for root, folders, files in os.walk(artifacts / kind):
            if SUMMARY in files or CHECKPOINT in files:
                folder = Path(root)
                plain = folder.with_name(_published(folder.name)).relative_to(artifacts)
                yield folder, plain.as_posix()
                folders.clear()  # weights, and the store of a copy


def _published(name: str) -> str:
    """Return the name of the output that a scratch folder is built for; another name is returned as it is."""
    before, after = publish.scratch(Path("*")).name.split("*")
    scratch = name.startswith(before) and name.endswith(after)
    return name.removeprefix(before).removesuffix(after) if scratch else name


def _read(folder: Path, name: str) -> History:
    finished = (folder / SUMMARY).exists()
    rows = _of_csv(folder / "history.csv") if finished else _of_checkpoint(folder / CHECKPOINT)
    inputs = folder / "inputs.json"
    settings = json.loads(inputs.read_text(encoding="utf-8")) if inputs.exists() else {}
    return History(name, tuple(_numbers(row) for row in rows), finished, settings)


def _of_csv(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a history; a training without an epoch has none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _of_checkpoint(path: Path) -> list[dict[str, Any]]:
    """Return the rows in a checkpoint, without a look at its tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path} is damaged")
        header = json.loads(file.read(length))
    rows: list[dict[str, Any]] = json.loads(header["__metadata__"]["state"])["history"]
    return rows


def _numbers(row: dict[str, Any]) -> Row:
    """Return the cells of a row that are numbers: a phase has a name, and no value of another phase's terms."""
    return {key: float(value) for key, value in row.items() if key != "phase" and value not in ("", None)}
