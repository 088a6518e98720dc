"""Histories are found and read, of trainings that have ended and of those that run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from error_fixtures import one_line
from history_fixtures import ROWS, SETTINGS, finished, running
from training_fixtures import cut_off_after, make_world

from pipeline.artifacts import publish
from pipeline.errors import MissingArtifactError
from pipeline.tracking.histories import histories
from pipeline.tracking.settings import flat
from pipeline.training import loop
from stages import pretrain_student


def test_trainings_of_every_kind_are_found_by_name(tmp_path: Path) -> None:
    names = (
        "teachers/big",
        "pretrained/small/0",
        "copies/big/copy",
        "students/pair/kd/0",
        "students/pair/kd/1",
    )
    for name in names:
        finished(tmp_path / name)
    finished(tmp_path / "metrics/none")  # no folder of trainings
    finished(tmp_path / "copies/big/copy/weights/inner")  # within one, nobody looks
    running(tmp_path / "students/pair/slkd/0")

    found = histories(tmp_path)
    assert [history.name for history in found] == sorted([*names, "students/pair/slkd/0"])
    assert [history.name for history in found if not history.finished] == ["students/pair/slkd/0"]
    assert [history.name for history in histories(tmp_path, ["students/*/kd/1", "teachers/*"])] == [
        "students/pair/kd/1",
        "teachers/big",
    ]


def test_rows_are_numbers(tmp_path: Path) -> None:
    second = {key: value for key, value in ROWS[1].items() if key != "kd"} | {"hint": 0.25}
    finished(tmp_path / "teachers/big", (ROWS[0], second))
    (history,) = histories(tmp_path)
    assert history.rows[0] == {key: float(value) for key, value in ROWS[0].items() if key != "phase"}
    series = history.series()
    assert series["kd"] == [(1, 1.0)]
    assert series["hint"] == [(2, 0.25)]
    assert series["top1"] == [(1, 10.0), (2, 20.0)]
    assert "epoch" not in series


def test_a_running_training_is_read_from_its_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "students/pair/kd/0"
    scratch = running(out)
    (history,) = histories(tmp_path)
    assert (history.name, history.finished) == ("students/pair/kd/0", False)
    assert [row["top1"] for row in history.rows] == [10.0, 20.0]

    # What another run had left beside a whole one does not count.
    finished(out)
    (history,) = histories(tmp_path)
    assert history.finished
    shutil.rmtree(out)
    (scratch / "checkpoint.safetensors").write_bytes(b"cut short")
    assert histories(tmp_path) == []


def test_a_training_of_the_project_is_read_while_it_runs_and_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path)
    artifacts = world.path("artifacts")
    inputs, out = artifacts / "inputs/students/small.json", artifacts / "pretrained/small/7"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(loop.Training, "_keep", cut_off_after(loop.Training._keep, 1))
        with pytest.raises(KeyboardInterrupt):
            pretrain_student.main([inputs], seed=[7], out=[out], device="cpu")
    assert publish.scratch(out).exists()
    (going,) = histories(artifacts, ["pretrained/small/7"])
    assert (len(going.rows), going.finished) == (1, False)

    pretrain_student.main([inputs], seed=[7], out=[out], device="cpu")
    (whole,) = histories(artifacts, ["pretrained/small/7"])
    assert whole.finished
    assert whole.rows[0] == going.rows[0]
    assert len(whole.rows) > 1
    assert flat(whole.settings)["seed"] == "7"
    assert flat(whole.settings)["recipe.epochs"] == str(len(whole.rows))


def test_a_training_without_an_epoch_has_no_history(tmp_path: Path) -> None:
    folder = finished(tmp_path / "teachers/big")
    (folder / "history.csv").unlink()
    assert histories(tmp_path) == []


def test_artifacts_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError) as error:
        histories(tmp_path / "none")
    one_line(error, "dvc repro")


def test_settings_are_flat_and_hold_no_hash() -> None:
    assert flat(SETTINGS) == {
        "student": "small", "pair": "big-small", "run": "kd", "seed": "0", "network.network": "resnet8",
        "network.size": "8", "recipe.epochs": "3", "recipe.milestones": "[1, 2]", "methods.kd.temperature": "4.0",
    }  # fmt: skip
    assert flat({}) == {}
