"""The report on small artifacts made by hand: its numbers, its files, its errors and its page."""

from __future__ import annotations

import csv
import importlib
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from report_fixtures import EPOCHS, Links, Project, provenance_of, rows
from scipy import stats

from pipeline.errors import DamagedArtifactError, MissingArtifactError
from pipeline.params.sections import ALONE
from pipeline.report import page, sections, statistics
from pipeline.report.collect import collect as collecting
from pipeline.report.drawing import intervals, palette, text
from pipeline.report.sections import overview, settings
from pipeline.report.sections.confusion import shares
from pipeline.report.sections.correlation import differences
from pipeline.report.sections.embedding import embed
from pipeline.report.statistics import Estimate
from stages import command, report


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 30, 200, 1001])
def test_t_quantiles_are_those_of_a_plain_reference(degrees: int, level: float) -> None:
    """Bisection of P(|T| < sqrt(degrees) tan(angle)): Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""

    def within(angle: float) -> float:
        sine, cosine, odd = math.sin(angle), math.cos(angle), degrees % 2
        term = cosine if odd else 1.0
        total = 0.0 if degrees == 1 else term
        for k in range(2 + odd, degrees - 1, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        return 2 / math.pi * (angle + sine * total) if odd else sine * total

    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < level else (low, middle)
    expected = math.tan(low) * math.sqrt(degrees)
    assert statistics.t_quantile(degrees, level) == pytest.approx(expected, rel=1e-9)


def test_a_paired_gain_is_the_paired_t_test() -> None:
    one, other = [71.2, 70.1, 73.4, 72.0], [70.0, 70.3, 71.9, 71.1]
    found = statistics.gain(one, other)
    test = stats.ttest_rel(one, other)
    low, high = test.confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(np.subtract(one, other)))
    assert found.std == pytest.approx(np.std(np.subtract(one, other), ddof=1))
    assert found.half == pytest.approx((high - low) / 2, rel=1e-9)
    assert found.count == 4


def test_one_seed_has_no_interval_and_a_clear_gain_has_a_verdict() -> None:
    alone = statistics.gain([71.0], [70.0])
    assert (alone.mean, alone.std, alone.half, alone.verdict) == (1.0, None, None, 0)
    assert statistics.gain([71.0, 71.1, 71.2], [70.0, 70.1, 70.1]).verdict == 1
    assert statistics.gain([70.0, 70.1, 70.1], [71.0, 71.1, 71.2]).verdict == -1
    assert statistics.gain([70.0, 72.0], [71.0, 71.1]).verdict == 0


def test_gains_of_unequal_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        statistics.gain([1.0, 2.0], [1.0])


def test_confusion_by_hand(project: Project) -> None:
    results = project.collect()
    networks = results.pairs[0].runs[1].students
    expected = np.zeros((3, 3))
    for network in networks:
        for label, predicted in zip(project.label, network.prediction, strict=True):
            expected[label, predicted] += 100 / (20 * len(networks))
    np.testing.assert_allclose(shares(results.datasets["pets"], networks), expected, atol=1e-9)


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
        assert row["methods"] == ("" if alone else row["run"])
        assert row["schedule"] == ("" if alone else "final")
        assert row["source"] == ("" if alone else "cached")
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


@pytest.mark.parametrize(
    ("path", "next_command"),
    [
        ("metrics/teachers/big.json", "dvc repro evaluate_teacher@big"),
        ("teachers/big/history.csv", "dvc repro evaluate_teacher@big"),
        ("metrics/features/big.json", "dvc repro check_features@big"),
        ("checks/big.json", "dvc repro check_features@big"),
    ],
)
def test_where_nothing_can_be_reported_the_error_has_the_command_that_makes_it(
    project: Project, path: str, next_command: str
) -> None:
    project.path(path).unlink()
    with pytest.raises(MissingArtifactError, match=f"{re.escape(path)}.*{re.escape(next_command)}$"):
        project.run()
    assert not (project.folder / "report").exists()


def test_a_missing_file_is_one_line_and_status_1(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.folder / "artifacts/metrics/teachers/big.json").unlink()
    monkeypatch.chdir(project.folder)
    line = ["report", "params", "--artifacts", "artifacts", "--prepared", "prepared", "--out", "report"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as stop:
        command.run(report.main)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: No teacher and no pair can be reported.")
    assert "artifacts/metrics/teachers/big.json does not exist." in error
    assert error.count("\n") == 1
    assert not (project.folder / "report").exists()


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("metrics/students/big-small/kd/0.json", "{}", "lacks top1"),
        ("metrics/students/big-small/kd/0.json", "[1]", "is not a mapping"),
        ("predictions/students/big-small/kd/0.npz", "no archive", "cannot be read"),
        (
            "students/big-small/kd/0/history.csv",
            "epoch,top1\n1,2\n",
            "is not the file that its training left",
        ),
        ("students/big-small/kd/0/training.json", "{}", "does not hold"),
        ("metrics/features/big.json", "{}", "lacks"),
    ],
)
def test_damaged_files_are_reported(project: Project, path: str, content: str, message: str) -> None:
    project.path(path).write_text(content)
    with pytest.raises(DamagedArtifactError, match=f"{re.escape(path)}.*{message}"):
        project.run()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch,top1\n1,2\n", "has 1 epochs, the metrics say 6"),
        ("epoch,top1\n" + "1,x\n" * 6, "top1 'x'"),
    ],
)
def test_a_history_that_was_written_wrong_is_reported(project: Project, content: str, message: str) -> None:
    key = "students/big-small/kd/0"
    project.path(f"{key}/history.csv").write_text(content)
    project.training(key)
    with pytest.raises(
        DamagedArtifactError,
        match=rf"{key}/history.csv.*{message}.*--force --single-item distill@big-small/kd-0",
    ):
        project.run()


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
        "gains.csv",
        "index.html",
        "provenance.json",
        "results.csv",
        "summary.json",
    ]
    for path in files:
        contents = [(folder / path).read_bytes() for folder in folders]
        assert contents[0] == contents[1], path
        assert (contents[0] == contents[2]) == (path not in {"index.html", "provenance.json"}), path


def test_the_page_loads_nothing_and_its_links_lead_somewhere(project: Project) -> None:
    out = project.run()
    html = (out / "index.html").read_text()
    links = Links(html)
    assert links.open == []
    assert all(value.startswith("data:image/png;base64,") for value in links.loaded)
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert set(links.files) == files - {"index.html"}
    assert "http" not in html
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert len(links.names) == len(set(links.names))
    assert {target[1:] for target in links.targets} <= set(links.names)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(links.names)
    assert "nan" not in links.text.lower().split()


def test_hostile_class_names_are_shown_as_text(tmp_path: Path) -> None:
    classes = (
        "<script>alert(1)</script>",
        '" onload="x',
        "$a_b^c$ & \N{SNOWMAN}\N{CJK UNIFIED IDEOGRAPH-4E00}",
    )
    html = (Project(tmp_path, classes=classes).run() / "index.html").read_text()
    links = Links(html)
    assert links.open == []
    assert html.count("<script>") == 1  # the page's own
    assert "<script>alert" in links.text
    assert classes[2] in links.text
    assert " onload=" not in re.sub(r'"[^"]*"', "", html).replace("&#34; onload=", "")


FORMULAS = ("=1+1", "+1", "-cat", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "a\r=1", '=1"2', "'=1+1")


def test_no_cell_is_a_formula_to_a_spreadsheet(tmp_path: Path) -> None:
    """Class names are those of somebody's folders."""
    project = Project(tmp_path, classes=FORMULAS)
    begins = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
    files = list(project.run().rglob("*.csv"))
    assert {file.name for file in files} == {"results.csv", "gains.csv", "curves.csv", "big-small.csv"}
    for file in files:
        with file.open(newline="", encoding="utf-8") as content:
            cells = [cell for row in csv.reader(content) for cell in row]
        assert len(cells) >= 40  # of gains.csv, the smallest
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


