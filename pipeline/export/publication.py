"""A folder in the conventions of the Hugging Face Hub: weights, configuration, card, and where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes

from pipeline.artifacts import publish, seal
from pipeline.artifacts.hashing import content_hash, file_hash
from pipeline.artifacts.publish import read_json
from pipeline.errors import DamagedArtifactError, ParamsError
from pipeline.export import timm_names
from pipeline.export.card import Facts, card
from pipeline.export.preprocessing import FILE
from pipeline.export.student import Student
from pipeline.networks.catalogue import IMPORTED
from pipeline.networks.trained import Trained
from pipeline.report.provenance import gather
from pipeline.runs.inputs import RunInputs
from pipeline.runs.teacher_record import TeacherRecord

WEIGHTS, CONFIG, README, PROVENANCE = "model.safetensors", "config.json", "README.md", "provenance.json"
# What a student was trained from, but for paths, which are of one machine.
_SETTINGS = ("methods", "transform", "schedule", "source", "slots", "features", "recipe", "views")


def metrics(artifacts: Path, run: str, seeds: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Return what was measured of a run's students, by seed.

    Raises:
        MissingArtifactError: one is not there, or was not evaluated.
        StaleArtifactError: the metrics are of another training.
        DamagedArtifactError: they are not what was written.
    """
    every = {}
    for seed in seeds:
        key, stage = f"students/{run}/{seed}", f"evaluate@{run}-{seed}"
        trained = Trained.of(artifacts / key, f"dvc repro distill@{run}-{seed}")
        path = artifacts / "metrics" / f"{key}.json"
        content = read_json(path, f"dvc repro {stage}")
        if not isinstance(content, dict):
            raise DamagedArtifactError(f"{path} holds no metrics. Delete it, then: dvc repro {stage}")
        predictions = artifacts / "predictions" / f"{key}.npz"
        every[seed] = seal.opened(path, content, trained.identity, stage, predictions)
    return every


def facts_of(
    student: Student, inputs: RunInputs, measured: Mapping[int, Mapping[str, Any]], teacher: TeacherRecord
) -> Facts:
    """Return what a student's card says; nothing of it is looked up in params.yaml, which may have changed.

    Args:
        student: the student.
        inputs: what it was trained from.
        measured: of every seed of its run; see `metrics`.
        teacher: what has taught it.

    Raises:
        MachineError: timm is not installed, and the teacher's name on the Hub is asked of it.
    """
    meta = student.prepared.meta
    return Facts(
        run=f"{inputs.pair}/{inputs.run}",
        seed=inputs.seed,
        weights=student.weights,
        network=student.spec.network,
        teacher=f"{inputs.teacher} ({timm_names.shown(teacher)})",
        methods=tuple(plug.name for plug in inputs.methods),
        dataset=inputs.dataset,
        chooser="holdout" if "holdout" in meta.samples else "test",
        samples=meta.samples["test"],
        metrics=measured,
        preprocessing=student.preprocessing,
        timm=timm_names.is_of_timm(student),
        base_model=timm_names.on_hub(teacher),
        licence=teacher.licence,
        code=student.spec.network if student.spec.family == IMPORTED else "",
    )


def require_empty(folder: Path) -> None:
    """Refuse to write into a folder that holds something.

    Raises:
        ParamsError: it does, or is no folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ParamsError(f"{folder} is not empty, expected a folder to make. Give another one as --out.")


def write(
    student: Student, inputs: RunInputs, facts: Facts, teacher: TeacherRecord, params: Path, folder: Path
) -> None:
    """Write the folder of a student.

    Args:
        student: the student.
        inputs: what it was trained from.
        facts: what its card says.
        teacher: what has taught it.
        params: folder of the blocks of params.yaml.
        folder: an empty one, which is not published before this has returned.
    """
    network = student.network
    state = timm_names.weights(student) if facts.timm else network.state_dict()
    # Copies, since safetensors refuses tensors that share memory.
    tensors = {name: x.detach().contiguous().clone() for name, x in state.items()}
    (folder / WEIGHTS).write_bytes(to_bytes(tensors, metadata={"format": "pt"}))

    if facts.timm:
        timm_names.write_config(student, folder / CONFIG)
    else:
        config = {
            "architecture": student.spec.network,
            "num_classes": student.spec.classes,
            "label_names": list(student.preprocessing.classes),
            "library_name": facts.library,
            "network": student.architecture,
        }
        publish.write_json(folder / CONFIG, config)

    of_model = {"format": facts.library, "model": WEIGHTS, "hash": file_hash(folder / WEIGHTS)}
    preprocessing = student.preprocessing.model_copy(update=of_model)
    publish.write_json(folder / FILE, preprocessing.model_dump(mode="json"))
    publish.write_json(folder / PROVENANCE, _provenance(student, inputs, facts, teacher, params))
    (folder / README).write_text(card(facts), encoding="utf-8")


def _provenance(
    student: Student, inputs: RunInputs, facts: Facts, teacher: TeacherRecord, params: Path
) -> dict[str, Any]:
    """Return the hashes of all that a student comes from."""
    now = gather(Path())
    content = inputs.model_dump(mode="json")
    return {
        "student": {
            "run": facts.run,
            "seed": facts.seed,
            "weights": student.weights,
            "file": student.trained.weights[student.weights],
            "inputs": student.trained.inputs,
            "network": student.architecture,
        },
        "teacher": {
            "name": inputs.teacher,
            "network": timm_names.shown(teacher),
            "file": inputs.teacher_weights,
            "licence": teacher.licence,
        },
        "licence": facts.licence,
        "store": {name: stored.digest for name, stored in inputs.stored.items()},
        "copies": {name: stored.digest for name, stored in inputs.copies.items()},
        "tables": {name: digest for name, (_, digest) in inputs.tables.items()},
        "matchings": {name: digest for name, (_, digest) in inputs.matchings.items()},
        "data": {"name": inputs.dataset, "fingerprint": inputs.fingerprint},
        "settings": {name: content[name] for name in _SETTINGS},
        "code": inputs.code,
        "params": content_hash(read_json(params / "project.json", "dvc repro params")),
        "commit": now.commit,
        "changed": bool(now.changed),  # and not which files: their names are nobody's business
        "versions": now.versions,
    }
