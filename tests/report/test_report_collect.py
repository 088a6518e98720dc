"""What is missing, stale or damaged: one line with the command that makes it."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from report_fixtures import Links, Project

from pipeline.errors import DamagedArtifactError, MissingArtifactError, ParamsError, StaleArtifactError
from pipeline.params.project import ALONE
from stages import command, report


@pytest.mark.parametrize(
    ("path", "next_command"),
    [
        ("metrics/students/big-small/kd/1.json", "dvc repro evaluate@big-small/kd-1"),
        ("predictions/students/big-small/kd/1.npz", "dvc repro evaluate@big-small/kd-1"),
        ("students/big-small/kd/1/history.csv", "dvc repro distill@big-small/kd-1"),
        ("metrics/pretrained/small/2.json", "dvc repro evaluate_pretrained@small-2"),
        ("pretrained/small/2/history.csv", "dvc repro pretrain_student@small-2"),
        ("metrics/teachers/big.json", "dvc repro evaluate_teacher@big"),
        ("teachers/big/history.csv", "dvc repro train_teacher@big"),
        ("metrics/features/big.json", "dvc repro check_features@big"),
        ("tables/big/features.json", "dvc repro check_features@big"),
    ],
)
def test_what_is_missing_is_reported_with_the_command_that_makes_it(
    project: Project, path: str, next_command: str
) -> None:
    (project.folder / "artifacts" / path).unlink()
    with pytest.raises(MissingArtifactError, match=f"{re.escape(path)}.*{re.escape(next_command)}$"):
        project.run()
    assert not (project.folder / "report").exists()


def test_a_missing_file_is_one_line_and_status_1(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.folder / "artifacts/metrics/teachers/big.json").unlink()
    monkeypatch.chdir(project.folder)
    line = ["report", "--artifacts", "artifacts", "--prepared", "prepared", "--out", "report"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as stop:
        command.run(report.main)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: artifacts/metrics/teachers/big.json does not exist.")
    assert error.count("\n") == 1
    assert not (project.folder / "report").exists()


def test_metrics_of_other_settings_and_predictions_of_other_data_are_refused(project: Project) -> None:
    project.metrics("students/big-small/kd/0", method="fitnet")
    with pytest.raises(StaleArtifactError, match=r"made for method 'fitnet', params.yaml says 'kd'"):
        project.run()
    project.metrics("students/big-small/kd/0", method="kd")
    path = project.folder / "artifacts/predictions/teachers/big.npz"
    np.savez(path, last=project.label.astype(np.int32), fingerprint=np.array("other"))
    with pytest.raises(StaleArtifactError, match="made with other data"):
        project.run()


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("metrics/students/big-small/kd/0.json", "{}", "lacks top1"),
        ("metrics/students/big-small/kd/0.json", "[1]", "is not a mapping"),
        ("predictions/students/big-small/kd/0.npz", "no archive", "cannot be read"),
        ("students/big-small/kd/0/history.csv", "epoch,top1\n1,2\n", "has 1 epochs, the metrics say 6"),
        ("students/big-small/kd/0/history.csv", "epoch,top1\n" + "1,x\n" * 6, "top1 'x'"),
        ("metrics/features/big.json", "{}", "lacks"),
    ],
)
def test_damaged_files_are_reported(project: Project, path: str, content: str, message: str) -> None:
    (project.folder / "artifacts" / path).write_text(content)
    with pytest.raises(DamagedArtifactError, match=f"{re.escape(path)}.*{message}"):
        project.run()


def test_a_run_may_not_be_called_student(project: Project) -> None:
    project.params["runs"][ALONE] = {"method": "kd"}
    project.params["distill"].append(f"big-small/{ALONE}")
    project.write_params()
    with pytest.raises(ParamsError, match="Rename the run"):
        project.run()


def test_a_teacher_that_was_not_trained_here_has_no_history(project: Project) -> None:
    (project.folder / "artifacts/teachers/big/history.csv").unlink()
    project.metrics("teachers/big", epochs=0, best_epoch=0, train_seconds=0.0, images_per_second=0.0)
    assert Links((project.run() / "index.html").read_text()).open == []