@pytest.mark.parametrize(
    ("runs", "seeds"),
    [
        ({"big-small": []}, (0, 1, 2)),
        ({}, (0, 1)),
        ({"big-small": ["fitnet"]}, (0, 1, 2)),
        ({"big-small": ["kd", "fitnet"], "other": ["fitnet"], "third": []}, (5,)),
    ],
    ids=["nothing distilled", "no pairs", "no kd", "one seed, three pairs"],
)
def test_unusual_projects_have_a_page(
    tmp_path: Path, runs: dict[str, list[str]], seeds: tuple[int, ...]
) -> None:
    project = Project(tmp_path, runs, seeds)
    out = project.run()
    links = Links((out / "index.html").read_text())
    assert links.open == []
    assert {target[1:] for target in links.targets} <= set(links.names)
    assert ("gain over kd" in links.text) == any("kd" in names for names in runs.values())
    number = sum(1 + len(names) for names in runs.values()) * len(seeds)
    assert len(rows(out / "results.csv")) == number


def test_many_runs_and_classes(tmp_path: Path) -> None:
    names = [f"a_rather_long_name_of_a_run_number_{number}" for number in range(30)]
    project = Project(tmp_path, {"big-small": ["kd", *names]}, (0, 1), tuple(map(str, range(30))))
    links = Links((project.run() / "index.html").read_text())
    assert "25 more in gray" in links.text


