"""TensorBoard and MLflow get finished trainings, each once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from error_fixtures import one_line
from feature_fixtures import run_stage
from history_fixtures import ROWS, SETTINGS, finished, running

from pipeline.errors import DamagedArtifactError, MachineError
from pipeline.tracking import mlflow, tensorboard
from pipeline.tracking.histories import histories
from stages import log

NAME = "students/big-small/kd/0"


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    finished(tmp_path / "artifacts" / NAME, settings=SETTINGS)
    running(tmp_path / "artifacts/students/big-small/kd/1")
    return tmp_path / "artifacts"


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run_stage(monkeypatch, log.main, *arguments) == 0
    return capsys.readouterr().out


def test_tensorboard_reads_every_value(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("--to", "tensorboard", "--artifacts", artifacts, "--out", tmp_path / "events")
    assert printed(monkeypatch, capsys, *words).startswith("1 of 1 trainings")
    events = EventAccumulator(str(tmp_path / "events" / NAME)).Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == ROWS[0].keys() - {"epoch", "phase"}
    for column in ("top1", "kd"):
        values = [(event.step, event.value) for event in events.Scalars(column)]
        assert values == [(row["epoch"], pytest.approx(row[column], rel=1e-6)) for row in ROWS]  # float32
    assert tags["tensors"] == ["settings/text_summary"]

    assert printed(monkeypatch, capsys, *words).startswith("0 of 1 trainings")
    (artifacts / NAME / "history.csv").write_text("epoch,phase,top1\n1,main,50.0\n")
    assert printed(monkeypatch, capsys, *words).startswith("1 of 1 trainings")
    events = EventAccumulator(str(tmp_path / "events" / NAME)).Reload()
    assert [event.value for event in events.Scalars("top1")] == [50.0]


def test_a_folder_of_another_program_is_not_replaced(artifacts: Path, tmp_path: Path) -> None:
    other = tmp_path / "events" / NAME
    other.mkdir(parents=True)
    with pytest.raises(DamagedArtifactError) as error:
        tensorboard.export(histories(artifacts, [NAME]), tmp_path / "events")
    one_line(error, "is not replaced", "--out")
    assert list(other.iterdir()) == []


def test_mlflow_has_a_run_of_each_training(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    # The client alone has no database; a store of files does for a test.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "runs").as_uri()
    words = ("--to", "mlflow", "--artifacts", artifacts, "--uri", uri, "--experiment", "mine")
    assert printed(monkeypatch, capsys, *words).startswith("1 of 1 trainings")
    assert printed(monkeypatch, capsys, *words).startswith("0 of 1 trainings")

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("mine")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (NAME, "FINISHED")
    assert run.data.params["methods.kd.temperature"] == "4.0"
    history = client.get_metric_history(run.info.run_id, "top1")
    assert [(metric.step, metric.value) for metric in history] == [
        (row["epoch"], row["top1"]) for row in ROWS
    ]


def test_each_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch.utils.tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MachineError) as error:
        tensorboard.export([], tmp_path)
    one_line(error, 'pip install -e ".[tensorboard]"')
    with pytest.raises(MachineError) as error:
        mlflow.export([], None, "mine")
    one_line(error, 'pip install -e ".[mlflow]"')
