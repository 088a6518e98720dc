"""What the project's students are trained from now: the jsons that `inputs` and `student_inputs` have resolved.

A stage that failed leaves the json of an earlier time. So each is compared with params.yaml, the data, and the hashes
of the teacher, tables and matchings that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import advice
from pipeline.artifacts.hashing import file_hash
from pipeline.errors import MissingArtifactError, StaleArtifactError
from pipeline.networks.spec import NetworkSpec
from pipeline.params.names import OWN
from pipeline.params.pairs import PairBlock, RunBlock
from pipeline.params.students import StudentBlock
from pipeline.report.collect.ingredients import check_stored
from pipeline.report.collect.mapping import mapping
from pipeline.report.results import Dataset, Teacher


def alone_inputs(artifacts: Path, student: StudentBlock, dataset: Dataset, seed: int) -> dict[str, Any]:
    """Return what a student alone is trained from.

    Raises:
        MissingArtifactError: it has not been resolved.
        StaleArtifactError: it was resolved with other settings or data.
    """
    path, stage = artifacts / "inputs" / "students" / f"{student.student}.json", student.stage
    expected = _of_student(student, dataset) | {"recipe": student.recipe.model_dump(mode="json")}
    return current(path, stage, expected) | {"seed": seed}


def run_inputs(artifacts: Path, block: PairBlock, run: str, teacher: Teacher, seed: int) -> dict[str, Any]:
    """Return what a student of a run is trained from.

    Raises:
        MissingArtifactError: it has not been resolved.
        StaleArtifactError: it was resolved with other settings, data, teacher, tables or matchings.
    """
    settings = block.runs[run].model_dump(mode="json")
    names = ("recipe", "methods", "transform", "schedule", "source", "slots", "features")
    expected = _of_student(block.student, teacher.dataset) | {name: settings[name] for name in names}
    expected["views"] = settings["views"] or expected["views"]
    expected |= {"pair": block.pair, "run": run, "seed": seed, "teacher": teacher.name}
    expected |= {"teacher_network": settings["network"], "teacher_weights": teacher.trained.weights["last"]}

    path = artifacts / "inputs" / "pairs" / block.pair / run / f"{seed}.json"
    content = current(path, block.stage, expected)
    check_stored(content, path, teacher, f"dvc repro {block.stage}")
    tables, matchings = _tables(artifacts, block, run), _matchings(artifacts, block, block.runs[run], seed)
    require_files(path, content.get("tables"), tables, block.stage)
    require_files(path, content.get("matchings"), matchings, block.stage)
    return content


def _of_student(student: StudentBlock, dataset: Dataset) -> dict[str, Any]:
    meta = dataset.prepared.meta
    # As `pipeline.runs.resolve` puts it together.
    network = NetworkSpec(
        family=student.family,
        network=student.network,
        source=student.source,
        weights=student.weights,
        **meta.kind,
    )
    return {
        "student": student.student,
        "dataset": student.dataset,
        "network": network.model_dump(mode="json"),
        "views": student.views.model_dump(mode="json"),
        "fingerprint": meta.fingerprint,
        "mean": list(meta.mean),
        "std": list(meta.std),
    }


def current(path: Path, stage: str, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Read a json of inputs, which must say what is expected now."""
    hint = f"dvc repro {stage}"
    content = mapping(path, hint, expected)
    for name, value in expected.items():
        if content[name] != value:
            raise StaleArtifactError(
                f"{path} was resolved with other {name} than the project has now. {advice.again(hint)}"
            )
    return content


def _tables(artifacts: Path, block: PairBlock, run: str) -> dict[str, Path]:
    return {name: artifacts / "tables" / block.teacher / f"{name}.npz" for name in block.runs[run].tables}


def _matchings(artifacts: Path, block: PairBlock, run: RunBlock, seed: int) -> dict[str, Path]:
    paths = {}
    for wanted in run.matchings:
        lent = wanted.teacher is not None
        folder = block.borrowed[f"{wanted.teacher}/{wanted.matching}"] if lent else OWN
        name = f"{seed if wanted.seed is None else wanted.seed}.npz"
        paths[wanted.key] = artifacts / "matchings" / block.pair / folder / wanted.matching / name
    return paths


def require_files(path: Path, named: Any, files: Mapping[str, Path], stage: str) -> None:
    """Refuse inputs that name another file of a table or matching than is there."""
    for key, file in files.items():
        if not file.exists():
            raise MissingArtifactError(f"{file} does not exist. Make it with: dvc repro {stage}")
        entry = named.get(key) if isinstance(named, dict) else None
        if not isinstance(entry, list) or entry[1:] != [file_hash(file)]:
            raise StaleArtifactError(
                f"{path} was resolved with another '{key}' than {file}. {advice.again(f'dvc repro {stage}')}"
            )