def test_settings_that_differ_are_columns(project: Project) -> None:
    assert "slots" not in re.findall(r"<th[^>]*>(\w+)</th>", _accuracy(project))
    project.params["runs"]["kd"] |= {"source": "online", "slots": 4}
    project.write_params()
    assert {entry.stage for entry in project.collect().missing} == {
        f"evaluate@big-small/kd-{k}" for k in range(3)
    }
    for seed in project.seeds:
        project.student("big-small", "kd", seed)
    assert {"source", "slots"} <= set(re.findall(r"<th[^>]*>(\w+)</th>", _accuracy(project)))
    (kd,) = (row for row in rows(project.run() / "results.csv") if (row["run"], row["seed"]) == ("kd", "0"))
    assert (kd["source"], kd["slots"]) == ("online", "4")


def test_views_of_a_runs_own_are_shown(project: Project) -> None:
    """What was made of the data set's views is left out until it has been made of the run's."""
    project.params["runs"]["kd"] |= {
        "source": "online",
        "views": {"crop_flip": {"padding": 1, "fill": "reflect"}},
    }
    project.write_params()
    assert "evaluate@big-small/kd-0" in {entry.stage for entry in project.collect().missing}
    for seed in project.seeds:
        project.student("big-small", "kd", seed)
    assert "evaluate@big-small/kd-0" not in {entry.stage for entry in project.collect().missing}

    own = "crop_flip {padding: 1, fill: reflect, flip: true}"
    accuracy = _accuracy(project)
    assert "views" in re.findall(r"<th[^>]*>(\w+)</th>", accuracy)
    assert accuracy.count(own) == 1
    html = str(settings.section(project.collect(), project.collect().pairs[0]))
    assert "views of its own" in html
    assert own in html
    written = {(row["run"], row["views"]) for row in rows(project.run() / "results.csv")}
    assert written == {("kd", own), ("fitnet", ""), ("student", "")}


def test_probes_of_inserted_layers_are_shown(project: Project) -> None:
    html = (project.run() / "index.html").read_text()
    assert "Linear probes" not in html  # no run inserts any
    for seed in project.seeds:
        found = {"probe_final.input": 50.0 + seed, "probe_final": 54.0 + seed, "probe_stage2": 31.5}
        project.metrics(f"students/big-small/fitnet/{seed}", **found)
    html = (project.run() / "index.html").read_text()
    part = html[html.index('<section id="pair0-probe">') :]
    cells = re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", part[: part.index("</table>")])
    assert cells[:5] == ["run", "layer after", "its input", "its output", "gain"]
    assert [re.sub(r" <.*", "", cell) for cell in cells[5:]] == [
        "fitnet", "final", "51.00", "55.00", "+4.00", "fitnet", "stage2", "\N{EN DASH}", "31.50", "\N{EN DASH}",
    ]  # fmt: skip


def _accuracy(project: Project) -> str:
    html = (project.run() / "index.html").read_text()
    return html[html.index('<section id="pair0-scores">') : html.index('<section id="pair0-settings">')]


