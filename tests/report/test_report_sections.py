"""The sections of a pair, on numbers that are known."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

import numpy as np
from report_fixtures import EPOCHS, Links, Project, rows

from pipeline.report.sections import settings
from pipeline.report.sections.confusion import shares
from pipeline.report.sections.correlation import differences
from pipeline.report.sections.embedding import embed


def test_confusion_by_hand(project: Project) -> None:
    results = project.collect()
    networks = results.pairs[0].runs[1].students
    expected = np.zeros((3, 3))
    for network in networks:
        for label, predicted in zip(project.label, network.prediction, strict=True):
            expected[label, predicted] += 100 / (20 * len(networks))
    np.testing.assert_allclose(shares(results.datasets["pets"], networks), expected, atol=1e-9)


def _accuracy(project: Project) -> str:
    html = (project.run() / "index.html").read_text()
    return html[html.index('<section id="pair0-scores">') : html.index('<section id="pair0-settings">')]


def test_settings_that_differ_are_columns(project: Project) -> None:
    assert "slots" not in re.findall(r"<th[^>]*>(\w+)</th>", _accuracy(project))
    for seed in project.seeds:
        project.metrics(f"students/big-small/kd/{seed}", source="online", slots=4)
    assert {"source", "slots"} <= set(re.findall(r"<th[^>]*>(\w+)</th>", _accuracy(project)))


def test_every_run_shows_its_settings(project: Project) -> None:
    project.params["runs"]["kd"]["config"] = {"temperature": 3.5, "places": {"final": {"weights": [1, 0.5]}}}
    project.params["runs"]["kd"]["recipe"] = {"epochs": 7}
    project.params["runs"]["kd"]["schedule"] = "self_learning"
    project.write_params()
    pair = project.collect().pairs[0]
    html = str(settings.section(project.collect(), pair))
    assert Links(html).open == []
    blocks = re.findall(r"<details>.*?</details>", html, re.DOTALL)
    assert [re.findall(r"<summary><b>(\w+)</b>", block) for block in blocks] == [["kd"], ["fitnet"]]
    kd, fitnet = (
        [f"{term}: {value}" for term, value in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", block)]
        for block in blocks
    )
    assert kd == [
        "method: kd",
        "kd: places.final.weights: 1, 0.5",  # the yaml writer sorts
        "kd: temperature: 3.5",
        "schedule: self_learning",
        "transform: none",
        "source: cached",
        "slots: all",
        "recipe: epochs: 7 (student alone: 240)",
    ]
    assert fitnet == ["method: fitnet", "schedule: final", "transform: none", "source: cached", "slots: all"]
    shared = Links(html[: html.index("<details>")]).text
    assert "learning rate0.05" in shared
    assert "milestones150, 180, 210" in shared


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


def test_fitted_tables_are_shown_whatever_they_measure(project: Project) -> None:
    project.fit("moments", {"mean": np.zeros(4), "std": np.ones(4)})
    quality = {"inertia": 12.25, "empty_clusters": 3.0, "by": {"x": 1.5}}
    project.json("metrics/tables/big-moments.json", quality)
    shown = Links((project.run() / "index.html").read_text()).text
    assert "empty clusters" in shown
    assert "12.25" in shown
    assert "by.x" in shown


def _with_columns(project: Project, run: str, seed: int, columns: dict[str, list[float]]) -> None:
    path = project.folder / f"artifacts/students/big-small/{run}/{seed}/history.csv"
    found = rows(path)
    for epoch, row in enumerate(found):
        row.update({name: str(values[epoch]) for name, values in columns.items()})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)


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
