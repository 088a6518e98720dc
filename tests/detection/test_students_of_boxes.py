"""Students that are detectors: resolved and trained alone by their stages, and evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detection_fixtures import SETTINGS, VIEWS, tiny_data
from error_fixtures import one_line

from pipeline.artifacts import closure, publish
from pipeline.artifacts.hashing import file_hash
from pipeline.detection.detector import build
from pipeline.detection.spec import DetectorStudentBlock
from pipeline.detection.weights import load
from pipeline.errors import MachineError, StaleArtifactError
from pipeline.networks import own_weights
from pipeline.params import tasks
from pipeline.params.recipe import Recipe
from pipeline.params.weights import WeightsFile
from pipeline.training import checkpoint
from stages import evaluate, pretrain_student, student_inputs

pytest.importorskip("pycocotools")
BLOCK = DetectorStudentBlock(
    stage="student_inputs@small",
    student="small",
    dataset="shapes",
    network="faster_rcnn_resnet10x0.25",
    settings=SETTINGS,
    recipe=Recipe(iterations=6, batch_size=2, learning_rate=0.02, milestones=(5,)),
    views=VIEWS,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("boxes") / "data")


@pytest.fixture(scope="module")
def inputs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    publish.write_json(folder / "block.json", BLOCK.model_dump(mode="json"))
    for stage in ("pretrain_student", "evaluate"):
        hashes = closure.code_hashes([tasks.module(stage)])
        publish.write_json(folder / f"code/detection/{stage}.json", hashes)
    student_inputs.main(folder / "block.json", data, folder / "code", folder / "small.json")
    return folder / "small.json"


@pytest.fixture(scope="module")
def trained(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("trained")
    out = [folder / "0", folder / "1"]
    pretrain_student.main([inputs, inputs], [0, 1], out, device="cpu")
    return out


def test_inputs_name_the_code_that_makes_the_student(inputs: Path) -> None:
    code = json.loads(inputs.read_text())["code"]
    assert {"pipeline/training/detectors.py", "pipeline/detection/detector.py"} <= code.keys()
    assert "pipeline/evaluation/detectors.py" in code


def test_every_seed_starts_elsewhere_and_says_what_it_was_trained_from(
    trained: list[Path], inputs: Path
) -> None:
    for seed, folder in enumerate(trained):
        init, spec = load(folder / "weights", "init")
        drawn = build(BLOCK.network, spec.classes, seed, SETTINGS)
        assert all(torch.equal(x, init.state_dict()[name]) for name, x in drawn.state_dict().items())
        assert json.loads((folder / "inputs.json").read_text()) == json.loads(inputs.read_text()) | {
            "seed": seed
        }
    assert len({file_hash(folder / "weights/init.safetensors") for folder in trained}) == 2


def test_a_student_may_start_from_a_file(trained: list[Path], inputs: Path, tmp_path: Path) -> None:
    path = trained[1] / "weights/last.safetensors"
    file = WeightsFile(path=str(path), sha256=own_weights.sha256(str(path))).model_dump(mode="json")
    publish.write_json(tmp_path / "inputs.json", json.loads(inputs.read_text()) | {"first_weights": file})
    pretrain_student.main([tmp_path / "inputs.json"], [0], [tmp_path / "out"], device="cpu")
    init, last = load(tmp_path / "out/weights", "init")[0], load(trained[1] / "weights")[0]
    assert all(torch.equal(x, init.state_dict()[name]) for name, x in last.state_dict().items())


def test_a_resumed_student_ends_in_the_same_bits(
    trained: list[Path], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    save = checkpoint.save

    def save_and_die(*arguments: object) -> None:
        save(*arguments)
        raise KilledError

    monkeypatch.setattr("pipeline.training.loop.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(KilledError):
        pretrain_student.main([inputs], [0], [tmp_path / "out"], device="cpu")
    monkeypatch.setattr(checkpoint, "save", save)
    pretrain_student.main([inputs], [0], [tmp_path / "out"], device="cpu")
    for name in ("init", "last", "best"):
        file = f"weights/{name}.safetensors"
        assert file_hash(tmp_path / "out" / file) == file_hash(trained[0] / file)


def test_the_stage_evaluates_a_student_by_its_own_inputs(trained: list[Path], tmp_path: Path) -> None:
    evaluate.main(trained[1], tmp_path / "metrics.json", tmp_path / "found.npz", device="cpu")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= metrics["AP"] <= 100
    assert (metrics["student"], metrics["dataset"], metrics["seed"]) == ("small", "shapes", 1)


def test_inputs_that_were_changed_are_refused(trained: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "student"
    folder.mkdir()
    for name in ("weights", "training.json", "history.csv"):
        (folder / name).symlink_to(trained[0] / name)
    content = json.loads((trained[0] / "inputs.json").read_text())
    publish.write_json(folder / "inputs.json", content | {"student": "other"})
    with pytest.raises(StaleArtifactError) as error:
        evaluate.main(folder, tmp_path / "metrics.json", tmp_path / "found.npz", device="cpu")
    one_line(error, "was not trained from", "dvc repro")


def test_other_data_and_several_processes_are_refused(inputs: Path, tmp_path: Path) -> None:
    content = json.loads(inputs.read_text())
    content["fingerprint"]["train"] = "0"
    publish.write_json(tmp_path / "inputs.json", content)
    with pytest.raises(StaleArtifactError) as error:
        pretrain_student.main([tmp_path / "inputs.json"], [0], [tmp_path / "out"], device="cpu")
    one_line(error, "not the data that this run was resolved with")
    with pytest.raises(MachineError) as refused:
        pretrain_student.main([inputs], [0], [tmp_path / "out"], device="cpu", processes=2)
    one_line(refused, "one process", "STILLHOUSE_PROCESSES")
