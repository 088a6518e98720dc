"""dvclive's layout: what DVC reads of it, and that what stays is not touched."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import pytest
from error_fixtures import one_line
from feature_fixtures import run_stage
from history_fixtures import ROWS, finished, running
from ruamel.yaml import YAML

from pipeline.errors import ParamsError
from pipeline.tracking import live
from pipeline.tracking.histories import histories
from stages import log


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_a_training_grows_as_dvclive_writes_it(tmp_path: Path) -> None:
    out, folder = tmp_path / "artifacts/students/pair/kd/0", tmp_path / "dvclive"
    running(out)
    assert live.write(histories(tmp_path / "artifacts"), folder) == 1
    own = folder / "students/pair/kd/0"
    assert table(own / "plots/metrics/top1.tsv") == [
        {"step": "1", "top1": "10.0"}, {"step": "2", "top1": "20.0"},
    ]  # fmt: skip
    assert {path.stem for path in (own / "plots/metrics").iterdir()} == ROWS[0].keys() - {"epoch", "phase"}
    assert json.loads((own / "metrics.json").read_text())["step"] == 2

    finished(out)
    assert live.write(histories(tmp_path / "artifacts"), folder) == 1
    assert [row["step"] for row in table(own / "plots/metrics/ce.tsv")] == ["1", "2", "3"]
    metrics = json.loads((own / "metrics.json").read_text())
    assert (metrics["step"], metrics["top1"]) == (3, 30.0)


@pytest.mark.parametrize(
    "content",
    [
        "stages: {mine: {cmd: ls}}\n",
        "metrics: [mine.json]\nplots: []\n",
        "plots: [mine.tsv]\n",
        "[1, {2: 3}]\n",
        "metrics: [\n",
    ],
)
def test_a_dvc_yaml_of_somebody_else_is_not_replaced(tmp_path: Path, content: str) -> None:
    finished(tmp_path / "artifacts/teachers/big")
    (tmp_path / "dvc.yaml").write_text(content)
    with pytest.raises(ParamsError) as error:
        live.write(histories(tmp_path / "artifacts"), tmp_path)
    assert "is not of this command" in one_line(error.value)
    assert (tmp_path / "dvc.yaml").read_text() == content
    assert not (tmp_path / "teachers").exists()


@pytest.mark.parametrize("to", [log.To.DVCLIVE, log.To.TENSORBOARD])
def test_nothing_is_written_among_the_artifacts(tmp_path: Path, to: log.To) -> None:
    finished(tmp_path / "artifacts/teachers/big")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ParamsError) as error:
        log.main(to, artifacts=tmp_path / "artifacts", out=tmp_path / "artifacts")
    one_line(error, "is among the artifacts, which are DVC's")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_stays_is_not_touched(tmp_path: Path) -> None:
    artifacts, folder = tmp_path / "artifacts", tmp_path / "dvclive"
    finished(artifacts / "teachers/big")
    live.write(histories(artifacts), folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert live.write(histories(artifacts), folder) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    # A term that is gone loses its series, and trainings that are gone keep theirs.
    (folder / "teachers/big/plots/metrics/old.tsv").touch()
    finished(artifacts / "teachers/other")
    assert live.write(histories(artifacts), folder) == 1
    assert not (folder / "teachers/big/plots/metrics/old.tsv").exists()
    assert live.write([], folder) == 0
    listed = YAML(typ="safe").load(folder / "dvc.yaml")
    assert listed["metrics"] == ["teachers/big/metrics.json", "teachers/other/metrics.json"]


def test_the_command_follows_until_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifacts, looks = tmp_path / "artifacts", []
    running(artifacts / "teachers/big", ROWS[:1])

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt
        running(artifacts / "teachers/big", ROWS[: 1 + len(looks)])

    monkeypatch.setattr("time.sleep", sleep)
    options = ("--artifacts", artifacts, "--out", tmp_path / "out", "--follow")
    assert run_stage(monkeypatch, log.main, "--to", "dvclive", *options) == 0
    assert "1 of 1 trainings written" in capsys.readouterr().out
    assert len(table(tmp_path / "out/teachers/big/plots/metrics/loss.tsv")) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("tensorboard", "--follow"),
        ("mlflow", "--out", "x"),
        ("wandb",),
        ("dvclive", "--uri", "x"),
        ("tensorboard", "--uri", "x"),
        ("dvclive", "--experiment", "x"),
        ("tensorboard", "--experiment", "stillhouse"),
    ],
    ids=" ".join,
)
def test_what_a_program_cannot_take_is_a_usage_error(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(monkeypatch, log.main, "--to", *arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_dvc_plots_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And git, which does not ignore it, can keep it, for `dvc plots diff`."""
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    finished(tmp_path / "artifacts/teachers/big")
    live.write(histories(tmp_path / "artifacts"), tmp_path / "dvclive")
    with Repo.init(str(tmp_path)) as repo:
        metrics = repo.metrics.show()[""]["data"]
        assert metrics["dvclive/teachers/big/metrics.json"]["data"]["top1"] == 30.0
        plots = repo.plots.show()["workspace"]
        assert plots["definitions"]["data"]["dvclive/dvc.yaml"]["data"] == {
            f"dvclive/teachers/big/plots/metrics/{column}.tsv": {"x": "step"}
            for column in ROWS[0].keys() - {"epoch", "phase"}
        }
        points = plots["sources"]["data"]["dvclive/teachers/big/plots/metrics/top1.tsv"]["data"]
        assert [point["step"] for point in points] == ["1", "2", "3"]
        assert repo.index.stages == []
