"""The report's files: what they hold, that they are reproducible, and that no cell is a formula."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_fixtures import EPOCHS, Project, provenance_of, rows

from pipeline.params.project import ALONE
from pipeline.report.collect import collect as collecting


def test_results_csv_has_every_pair_run_and_seed(project: Project) -> None:
    found = rows(project.run() / "results.csv")
    assert [(row["run"], row["seed"]) for row in found] == [
        (run, str(seed)) for run in (ALONE, "kd", "fitnet") for seed in project.seeds
    ]
    for row in found:
        alone = row["run"] == ALONE
        key = f"pretrained/small/{row['seed']}" if alone else f"students/big-small/{row['run']}/{row['seed']}"
        metrics = project.metrics(key)
        for name in ("top1", "best_top1", "params", "macs", "train_seconds", "images_per_second"):
            assert float(row[name]) == metrics[name]
        assert (row["dataset"], row["teacher"], row["student"]) == ("pets", "big", "small")
        assert float(row["teacher_top1"]) == project.metrics("teachers/big")["top1"]
        assert row["method"] == {ALONE: "alone"}.get(row["run"], row["run"])
        assert row["slots"] == ("" if alone else "9")


def test_agreement_of_the_student_alone_comes_from_the_predictions(project: Project) -> None:
    found = rows(project.run() / "results.csv")
    folder = project.folder / "artifacts" / "predictions"
    teacher = np.load(folder / "teachers" / "big.npz")["last"]
    for row in found[:3]:
        student = np.load(folder / "pretrained" / "small" / f"{row['seed']}.npz")["last"]
        assert float(row["agreement"]) == pytest.approx(100 * np.mean(student == teacher), abs=1e-9)
    assert {float(row["agreement"]) for row in found[3:]} == {80.0}


def test_curves_confusion_and_summary(project: Project) -> None:
    out = project.run()
    curves = rows(out / "curves.csv")
    assert len(curves) == 9 * EPOCHS
    assert {row["run"]: row["hint"] != "" for row in curves} == {ALONE: False, "kd": False, "fitnet": True}
    summary = json.loads((out / "summary.json").read_text())["pairs"]["big-small"]
    top1 = {
        run: np.array([float(r["top1"]) for r in rows(out / "results.csv") if r["run"] == run])
        for run in summary
    }
    for run, values in top1.items():
        assert summary[run]["top1"] == pytest.approx(values.mean())
        assert summary[run]["top1_std"] == pytest.approx(values.std(ddof=1))
    assert summary["kd"]["gain"] == pytest.approx((top1["kd"] - top1[ALONE]).mean())
    assert "gain" not in summary[ALONE]
    confusion = rows(out / "confusion" / "big-small.csv")
    assert [row["actual"] for row in confusion] == [project.classes[label] for label in project.label]
    best = max(("kd", "fitnet"), key=lambda run: top1[run].mean())
    right = np.mean([row["actual"] == row["predicted"] for row in confusion])
    assert 100 * right == pytest.approx(top1[best][0])


def test_what_params_no_longer_lists_is_not_reported(project: Project) -> None:
    project.params["distill"] = ["big-small/kd"]
    project.params["seeds"] = [0, 1]
    project.write_params()
    out = project.run()
    assert [(row["run"], row["seed"]) for row in rows(out / "results.csv")] == [
        (run, seed) for run in (ALONE, "kd") for seed in "01"
    ]
    assert "fitnet" not in (out / "index.html").read_text()


def test_same_inputs_same_bytes_but_for_the_provenance(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The date and the commit stand in two files; the numbers are the same bytes whenever they are made."""
    first, again, later = (provenance_of("2001-01-01"), provenance_of("2001-01-01"), provenance_of("2002"))
    folders = []
    for number, source in enumerate((first, again, later)):
        monkeypatch.setattr(collecting, "gather", lambda folder, source=source: source)
        folders.append(project.run(f"report{number}"))
    files = sorted(str(path.relative_to(folders[0])) for path in folders[0].rglob("*") if path.is_file())
    assert files == [
        "confusion/big-small.csv",
        "curves.csv",
        "index.html",
        "provenance.json",
        "results.csv",
        "summary.json",
    ]
    for path in files:
        contents = [(folder / path).read_bytes() for folder in folders]
        assert contents[0] == contents[1], path
        assert (contents[0] == contents[2]) == (path not in {"index.html", "provenance.json"}), path


FORMULAS = ("=1+1", "+1", "-cat", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "a\r=1", '=1"2', "'=1+1")


def test_no_cell_is_a_formula_to_a_spreadsheet(tmp_path: Path) -> None:
    """Class names are those of somebody's folders."""
    project = Project(tmp_path, classes=FORMULAS)
    begins = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
    files = list(project.run().rglob("*.csv"))
    assert {file.name for file in files} == {"results.csv", "curves.csv", "big-small.csv"}
    for file in files:
        with file.open(newline="", encoding="utf-8") as content:
            cells = [cell for row in csv.reader(content) for cell in row]
        assert len(cells) > 60
        for cell in cells:
            assert not cell.startswith(begins) or re.fullmatch(r"-[\d.e-]+", cell), cell


def test_the_confusion_plot_keeps_every_class(tmp_path: Path) -> None:
    project = Project(tmp_path, classes=(*FORMULAS, "cat", "'s"))
    found = rows(project.run() / "confusion/big-small.csv")
    shown = dict(zip(project.label.tolist(), (row["actual"] for row in found), strict=True))
    assert len(set(shown.values())) == len(project.classes)  # none is taken for another
    assert {row["predicted"] for row in found} <= set(shown.values())
    *expected, last = (name if name == "a\r=1" else f"'{name}" for name in FORMULAS)
    assert [shown[k] for k in range(len(project.classes))] == [*expected, last, "cat", "'s"]