def test_fitted_tables_are_shown_whatever_they_measure(project: Project) -> None:
    project.fit("moments", {"mean": np.zeros(4), "std": np.ones(4)})
    quality = {"inertia": 12.25, "empty_clusters": 3.0, "by": {"x": 1.5}}
    project.quality("moments", quality)
    shown = Links((project.run() / "index.html").read_text()).text
    assert "empty clusters" in shown
    assert "12.25" in shown
    assert "by.x" in shown


def test_a_teacher_that_was_not_trained_here_has_no_history(project: Project) -> None:
    project.path("teachers/big/history.csv").unlink()
    project.training("teachers/big")
    project.metrics("teachers/big", epochs=0, best_epoch=0, train_seconds=0.0, images_per_second=0.0)
    assert Links((project.run() / "index.html").read_text()).open == []


def _with_columns(project: Project, run: str, seed: int, columns: dict[str, list[float]]) -> None:
    path = project.folder / f"artifacts/students/big-small/{run}/{seed}/history.csv"
    found = rows(path)
    for epoch, row in enumerate(found):
        row.update({name: str(values[epoch]) for name, values in columns.items()})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    project.training(f"students/big-small/{run}/{seed}")


def test_what_epochs_showed_has_sections_of_its_own(project: Project) -> None:
    plain = (project.run("before") / "index.html").read_text()
    assert "pair0-weights" not in plain
    assert "pair0-trajectories" not in plain
    fall = [1 / (epoch + 1) for epoch in range(EPOCHS)]
    for seed in project.seeds:
        weights = {f"weight.kd.stage1.{percent}": [percent / 100] * EPOCHS for percent in (5, 25, 50, 75, 95)}
        _with_columns(project, "fitnet", seed, weights | {"distance.student-self": fall})
    html = (project.run() / "index.html").read_text()
    links = Links(html)
    assert links.open == []
    assert "fitnet: stage1, logits." in links.text
    assert "student to self-learning" in links.text
    training = html[html.index('<section id="pair0-curves">') : html.index('<section id="pair0-weights">')]
    assert "distance" not in training  # they are no terms of the loss
    assert "stage1" not in training
    run = project.collect().pairs[0].runs[2]
    assert run.terms == ["ce", "hint", "ce2"]


def test_correlations_are_compared_with_the_teachers(project: Project) -> None:
    pair = project.collect().pairs[0]
    folder = project.folder / "artifacts" / "predictions"
    teacher = np.load(folder / "teachers/big.npz")["correlation"]
    run = pair.runs[1]
    for seed, found in zip(project.seeds, differences(pair, run), strict=True):
        student = np.load(folder / f"students/big-small/kd/{seed}.npz")["correlation"]
        expected = [[abs(float(student[i, j]) - float(teacher[i, j])) for j in range(3)] for i in range(3)]
        np.testing.assert_allclose(found, expected, atol=1e-6)  # float32
        assert (np.diag(found) < 1e-6).all()


def test_features_are_embedded_alike_again_and_apart_where_they_are(project: Project) -> None:
    network = project.collect().pairs[0].runs[1].students[0]
    np.testing.assert_array_equal(embed(network), embed(network))
    apart = network.pooled.copy()
    apart[15:] += 100
    places = embed(replace(network, pooled=apart))
    centers = places[:15].mean(axis=0), places[15:].mean(axis=0)
    within = max(np.linalg.norm(places[:15] - centers[0], axis=1).max(), 1e-9)
    assert np.linalg.norm(centers[0] - centers[1]) > within
    assert not embed(replace(network, pooled=np.ones_like(apart))).any()


def test_costs_are_shown_beside_the_student_alone_and_kd(project: Project) -> None:
    for seed in project.seeds:
        project.metrics(f"students/big-small/kd/{seed}", images_per_second=500.0)
        project.metrics(
            f"students/big-small/fitnet/{seed}", images_per_second=100.0, peak_bytes=5_000_000_000
        )
    html = (project.run() / "index.html").read_text()
    section = html[html.index('<section id="pair0-cost">') :]
    line = next(row for row in re.findall(r"<tr>.*?</tr>", section) if ">fitnet<" in row)
    cells = re.findall(r'data-order="([^"]*)"', line)
    assert cells[-3:] == ["10.0", "5.0", "5000000000.0"]  # of the student alone, of KD, bytes


