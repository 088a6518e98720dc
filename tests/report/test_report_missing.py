"""A report of what is whole: what is missing or of something else is left out and named, what is damaged is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_fixtures import Links, Project, rows

from pipeline.artifacts import arrays
from pipeline.errors import DamagedArtifactError, StaleArtifactError
from pipeline.params.sections import ALONE
from pipeline.report import statistics
from pipeline.report.drawing import markup
from pipeline.report.drawing import text as words
from pipeline.report.results import Results
from stages import report

KD = "students/big-small/kd"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def left_out(results: Results) -> list[tuple[str, str]]:
    return [(entry.what, entry.command) for entry in results.missing]


def seeds(results: Results, run: str) -> list[int]:
    (found,) = (entry for entry in results.pairs[0].runs if entry.name == run)
    return [student.seed for student in found.students]


# What is missing.


@pytest.mark.parametrize(
    "path",
    [
        "metrics/{}/1.json",
        "predictions/{}/1.npz",
        "{}/1/history.csv",
        "{}/1/training.json",
        "inputs/pairs/big-small/kd/1.json",
    ],
)
def test_a_student_that_is_not_whole_is_left_out_and_named(project: Project, path: str) -> None:
    project.path(path.format(KD)).unlink()
    results = project.collect()
    assert left_out(results) == [("student of big-small/kd, seed 1", "dvc repro evaluate@big-small/kd-1")]
    assert seeds(results, "kd") == [0, 2]
    assert seeds(results, "fitnet") == [0, 1, 2]


def test_a_failed_run_is_left_out_whole(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Its metrics are those of earlier settings: where a stage fails, DVC keeps what is made of it."""
    for seed in project.seeds:
        shutil.rmtree(project.path(f"{KD}/{seed}"))
    out = project.run()
    assert {row["run"] for row in rows(out / "results.csv")} == {ALONE, "fitnet"}
    commands = [f"dvc repro evaluate@big-small/kd-{seed}" for seed in project.seeds]

    summary = json.loads((out / "summary.json").read_text())
    assert summary["pairs"]["big-small"].keys() == {ALONE, "fitnet"}
    assert [entry["command"] for entry in summary["missing"]] == commands
    assert [entry["stage"] for entry in summary["missing"]] == [
        line.removeprefix("dvc repro ") for line in commands
    ]

    printed = capsys.readouterr().err
    html = (out / "index.html").read_text()
    links = Links(html)
    assert html.index('id="missing"') < html.index('id="overview"')
    assert links.open == []
    assert "nan" not in links.text.lower().split()
    for command in commands:
        assert command in links.text
        assert f"Make it with: {command}\n" in printed


def test_gains_are_of_the_seeds_that_both_have(project: Project) -> None:
    shutil.rmtree(project.path(f"{KD}/1"))
    project.path("metrics/pretrained/small/2.json").unlink()
    results = project.collect()
    pair = results.pairs[0]
    alone, kd, fitnet = pair.runs
    top1 = {
        (run.name, student.seed): student.metrics["top1"] for run in pair.runs for student in run.students
    }
    assert kd.gain(alone).mean == pytest.approx(top1["kd", 0] - top1[ALONE, 0])
    assert (kd.gain(alone).count, fitnet.gain(alone).count, fitnet.gain(kd).count) == (1, 2, 2)
    expected = statistics.gain([top1["fitnet", k] for k in (0, 2)], [top1["kd", k] for k in (0, 2)])
    assert fitnet.gain(kd).mean == pytest.approx(expected.mean)

    out = project.run()
    summary = json.loads((out / "summary.json").read_text())["pairs"]["big-small"]
    counted = {name: (run["seeds"], run.get("gain_seeds")) for name, run in summary.items()}
    assert counted == {ALONE: (2, None), "kd": (2, 1), "fitnet": (3, 2)}
    page = Links((out / "index.html").read_text())
    assert page.open == []
    for shown in (
        "kd (2 of 3 seeds)",
        "student (2 of 3 seeds)",
        "1 of 3 seeds",
        "the seeds that both runs have",
    ):
        assert shown in page.text.replace(ALONE, "student"), shown


def test_runs_that_share_no_seed_have_no_gain(project: Project) -> None:
    for run, gone in (("kd", (1, 2)), ("fitnet", (0,))):
        for seed in gone:
            shutil.rmtree(project.path(f"students/big-small/{run}/{seed}"))
    pair = project.collect().pairs[0]
    gain = pair.runs[2].gain(pair.runs[1])
    assert (gain.count, gain.verdict, words.gain(gain), markup.gain(gain)) == (
        0,
        0,
        words.DASH,
        markup.NOTHING,
    )
    page = Links((project.run() / "index.html").read_text())
    assert page.open == []
    assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize("what", ["the student alone", "a teacher"])
