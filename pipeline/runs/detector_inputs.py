"""From blocks and artifacts to the jsons of inputs of students that are detectors.

The stages student_inputs and inputs run it by its name (`pipeline/params/tasks.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.artifacts.publish import read_json
from pipeline.detection.inputs import DetectorInputs
from pipeline.detection.prepared import Prepared
from pipeline.detection.spec import DetectorStudentBlock
from pipeline.params.base import load


def student_inputs(block: Path, data: Path, code: Path) -> dict[str, Any]:
    """Return the inputs of a student alone, as json holds them.

    Args:
        block: the student's json.
        data: folder of the prepared data.
        code: folder of the code's hashes.
    """
    inputs = resolve_student(load(DetectorStudentBlock, block), data, code)
    return inputs.model_dump(mode="json")


def resolve_student(block: DetectorStudentBlock, data: Path, code: Path) -> DetectorInputs:
    """Resolve a student that is trained alone."""
    meta = Prepared.open(data).meta
    return DetectorInputs(
        student=block.student,
        dataset=block.dataset,
        network=block.spec(meta),
        recipe=block.recipe,
        data=str(data),
        fingerprint=meta.fingerprint,
        # No stage of classifiers may depend on what evaluates detectors, so what is evaluated names it.
        code=_code(code, ["detection/pretrain_student", "detection/evaluate"]),
    )


def _code(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the hashes that `stages.code` wrote under some names, merged."""
    hashes: dict[str, str] = {}
    for name in names:
        hashes |= read_json(folder / f"{name}.json", "dvc repro params")
    return hashes