SECTIONS = sorted(path.stem for path in (Path(page.__file__).parent / "sections").glob("[!_]*.py"))


def test_every_section_file_is_listed_once_and_in_order() -> None:
    listed = {group: page.catalog(group) for group in ("opening", "pair", "closing")}
    names = [module.__name__.rpartition(".")[2] for modules in listed.values() for module in modules]
    assert sorted(names) == SECTIONS
    for modules in listed.values():
        orders = [module.ORDER for module in modules]
        assert orders == sorted(set(orders))


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_says_its_title_and_what_to_look_for(name: str) -> None:
    module = importlib.import_module(f"pipeline.report.sections.{name}")
    assert module.TITLE[0].isupper() or module.TITLE.startswith("t-SNE")
    assert module.LEAD.endswith(".")
    assert module.LEAD[0].islower()
    assert len(module.LEAD) > 30


def test_a_new_section_is_its_file_alone(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project.folder / "more"
    folder.mkdir()
    (folder / "added.py").write_text(
        "from markupsafe import Markup\n"
        "TITLE, LEAD, GROUP, ORDER = 'Added', 'whether it is there.', 'pair', 55\n"
        "NUMBERS = {'confusion/{pair}.csv': 'all of it'}\n"
        "def section(results, pair):\n    return Markup('<p>new {}</p>').format(pair.name)\n"
    )
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(folder)])
    html = (project.run() / "index.html").read_text()
    del sys.modules["pipeline.report.sections.added"]
    part = html[html.index('<section id="pair0-added">') : html.index('<section id="pair0-confusion">')]
    assert html.index('<section id="pair0-curves">') < html.index('<section id="pair0-added">')
    assert "<h3>Added</h3>" in part
    assert "whether it is there." in part
    assert "<p>new big-small</p>" in part
    assert '<a href="confusion/big-small.csv">confusion/big-small.csv</a> (all of it)' in part


# Gains.


@pytest.mark.parametrize(
    ("gains", "words", "kind"),
    [
        ((2.0, 2.1, 1.9), "excludes zero", "up"),
        ((2.0, -2.0, 0.5), "includes zero", "quiet"),
        ((-2.0, -2.1, -1.9), "below zero", "down"),
    ],
)
def test_the_overview_says_whether_a_gain_excludes_zero(
    project: Project, gains: tuple[float, ...], words: str, kind: str
) -> None:
    for seed, gain in zip(project.seeds, gains, strict=True):
        for run, plus in (("kd", gain), ("fitnet", -30.0)):
            top1 = project.metrics(f"pretrained/small/{seed}")["top1"] + plus
            project.metrics(f"students/big-small/{run}/{seed}", top1=top1)
    html = str(overview.section(project.collect()))
    row = next(row for row in re.findall(r"<tr>.*?</tr>", html) if "<td>kd</td>" in row)
    assert re.findall(r'<td class="number (\w+)">(.*?)</td>', row)[-1] == (kind, words)
    expected = statistics.estimate(gains)
    assert text.gain(expected) in Links(row).text
    headline = Links(html[: html.index("</ul>")]).text
    assert f"{text.gain(expected)} (interval {words})" in headline
    clear = int(kind == "up")
    assert f"{clear} of 2 runs clearly gain{'s' if clear else ''}, " in headline


def test_one_seed_has_no_verdict(tmp_path: Path) -> None:
    html = str(overview.section(Project(tmp_path, seeds=(4,)).collect()))
    assert "One seed cannot show whether a run gains." in html
    assert "excludes zero" not in html
    assert "includes zero" not in html
    assert html.count("one seed, no interval") >= 2


