"""From blocks and artifacts to the jsons of inputs of students that are detectors.

The stages student_inputs and inputs run it by its name (`pipeline/params/tasks.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import advice
from pipeline.artifacts.hashing import file_hash
from pipeline.artifacts.publish import read_json
from pipeline.detection.blocks import DetectorPairBlock
from pipeline.detection.inputs import DetectorInputs, DetectorRunInputs
from pipeline.detection.prepared import Prepared
from pipeline.detection.spec import DetectorStudentBlock
from pipeline.errors import StaleArtifactError
from pipeline.matching.matching import Matching
from pipeline.params.base import load
from pipeline.params.names import OWN


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
        first_weights=block.weights,
        recipe=block.recipe,
        data=str(data),
        fingerprint=meta.fingerprint,
        # No stage of classifiers may depend on what evaluates detectors, so what is evaluated names it.
        code=_code(code, ["detection/pretrain_student", "detection/evaluate"]),
    )


def run_inputs(block: Path, places: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return the inputs of every seed of every run of a pair, as json holds them, by "run/seed".

    Args:
        block: the pair's json.
        places: folders of the "data", the teacher's "weights", the pair's "matchings" and the "code"'s hashes.

    Raises:
        MissingArtifactError: something that is read has not been made.
        StaleArtifactError: a matching was made from another teacher, student or other data.
    """
    pair = load(DetectorPairBlock, block)
    student = resolve_student(pair.student, places["data"], places["code"])
    return {
        f"{run}/{seed}": _run(pair, run, seed, student, places).model_dump(mode="json")
        for run in pair.runs
        for seed in pair.seeds
    }


def _run(
    pair: DetectorPairBlock, run: str, seed: int, student: DetectorInputs, places: Mapping[str, Path]
) -> DetectorRunInputs:
    settings, weights = pair.runs[run], places["weights"]
    code = _code(places["code"], ["detection/distill", "detection/compare", *settings.plugins])
    return DetectorRunInputs(
        **student.model_dump(exclude={"code", "recipe", "network", "first_weights"}),
        network=student.network,
        first_weights=student.first_weights,
        recipe=settings.recipe,
        code=student.code | code,
        pair=pair.pair,
        run=run,
        seed=seed,
        teacher=pair.teacher,
        methods=settings.methods,
        transform=settings.transform,
        features=settings.features,
        weights_folder=str(weights),
        weights=file_hash(weights / "last.safetensors"),
        matchings={
            wanted.key: _matching(pair, wanted.matching, seed, student, places)
            for wanted in settings.matchings
        },
    )


def _matching(
    pair: DetectorPairBlock, name: str, seed: int, student: DetectorInputs, places: Mapping[str, Path]
) -> tuple[str, str]:
    """Return path and hash of a matching, checked to be of these networks and data."""
    path, stage = places["matchings"] / OWN / name / f"{seed}.npz", f"match_channels@{pair.pair}"
    origin = Matching.load(path, f"dvc repro {stage}").origin
    expected = {
        "student": student.student,
        "seed": seed,
        "teacher": pair.teacher,
        "data": student.fingerprint["train"],
        "teacher_weights": file_hash(places["weights"] / f"{origin.recipe.teacher_checkpoint}.safetensors"),
    }
    for field, value in expected.items():
        if getattr(origin, field) != value:
            raise StaleArtifactError(
                f"{path} was made with other {field}: found {getattr(origin, field)}, expected {value}. "
                f"{advice.again(f'dvc repro {stage}')}"
            )
    return str(path), file_hash(path)


def _code(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the hashes that `stages.code` wrote under some names, merged."""
    hashes: dict[str, str] = {}
    for name in names:
        hashes |= read_json(folder / f"{name}.json", "dvc repro params")
    return hashes