def test_a_pair_without_what_it_is_compared_with_is_left_out_whole(tmp_path: Path, what: str) -> None:
    project = Project(tmp_path, {"big-small": ["kd"]}, (0, 1))
    project.params["teachers"]["other"] = project.params["teachers"]["big"] | {"seed": 1}
    project.params["pairs"]["other-small"] = {"teacher": "other", "student": "small"}
    project.params["distill"].append("other-small/kd")
    project.write_params()
    project.teacher("other")
    for seed in project.seeds:
        project.student("other-small", "kd", seed)
    assert left_out(project.collect()) == []

    if what == "a teacher":
        project.path("checks/other.json").unlink()
        assert left_out(project.collect()) == [
            ("teacher other, with its tables and codes", "dvc repro check_features@other"),
            ("pair other-small", "dvc repro evaluate_teacher@other"),
        ]
        assert [pair.name for pair in project.collect().pairs] == ["big-small"]
        return

    for seed in project.seeds:
        project.path(f"metrics/pretrained/small/{seed}.json").unlink()
    results = project.collect()
    assert [entry[0] for entry in left_out(results)] == [
        "student small alone, seed 0", "student small alone, seed 1", "pair big-small", "pair other-small",
    ]  # fmt: skip
    assert {entry[1] for entry in left_out(results)} == {
        f"dvc repro evaluate_pretrained@small-{k}" for k in (0, 1)
    }
    page = Links((project.run() / "index.html").read_text())
    assert "No pair of params.yaml is whole" in page.text
    assert page.open == []


def test_a_project_that_is_whole_says_nothing_of_it(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    out = project.run()
    assert json.loads((out / "summary.json").read_text())["missing"] == []
    assert 'id="missing"' not in (out / "index.html").read_text()
    assert capsys.readouterr().err == ""


def test_a_report_of_params_that_have_changed_since_is_refused(project: Project) -> None:
    """Where DVC runs the report alone, it does not cut params.yaml into blocks again."""
    project.params["runs"]["both"] = {"methods": {"kd": {}, "fitnet": {}}}  # in another order than a json has
    project.write_params()
    path = project.folder / "params.yaml"
    path.write_text(f"# a comment\n{json.dumps(project.params)}")
    folders = {name: project.folder / name for name in ("artifacts", "prepared")}
    report.main(project.folder / "params", **folders, out=project.folder / "report", project=path)
    path.write_text(json.dumps(project.params | {"seeds": [0, 1]}))
    with pytest.raises(
        StaleArtifactError, match=r"other settings than .*params.yaml has now.*: dvc repro params$"
    ):
        report.main(project.folder / "params", **folders, out=project.folder / "other", project=path)
    assert not (project.folder / "other").exists()


# What belongs to something else.


KINDS = ("metrics/{}.json", "predictions/{}.npz")
OTHERS = ["students/big-small/kd/1", "students/big-small/fitnet/0", "pretrained/small/0", "teachers/big"]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("kinds", [KINDS, KINDS[:1], KINDS[1:]])
def test_metrics_and_predictions_of_another_network_are_left_out(
    project: Project, other: str, kinds: tuple[str, ...]
) -> None:
    for kind in kinds:
        shutil.copy(project.path(kind.format(other)), project.path(kind.format(f"{KD}/0")))
    results = project.collect()
    assert left_out(results) == [("student of big-small/kd, seed 0", "dvc repro evaluate@big-small/kd-0")]


@pytest.mark.parametrize("other", OTHERS)
def test_a_training_of_another_network_is_left_out(project: Project, other: str) -> None:
    """Also where its metrics and predictions came along."""
    shutil.rmtree(project.path(f"{KD}/0"))
    shutil.copytree(project.path(other), project.path(f"{KD}/0"))
    assert left_out(project.collect())[0][1] == "dvc repro evaluate@big-small/kd-0"
    for kind in KINDS:
        shutil.copy(project.path(kind.format(other)), project.path(kind.format(f"{KD}/0")))
    assert left_out(project.collect())[0][1] == "dvc repro evaluate@big-small/kd-0"


@pytest.mark.parametrize("key", ["students/big-small/kd/1", "pretrained/small/1"])
def test_a_history_of_another_seed_is_refused(project: Project, key: str) -> None:
    shutil.copy(project.path(f"{key}/history.csv"), project.path(f"{key[:-1]}0/history.csv"))
    with pytest.raises(
        DamagedArtifactError, match=rf"{key[:-1]}0/history.csv is not the file .*--force --single-item \S+-0$"
    ):
        project.collect()


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"students": {"small": {"recipe": "short"}}}, {"evaluate_pretrained@small-0", "pair big-small"}),
        ({"runs": {"kd": {"methods": {"kd": {"temperature": 9.0}}}}}, {"evaluate@big-small/kd-0"}),
        ({"runs": {"kd": {"recipe": {"learning_rate": 0.5}}}}, {"evaluate@big-small/kd-0"}),
        ({"runs": {"kd": {"schedule": "self_learning"}}}, {"evaluate@big-small/kd-0"}),
    ],
)  # fmt: skip
def test_students_of_other_settings_are_left_out(
    tmp_path: Path, change: dict[str, Any], stages: set[str]
) -> None:
    """Params are new, and all else is of before: so it is where a stage between them has failed."""
    project = Project(tmp_path, {"big-small": ["kd"], "third": []}, (0, 1))
    for section, entries in change.items():
        for name, settings in entries.items():
            project.params[section][name] = project.params[section][name] | settings
    project.params["recipes"] = {"short": {"epochs": 7, "milestones": [2]}}
    project.write_params()
    missing = project.collect().missing
    found = {entry.stage for entry in missing} | {entry.what for entry in missing}
    assert stages <= found
    assert ("evaluate_pretrained@small-0" in found) == ("students" in change)