def test_intervals_stand_beside_a_zero_line() -> None:
    ax = Figure().subplots()
    gains = [
        ("a", Estimate(2.0, 1.0, 0.5, 3)),
        ("b", Estimate(0.2, 1.0, 0.5, 3)),
        ("c", Estimate(-2, 1, 0.5, 3)),
    ]
    intervals.paint(ax, gains, "gain")
    zero, *marks = ax.lines
    assert list(zero.get_xdata()) == [0, 0]  # type: ignore[arg-type]  # an array or a list
    colors = [palette.UP, palette.MUTED, palette.DOWN]
    assert [mark.get_color() for mark in marks] == colors
    assert [mark.get_markerfacecolor() for mark in marks] == [palette.UP, palette.PAPER, palette.DOWN]
    spans = [lines.get_segments()[0][:, 0].tolist() for lines in ax.collections[::2]]  # type: ignore[attr-defined]  # of lines
    np.testing.assert_allclose(spans, [[1.5, 2.5], [-0.3, 0.7], [-2.5, -1.5]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]


# Settings.


def test_every_run_shows_its_settings(project: Project) -> None:
    """Those of its methods resolved, defaults included; and what it changes of the student's recipe."""
    changed = {"epochs": 7, "milestones": [3, 5], "momentum": 0.9}  # the last is the student's own
    project.params["runs"]["kd"] = {"methods": {"kd": {"temperature": 3.5}}, "recipe": changed}
    project.params["runs"]["fitnet"] = {"methods": {"fitnet": {"student_tap": "last"}}}
    project.write_params()
    for run in ("kd", "fitnet"):
        for seed in project.seeds:
            project.student("big-small", run, seed)
    pair = project.collect().pairs[0]
    html = str(settings.section(project.collect(), pair))
    assert Links(html).open == []
    blocks = re.findall(r"<details>.*?</details>", html, re.DOTALL)
    assert [re.findall(r"<summary><b>(\w+)</b>", block) for block in blocks] == [["kd"], ["fitnet"]]
    assert re.findall(r"<small>(.*?)</small>", html) == ["changes epochs, milestones of the recipe", ""]
    kd, fitnet = ([Links(row).text for row in re.findall(r"<tr>.*?</tr>", block)[1:]] for block in blocks)
    assert kd == [
        "methodkd",
        "methodweights.ce0.1",
        "methodweights.kd0.9",
        "methodinsertnone",
        "methodtemperature3.5",
        "schedulefinal",
        "sourcecached",
        "slots9",
        "viewsof the data set",
        "recipeepochs7 (student alone: 240)",
        "recipemilestones3, 5 (student alone: 150, 180, 210)",
    ]
    assert {"methodfitnet", "methodstudent_tapstage3", "methodteacher_featurestage2"} <= set(fitnet)
    assert {"methodreluyes", "methodstandardizenone", "schedulefinal", "sourcecached", "slots9"} <= set(
        fitnet
    )
    assert not any(row.startswith(("recipe", "transform")) for row in fitnet)
    shared = Links(html[: html.index("<details>")]).text
    assert "learning rate0.05" in shared
    assert "milestones150, 180, 210" in shared


def test_the_report_needs_no_torch(project: Project) -> None:
    project.fit("kmeans", {"counts": np.array([2, 1])})  # its plug-in says what a group of pixels is called
    code = (
        "import sys\nfrom pathlib import Path\nfrom stages import report\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"f = Path({str(project.folder)!r})\n"
        "places = {name: f / name for name in ('artifacts', 'prepared')}\n"
        "report.main(f / 'params', **places, out=f / 'report')\n"
        "assert 'matplotlib' in sys.modules\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.amount(77_754), "77.8\N{NARROW NO-BREAK SPACE}k"),
        (text.amount(15_866_537, "B"), "15.9\N{NARROW NO-BREAK SPACE}MB"),
        (text.amount(1_000_000), "1\N{NARROW NO-BREAK SPACE}M"),
        (text.amount(0.5), "0.5"),
        (text.signed(-0.001), "0.00"),
        (text.signed(-1.5, 1), "\N{MINUS SIGN}1.5"),
        (text.duration(12.34), "12.3 s"),
        (text.duration(99.7), "2 min"),
        (text.duration(7260), "2 h 01 min"),
        (text.short("abcdefghijkl", 9), "abcde\N{HORIZONTAL ELLIPSIS}jkl"),
    ],
)
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected


# Several methods, no interval, nothing at all.


