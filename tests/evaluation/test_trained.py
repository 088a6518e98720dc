"""An evaluation measures what one training left: its weights, inputs and states, and no other's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import RECIPE, STUDENT, VIEWS, job, prepared_data

from pipeline.artifacts import seal
from pipeline.artifacts.hashing import content_hash, file_hash
from pipeline.artifacts.predictions import Predictions
from pipeline.data.prepared import Prepared
from pipeline.errors import DamagedArtifactError, DivergedError, MissingArtifactError, StaleArtifactError
from pipeline.evaluation.evaluate import require_finite
from pipeline.networks.network import build
from pipeline.networks.trained import Trained
from pipeline.networks.weights import save_weights
from pipeline.training.alone import train
from stages import evaluate

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_data(tmp_path_factory.mktemp("data") / "toy").folder


@pytest.fixture
def folder(tmp_path: Path, data: Path) -> Path:
    """Return what a training of no epochs left."""
    return trained(tmp_path / "one", data, 3)


def trained(scratch: Path, data: Path, seed: int) -> Path:
    recipe = RECIPE.model_copy(update={"epochs": 0})
    train(job(scratch), STUDENT, recipe, VIEWS, Prepared.open(data), seed)
    return scratch


def measure(folder: Path, data: Path) -> Path:
    out = folder.parent / "metrics.json"
    evaluate.main(folder, out=out, predictions=out.with_suffix(".npz"), data=data, device="cpu")
    return out


def test_metrics_and_predictions_say_what_they_are_of(folder: Path, data: Path) -> None:
    out = measure(folder, data)
    meta = Prepared.open(data).meta
    samples, classes = meta.samples["test"], len(meta.classes)
    found = Predictions.read(out.with_suffix(".npz"), "", meta.fingerprint["test"], samples, classes)
    assert found.weights == file_hash(folder / "weights/last.safetensors")
    training = json.loads((folder / "training.json").read_text())
    assert found.inputs == training["inputs"]
    content = json.loads(out.read_text())
    assert seal.opened(out, content, training, "", out.with_suffix(".npz"))["top1"] == content["top1"]


@pytest.mark.parametrize("name", ["last", "best"])
def test_weights_of_another_training_are_refused(folder: Path, data: Path, name: str) -> None:
    other = trained(folder.parent / "other", data, 4)
    shutil.copy(other / f"weights/{name}.safetensors", folder / f"weights/{name}.safetensors")
    with pytest.raises(
        DamagedArtifactError,
        match=rf"{name}.safetensors is not the file .*--force --single-item train@alone$",
    ):
        measure(folder, data)
    assert not (folder.parent / "metrics.json").exists()


def test_inputs_of_another_training_are_refused(folder: Path) -> None:
    own = Trained.of(folder, "")
    path = folder / "training.json"
    path.write_text(json.dumps(own.identity | {"inputs": content_hash({"seed": 1})}))
    Trained.of(folder, "").check_inputs({"seed": 1}, folder / "inputs.json")
    with pytest.raises(StaleArtifactError, match=r"was not trained from what .*inputs.json says"):
        Trained.of(folder, "").check_inputs({"seed": 2}, folder / "inputs.json")


def test_a_state_of_another_training_is_refused(folder: Path) -> None:
    path = folder / "transform.safetensors"
    path.write_bytes(b"one")
    training = Trained.of(folder, "").identity | {"states": {"transform": file_hash(path)}}
    (folder / "training.json").write_text(json.dumps(training))
    Trained.of(folder, "").check_state(path)
    path.write_bytes(b"other")
    with pytest.raises(
        DamagedArtifactError, match=r"transform.safetensors is not the file that its training left"
    ):
        Trained.of(folder, "").check_state(path)


def test_weights_that_are_not_finite_are_refused(folder: Path, data: Path) -> None:
    """Also where the training itself left them: no accuracy is made of them."""
    network = build(STUDENT, 0)
    with torch.no_grad():
        next(iter(network.parameters())).fill_(float("nan"))
    for name in ("last", "best"):
        save_weights(network, folder / f"weights/{name}.safetensors")
    hashes = {name: file_hash(folder / f"weights/{name}.safetensors") for name in ("last", "best")}
    training = Trained.of(folder, "").identity | {"weights": hashes}
    (folder / "training.json").write_text(json.dumps(training))
    with pytest.raises(
        DivergedError, match=r"the last weights give logits that are not finite. Lower learning_rate"
    ):
        measure(folder, data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metrics_that_are_not_finite_are_refused(value: float) -> None:
    require_finite(Path("x"), {"top1": 1.0, "network": "n", "seed": 0})
    with pytest.raises(DivergedError, match=f"x: teacher_kl is {value}, expected a finite number"):
        require_finite(Path("x"), {"teacher_kl": value})


@pytest.mark.parametrize(
    "broken", [{"weights": {"last": "a"}}, {"inputs": 3}, {"history": []}, {"epochs": True}]
)
def test_a_training_json_of_another_form_is_refused(folder: Path, broken: dict[str, object]) -> None:
    (folder / "training.json").write_text(json.dumps(Trained.of(folder, "").identity | broken))
    with pytest.raises(
        DamagedArtifactError, match=r"training.json does not hold the numbers .*then: dvc repro$"
    ):
        Trained.of(folder, "dvc repro")


def test_a_seal_holds_numbers_files_and_what_they_are_of(tmp_path: Path) -> None:
    file, out = tmp_path / "a.npz", tmp_path / "a.json"
    np.savez(file, x=np.arange(3))
    content = seal.sealed({"x": 1.5, "by": {"y": 2}}, {"seed": 0}, file)
    assert seal.opened(out, content, {"seed": 0}, "stage", file) == {"x": 1.5, "by": {"y": 2}}
    with pytest.raises(StaleArtifactError, match=r"other settings.*: dvc repro --force --single-item stage$"):
        seal.opened(out, content, {"seed": 1}, "stage", file)
    with pytest.raises(
        DamagedArtifactError, match=r"not what was written.*: dvc repro --force --single-item stage$"
    ):
        seal.opened(out, content | {"x": 1.6}, {"seed": 0}, "stage", file)
    np.savez(file, x=np.arange(4))
    with pytest.raises(DamagedArtifactError, match=r"or it does not belong to .*a.npz"):
        seal.opened(out, content, {"seed": 0}, "stage", file)
    file.unlink()
    with pytest.raises(MissingArtifactError, match=r"a.npz does not exist. Make it with: dvc repro stage$"):
        seal.opened(out, content, {"seed": 0}, "stage", file)