def test_a_teacher_of_other_settings_is_left_out_and_its_students_with_it(project: Project) -> None:
    project.params["teachers"]["other"] = project.params["teachers"]["big"] | {"seed": 3}
    project.write_params()
    project.teacher("other")
    project.params["teachers"]["big"]["seed"] = 5
    project.write_params()
    assert [entry for entry, _ in left_out(project.collect())] == [
        "teacher big, with its tables and codes", "pair big-small",
    ]  # fmt: skip


def test_students_of_another_teacher_are_left_out(project: Project) -> None:
    """Their inputs name the weights that taught them."""
    for seed in project.seeds:
        path = project.path(f"inputs/pairs/big-small/kd/{seed}.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher_weights": "f" * 32}))
    (entry, *_) = project.collect().missing
    assert entry.stage == "evaluate@big-small/kd-0"
    assert "other teacher_weights than the project has now" in entry.reason


@pytest.mark.parametrize(("name", "value"), [("weights", {"last": "0"}), ("data", {"train": "0"})])
def test_a_check_of_another_store_is_left_out(project: Project, name: str, value: Any) -> None:
    path = project.path("checks/big.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    project.seal_check("big")
    with pytest.raises(
        FileNotFoundError, match=r"of a store of another teacher.*dvc repro check_features@big$"
    ):
        project.collect()


# What is damaged.


@pytest.mark.parametrize("key", [f"{KD}/0", "teachers/big", "pretrained/small/2"])
def test_a_digit_of_metrics_that_has_flipped_is_refused(project: Project, key: str) -> None:
    path = project.path(f"metrics/{key}.json")
    text = path.read_text()
    digit = re.search(r'"top1": \d', text)
    assert digit is not None
    other = 1 if text[digit.end() - 1] != "1" else 2
    path.write_text(f"{text[: digit.end() - 1]}{other}{text[digit.end() :]}")
    with pytest.raises(
        DamagedArtifactError,
        match=rf"{key}.json is not what was written.*dvc repro --force --single-item evaluate",
    ):
        project.run()
    assert not (project.folder / "report").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("last", np.full(60, 3, np.int32), "last from 3 to 3, expected 0 to 2"),
        ("last", np.full(60, -1, np.int32), "last from -1 to -1"),
        ("last", np.zeros(59, np.int32), r"last of shape \(59,\), expected \(60,\)"),
        ("last", np.zeros(60, np.float32), "last of float32"),
        ("best", np.zeros((60, 1), np.int32), "best of shape"),
        ("correlation", np.zeros((2, 2), np.float32), r"correlation of shape \(2, 2\)"),
        ("correlation", np.full((3, 3), np.nan, np.float32), "correlation that is not a matrix of finite numbers"),
        ("pooled", np.zeros((29, 5), np.float32), "pooled of shape"),
        ("pooled_index", np.arange(60, 90), "pooled_index from 60 to 89"),
    ],
)  # fmt: skip
def test_predictions_that_cannot_be_of_the_data_are_refused(
    project: Project, name: str, value: Any, message: str
) -> None:
    path = project.path(f"predictions/{KD}/0.npz")
    arrays.write(path, arrays.read(path, "") | {name: value})
    with pytest.raises(
        DamagedArtifactError, match=rf"{message}.*dvc repro --force --single-item evaluate@big-small/kd-0$"
    ):
        project.collect()


@pytest.mark.parametrize("value", [float("nan"), "high", True, None])
def test_metrics_that_are_no_finite_numbers_are_refused(project: Project, value: Any) -> None:
    project.metrics(f"{KD}/0", top1=value)
    with pytest.raises(DamagedArtifactError, match=rf"top1 '{value}', expected a finite number"):
        project.collect()