def test_several_methods_are_named_in_their_order(project: Project) -> None:
    project.distill("both", methods={"fitnet": {}, "kd": {}}, schedule="self_learning")
    out = project.run()
    (row,) = (row for row in rows(out / "results.csv") if (row["run"], row["seed"]) == ("both", "1"))
    assert (row["methods"], row["schedule"], row["transform"]) == ("fitnet + kd", "self_learning", "")
    run = project.collect().pairs[0].runs[3]
    assert (run.name, run.composition) == ("both", "fitnet + kd + self_learning")
    assert run.terms == ["ce", "hint", "ce2", "kd"]
    assert "<td>fitnet + kd + self_learning</td>" in (out / "index.html").read_text()
    block = re.findall(r"<details>.*?</details>", _section(out, "pair0-settings"), re.DOTALL)[2]
    parts = re.findall(r'<th scope="row">method</th><td></td><td><b>(\w+)</b></td>', block)
    assert parts == ["fitnet", "kd"]

    for seed in project.seeds:
        project.metrics(f"students/big-small/both/{seed}", methods="kd + fitnet")
    (entry, *_) = project.collect().missing
    assert "methods 'kd + fitnet', params.yaml says 'fitnet + kd'" in entry.reason


def _section(out: Path, anchor: str) -> str:
    """Return a section of the page, up to the next one."""
    html = (out / "index.html").read_text()
    part = html[html.index(f'<section id="{anchor}">') :]
    return part[: part.index("</section>")]


def test_a_gain_whose_interval_includes_zero_is_said_to(project: Project) -> None:
    for seed, plus in zip(project.seeds, (4.0, -3.0, 1.0), strict=True):
        top1 = project.metrics(f"pretrained/small/{seed}")["top1"] + plus
        for run in ("kd", "fitnet"):
            project.metrics(f"students/big-small/{run}/{seed}", top1=top1)
    part = Links(_section(project.run(), "overview")).text
    assert "(interval includes zero). 0 of 2 runs clearly gain" in part
    assert part.count("includes zero") == 3  # the headline and two rows
    assert "interval excludes zero)" not in part


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (("seeds", "datasets", "teachers", "students", "pairs", "runs", "distill"), "has no seeds:"),
        (
            ("datasets", "teachers", "students", "pairs", "runs", "distill"),
            "has no datasets, teachers or pairs:",
        ),
        (("teachers", "students", "pairs", "runs", "distill"), "has no teachers or pairs:"),
        (("pairs", "runs", "distill"), "has no pairs:"),
        (("seeds", "distill"), "has no seeds:"),
    ],
)
def test_a_project_without_students_says_that_there_is_nothing_to_report(
    project: Project, gone: tuple[str, ...], words: str
) -> None:
    for name in gone:
        project.params[name] = type(project.params[name])()
    project.write_params()
    out = project.run()
    html = (out / "index.html").read_text()
    links = Links(html)
    assert links.open == []
    assert {target[1:] for target in links.targets} <= set(links.names)
    assert "There is nothing to report" in links.text
    assert words in links.text
    assert ("What follows is about its teachers" in links.text) == ("teachers" not in gone)
    assert 'id="overview"' not in html
    assert ("<h1>Distillation</h1>" in html) == ("datasets" in gone)
    assert rows(out / "results.csv") == []
    assert json.loads((out / "summary.json").read_text())["pairs"] == {}


# Channel consistency.


NUMBERS = {
    "gamma": {"identity": 1.25, "random": 0.5, "greedy": 31.5, "bipartite": 30.0},
    "dead": {"teacher": 2, "student": 0},
    "overlap": {"plain": {"top10": 18.0}, "students": {"top10": 32.0}, "transformed": {"top10": 74.0}},
    "theta0": {"kl": 0.89, "l2": 277.19, "l2_transformed": 189.93},
    "alone": {"l2": 7.0, "l2_transformed": 5.0},  # the store holds no logits
}


