"""An export: a student in its formats, each with its preprocessing, and what the gate has found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.artifacts import publish
from pipeline.artifacts.hashing import file_hash
from pipeline.errors import ParamsError
from pipeline.export import formats, gate
from pipeline.export.preprocessing import FILE
from pipeline.export.student import Student
from pipeline.params.exports import ExportParams

RECORD = "export.json"


def write(student: Student, settings: ExportParams, folder: Path) -> dict[str, Any]:
    """Write an export into a folder, and return what `export.json` holds.

    Args:
        student: the student.
        settings: how it is exported.
        folder: an empty one, which is not published before this has returned.

    Raises:
        ParamsError: the network does things that a format cannot hold.
        GateError: a file is not the student.
    """
    paths = formats.write(student, settings.formats, settings.calibration, folder)
    numbers = gate.measure(student, paths, settings)

    for kind, path in paths.items():
        # The hash says which file has passed the gate.
        of_model = {"format": kind, "model": path.name, "hash": file_hash(path)}
        preprocessing = student.preprocessing.model_copy(update=of_model)
        publish.write_json(path.parent / FILE, preprocessing.model_dump(mode="json"))

    record = {
        "student": student.title,
        "weights": student.weights,
        "weights_hash": student.trained.weights[student.weights],
        "inputs_hash": student.trained.inputs,
        "network": student.architecture,
        "data": student.prepared.meta.fingerprint,
        "samples": student.prepared.meta.samples["test"],
        "threads": 1,
        "settings": settings.model_dump(mode="json"),
        "gate": numbers,
    }
    publish.write_json(folder / RECORD, record)
    return record


def require_replaceable(out: Path) -> None:
    """Refuse to replace a folder that is no export.

    Raises:
        ParamsError: it is something else, and not empty.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file()):
        raise ParamsError(f"{out} is there, and is no export. Give another folder as --out.")


def described(record: dict[str, Any]) -> list[str]:
    """Return the gate's numbers in words, a line for each of what it has run."""
    lines = []
    for kind, found in record["gate"].items():
        line = f"{kind}: {found['bytes'] / 1024:,.0f} KiB, {found['latency_ms']:.3f} ms, top-1 {found['top1']:.2f} %"
        if kind != gate.STUDENT:
            low, high = found["top1_interval"]
            line += f", change {found['top1_change']:+.2f} ({low:+.2f} to {high:+.2f}), "
            line += (
                f"agreement {found['agreement']:.2f} %, largest difference {found['largest_difference']:.2g}"
            )
        lines.append(line)
    return lines