def matched(project: Project, folder: str = "own", **changed: Any) -> Path:
    """Add a matching of two channels, 2x2 maps, that a run asks for; return the file of its arrays."""
    if "kcd" not in project.params["runs"]:
        places = {"student_tap": "stage2", "teacher_feature": "stage2"}
        project.params["matchings"] = {"kcd": places | {"pictured": 1}}
        permutation = {"permutation": {"features": ["stage2"]}}
        project.ask("kcd", methods={"mimicry": places}, transform=permutation)
    numbers = NUMBERS | changed
    by_seed = {str(seed): numbers | {"dead": {"teacher": 2 + seed, "student": 0}} for seed in project.seeds}
    path = project.match(folder, "kcd", by_seed)
    for seed in project.seeds:
        project.student("big-small", "kcd", seed)
    return path


def borrow(project: Project) -> Path:
    """Add another teacher, and a matching of the pair's students with it."""
    project.params["teachers"]["other"] = project.params["teachers"]["big"] | {"seed": 1}
    wanted = {"pair": "big-small", "teacher": "other", "student": "small", "matching": "kcd"}
    project.params["borrowed"] = {"lent": wanted}
    project.write_params()
    project.teacher("other")
    return matched(project, "lent", gamma={"bipartite": 27.5})


def test_consistency_is_shown_in_tables_and_pictures(project: Project) -> None:
    matched(project)
    project.metrics("students/big-small/kd/0", teacher_kl=0.25, teacher_l2=3.5)
    for seed in (1, 2):
        project.metrics(f"students/big-small/kd/{seed}", teacher_kl=0.25, teacher_l2=3.5)
    html = (project.run() / "index.html").read_text()
    page_links = Links(html)
    assert not page_links.loaded or all(link.startswith("data:") for link in page_links.loaded)
    for words in (
        "Channel consistency",
        "31.500",
        "30.000",
        "277.190",
        "189.930",
        "32.0",
        "74.0",
        "0.250",
    ):
        assert words in page_links.text, words
    assert "3.0" in page_links.text  # dead channels of the teacher, the mean over seeds
    assert page_links.text.count("kcd: ") == 5
    assert "class dog" in page_links.text


def test_borrowed_matchings_stand_beside_the_pairs_own(project: Project) -> None:
    matched(project)
    assert "borrowed as" not in _section(project.run("before"), "pair0-consistency")
    path = borrow(project)
    out = project.run()
    links = Links((out / "index.html").read_text())
    assert len(links.names) == len(set(links.names))
    part = _section(out, "pair0-consistency")
    head, *lines = re.findall(r"<tr>.*?</tr>", part[: part.index("</table>")])
    assert "borrowed as" in head
    own, lent = (re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", line) for line in lines)
    assert own[:4] == ["kcd", "\N{EN DASH}", "correlation", "bipartite"]
    assert lent[:4] == ["kcd with other", "lent", "correlation", "bipartite"]
    assert any("30.000" in cell for cell in own)
    assert any("27.500" in cell for cell in lent)
    assert Links(part).text.count("kcd with other: ") == 5  # pictures
    path.unlink()
    (entry,) = project.collect().missing
    assert (entry.what, entry.command) == ("matchings big-small/lent", "dvc repro match_borrowed@lent")
    assert "lent/kcd/measured/0.npz does not exist" in entry.reason


def test_measurements_that_lack_a_seed_are_damaged(project: Project) -> None:
    matched(project)
    project.match("own", "kcd", {"0": NUMBERS, "1": NUMBERS})
    for seed in project.seeds:
        project.student("big-small", "kcd", seed)
    with pytest.raises(DamagedArtifactError, match=r"own.json: kcd lacks 2. .*match_channels@big-small$"):
        project.run()


def test_a_pair_without_matchings_has_no_such_section(project: Project) -> None:
    assert "Channel consistency" not in (project.run() / "index.html").read_text()


def test_a_missing_matching_is_reported_with_its_stage(project: Project) -> None:
    path = matched(project)
    path.write_bytes(b"nothing")
    with pytest.raises(
        DamagedArtifactError, match=r"dvc repro --force --single-item match_channels@big-small$"
    ):
        project.collect()
    path.unlink()
    students = [f"dvc repro evaluate@big-small/kcd-{seed}" for seed in project.seeds]
    commands = [entry.command for entry in project.collect().missing]
    assert commands == ["dvc repro match_channels@big-small", *students]
