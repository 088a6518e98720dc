"""The report of data with boxes, made by the stages themselves on a few tiny images."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_fixtures import DETECTOR, PROJECT, SETTINGS, tiny_data
from error_fixtures import one_line
from report_fixtures import Links, rows

from pipeline.artifacts import arrays, closure, publish
from pipeline.detection.prepared import Split
from pipeline.detection.sample import Detected
from pipeline.errors import DamagedArtifactError, MissingArtifactError
from pipeline.params import tasks
from pipeline.params.sections import ALONE
from pipeline.report import beside, published
from pipeline.report.beside import Official
from pipeline.report.collect.collect import collect
from pipeline.report.detectors import BoxRun, Detection
from pipeline.report.results import Results
from pipeline.report.sections import curves, detection, teachers
from pipeline.runs.blocks import blocks
from pipeline.runs.check import project
from stages import (
    distill,
    evaluate,
    inputs,
    match_channels,
    pretrain_student,
    report,
    student_inputs,
    train_teacher,
)

pytest.importorskip("pycocotools")
SEEDS = (0, 1)
PARAMS: dict[str, Any] = PROJECT | {
    "seeds": list(SEEDS),
    "recipes": {"quick": {"iterations": 4, "batch_size": 2, "learning_rate": 0.02, "milestones": []}},
    "teachers": PROJECT["teachers"] | {"idle": DETECTOR | {"seed": 8}},
}
# How far what is found lies from the truth, in pixels, by run and seed: farther is worse.
SHIFTS = {ALONE: (3.0, 4.0), "mimic": (2.0, 2.5), "kcd": (1.0, 1.5)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose stages have all run but the report."""
    folder = tmp_path_factory.mktemp("made")
    artifacts, data, params = folder / "artifacts", folder / "prepared/toys", folder / "params"
    tiny_data(data)
    written = blocks(project(PARAMS))
    for name, block in written.items():
        publish.write_json(params / f"{name}.json", block.model_dump(mode="json"))
    code = folder / "code"
    for stage, module in tasks.modules().items():
        publish.write_json(code / f"detection/{stage}.json", closure.code_hashes([module]))
    for run in written["pairs/pair"].model_dump()["runs"].values():
        for plug in run["plugins"]:
            module = f"pipeline.distillation.{plug.replace('/', '.')}"
            publish.write_json(code / f"{plug}.json", closure.code_hashes([module]))

    for name in PARAMS["teachers"]:
        train_teacher.main(
            params / f"teachers/{name}/train.json", data, artifacts / f"teachers/{name}", device="cpu"
        )
        judge(artifacts, f"teachers/{name}", 0.0, data)
    student = artifacts / "inputs/students/small.json"
    student_inputs.main(params / "students/small.json", data, code, student)
    alone = [artifacts / f"pretrained/small/{seed}" for seed in SEEDS]
    pretrain_student.main([student] * len(SEEDS), list(SEEDS), alone, device="cpu")
    weights, nothing = artifacts / "teachers/finder/weights", folder / "nothing"
    match_channels.main(
        params / "matchings/pair.json", folder / "prepared", artifacts / "pretrained/small", weights, nothing,
        artifacts / "matchings/pair/own", artifacts / "metrics/matchings/pair/own.json", device="cpu",
    )  # fmt: skip
    inputs.main(
        params / "pairs/pair.json", folder / "prepared", weights, nothing, nothing, nothing, nothing,
        artifacts / "matchings/pair", nothing, code, artifacts / "inputs/pairs/pair",
    )  # fmt: skip
    for seed in SEEDS:
        judge(artifacts, f"pretrained/small/{seed}", SHIFTS[ALONE][seed])
        for run in PARAMS["runs"]:
            key = f"students/pair/{run}/{seed}"
            distill.main(
                [artifacts / f"inputs/pairs/pair/{run}/{seed}.json"], [artifacts / key], device="cpu"
            )
            judge(artifacts, key, SHIFTS[run][seed])
    return folder


def judge(artifacts: Path, key: str, shift: float, data: Path | None = None) -> None:
    """Evaluate a detector as if it found every object, `shift` pixels to the right of where it is."""

    def near(_: object, split: Split, *others: object) -> list[Detected]:
        truth = [split.target(row) for row in range(len(split))]
        scores = [torch.linspace(0.9, 0.4, len(target.labels)) for target in truth]
        return [
            Detected(target.boxes + torch.tensor([shift, 0, shift, 0]), score, target.labels)
            for target, score in zip(truth, scores, strict=True)
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.evaluation.detectors.detections", near)
        metrics, found = artifacts / f"metrics/{key}.json", artifacts / f"predictions/{key}.npz"
        evaluate.main(artifacts / key, metrics, found, data, device="cpu")


@pytest.fixture(scope="module")
def written(made: Path) -> Path:
    """Return the folder of the report."""
    out = made / "report"
    report.main(made / "params", made / "artifacts", made / "prepared", out)
    return out


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """Return a copy of all that the report reads, to be damaged."""
    for name in ("artifacts", "params"):
        shutil.copytree(made / name, tmp_path / name)
    (tmp_path / "prepared").symlink_to(made / "prepared")
    return tmp_path


def collected(folder: Path) -> Results:
    return collect(folder / "params", folder / "artifacts", folder / "prepared")


def left_out(results: Results) -> list[tuple[str, str]]:
    return [(entry.what, entry.command) for entry in results.missing]


def runs(results: Results) -> dict[str, list[int]]:
    (pair,) = results.detection.pairs
    return {run.name: [student.seed for student in run.students] for run in pair.runs}


def measured(made: Path, key: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((made / f"artifacts/metrics/{key}.json").read_text())
    return content


def test_the_curves_of_an_evaluation_enclose_its_average_precisions(made: Path) -> None:
    key = "students/pair/mimic/1"
    found = arrays.read(made / f"artifacts/predictions/{key}.npz", "")
    assert 0 < measured(made, key)["AP"] < measured(made, key)["AP50"]
    for name in ("AP", "AP50", "AP75"):
        assert found[f"curve_{name}"].shape == found["recalls"].shape == (101,)
        assert 100 * found[f"curve_{name}"].mean() == pytest.approx(measured(made, key)[name], abs=1e-9)


def test_a_row_for_each_teacher_and_for_each_run_and_seed(made: Path, written: Path) -> None:
    listed = rows(written / "detection.csv")
    keys = ["teachers/finder", "teachers/idle"]
    keys += [f"pretrained/small/{seed}" for seed in SEEDS]
    keys += [f"students/pair/{run}/{seed}" for run in ("mimic", "kcd") for seed in SEEDS]
    assert len(listed) == len(keys)
    for row, key in zip(listed, keys, strict=True):
        assert float(row["AP"]) == measured(made, key)["AP"]
        assert float(row["best_AP"]) == measured(made, key)["best_AP"]
    assert {row["AP_large"] for row in listed} == {""}  # no object is large
    assert not any("top1" in name for name in listed[0])
    assert {row["published"] for row in listed} == {""}
    assert not (written / "detection_published.csv").exists()
    # Accuracies and average precisions are never in one column.
    assert rows(written / "results.csv") == []


def test_gains_are_paired_by_seed(made: Path, written: Path) -> None:
    for measure in ("AP", "AP75"):
        alone = [measured(made, f"pretrained/small/{seed}")[measure] for seed in SEEDS]
        ours = [measured(made, f"students/pair/kcd/{seed}")[measure] for seed in SEEDS]
        first, second = (value - other for value, other in zip(ours, alone, strict=True))
        # Of two values: t of 95 % and one degree of freedom is 12.706.
        half = 12.7062047 * abs(first - second) / 2
        (row,) = [
            row
            for row in rows(written / "detection_gains.csv")
            if (row["run"], row["measure"]) == ("kcd", measure)
        ]
        assert float(row["mean"]) == pytest.approx(sum(ours) / 2)
        assert float(row["gain"]) == pytest.approx((first + second) / 2)
        assert float(row["gain_half"]) == pytest.approx(half)

    summary = json.loads((written / "summary.json").read_text())
    assert summary["pairs"] == {}
    assert summary["detection"]["teachers"].keys() == {"finder", "idle"}
    of_run = summary["detection"]["pairs"]["pair"]["kcd"]
    assert of_run["seeds"] == of_run["AP_gain_seeds"] == 2
    gains = {(row["run"], row["measure"]): row for row in rows(written / "detection_gains.csv")}
    assert of_run["AP_gain"] == float(gains["kcd", "AP"]["gain"])


@pytest.fixture
def on_coco(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the shapes be COCO, and have numbers published of this pair; return its detectors' name."""
    whole = Official("", "disk", 3, None, {"train": 6, "test": 3})
    monkeypatch.setitem(beside.OFFICIAL, "COCO", whole)
    network = str(DETECTOR["network"])
    table = [row for row in published.published() if row.student == "faster_rcnn_resnet18"]
    rows_of_pair = [replace(row, teacher=network, student=network) for row in table]
    monkeypatch.setattr(beside, "published", lambda: rows_of_pair)
    return network


def test_published_average_precisions_stand_beside_ours(made: Path, on_coco: str, tmp_path: Path) -> None:
    out = tmp_path / "report"
    report.main(made / "params", made / "artifacts", made / "prepared", out)
    ap = {seed: measured(made, f"students/pair/kcd/{seed}")["AP"] for seed in SEEDS}
    listed = [row for row in rows(out / "detection.csv") if row["run"] == "kcd"]
    for row in listed:
        assert (row["published"], row["published_rule"]) == ("36.8", "unknown")
        assert row["published_source"] == "KCD, Table 9"
        assert float(row["difference"]) == pytest.approx(ap[int(row["seed"])] - 36.8)
    # The table's L2 has a matching, the identity, since one of its pairs differs in channels.
    assert {row["published"] for row in rows(out / "detection.csv") if row["run"] == "mimic"} == {""}

    whole = {row["run"]: row for row in rows(out / "detection_published.csv")}
    assert list(whole) == ["teacher", ALONE, "kcd"]
    assert [float(row["published"]) for row in whole.values()] == [41.6, 33.6, 36.8]
    assert {row["metric"] for row in whole.values()} == {"AP"}
    assert float(whole["kcd"]["ours"]) == pytest.approx(sum(ap.values()) / 2)
    assert float(whole["kcd"]["difference"]) == pytest.approx(sum(ap.values()) / 2 - 36.8)
    remarks = whole["kcd"]["remarks"]
    assert "ours has 2 epochs, theirs 24.3; our teacher has 100.00, theirs 41.60" in remarks
    # The published detectors are torchvision's usual ones, with its weights of ImageNet.
    for role in ("teacher", "student"):
        assert f"our {role} is built with weights none, norm {SETTINGS.norm or 'batch'}" in remarks
    assert f"pyramid_width {SETTINGS.pyramid_width}" in remarks

    # They are in no file and no section of accuracies.
    assert not (out / "published.csv").exists()
    assert rows(out / "results.csv") == []
    links = Links((out / "index.html").read_text())
    assert "AP as published, beside ours" in links.text
    assert "Published beside measured" not in links.text
    assert "detection_published.csv" in links.files


def test_a_part_of_coco_is_named_and_not_compared(
    made: Path, on_coco: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(beside.OFFICIAL["COCO"], samples={"train": 118_287, "test": 5_000})
    monkeypatch.setitem(beside.OFFICIAL, "COCO", whole)
    (pair,) = collected(made).detection.pairs
    assert beside.beside(pair) == []
    assert "toys is COCO with 6 train images in the place of 118,287" in detection._published(pair)
    assert detection._published(replace(pair, runs=(other(pair.alone),))) == ""


def other(run: BoxRun) -> BoxRun:
    """Return a run of a network of which nothing is published."""
    students = [replace(one, metrics={**one.metrics, "network": "another"}) for one in run.students]
    return replace(run, students=tuple(students))


def test_the_page_shows_tables_curves_and_boxes_and_speaks_of_no_accuracy(written: Path) -> None:
    html = (written / "index.html").read_text()
    links = Links(html)
    assert links.open == []
    assert len(set(links.names)) == len(links.names)
    assert {target.removeprefix("#") for target in links.targets} <= set(links.names)
    assert all(place.startswith("data:image/png;base64,") for place in links.loaded)
    assert all((written / name).exists() for name in links.files)

    assert "top-1" not in html
    part = html[html.index('<section id="detection"') : html.index('<section id="pair0"')]
    for words in ("AP50", "AP75", "AP, small", f"gain over {ALONE}", "precision, AP50", "recall"):
        assert words in part
    assert "AP, large" not in part
    # Three images, each once for the pair and once for the teacher of no pair, and in as many panels as are compared.
    assert part.count("data:image/png") == 6
    assert part.count("<b>truth</b>") == 6
    assert part.count("<b>kcd</b>") == 3
    assert part.count("<b>mimic</b>") == 0  # the best run alone
    assert len(html) < 1_000_000


def test_boxes_are_drawn_where_they_are_and_only_sure_ones(made: Path, written: Path) -> None:
    html = (written / "index.html").read_text()
    results = collected(made)
    data = results.detection.datasets["toys"]
    left, top, right, bottom = data.test.annotations.boxes[0].tolist()
    first = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
    moved = first.replace(f'x="{left:.1f}"', f'x="{left + SHIFTS["kcd"][0]:.1f}"', 1)
    assert first in html
    assert moved in html
    found = results.detection.teachers["idle"].trained.found
    assert (found.scores < 0.5).any()
    assert f"{found.scores.min():.2f}</title>" not in html


@pytest.mark.parametrize(
    "path", ["metrics/{}.json", "predictions/{}.npz", "{}/training.json", "inputs/pairs/{}.json"]
)
def test_a_student_that_is_not_whole_is_left_out_and_named(copied: Path, path: str) -> None:
    key = "pair/kcd/1" if "inputs" in path else "students/pair/kcd/1"
    (copied / "artifacts" / path.format(key)).unlink()
    results = collected(copied)
    assert left_out(results) == [("student of pair/kcd, seed 1", "dvc repro evaluate@pair/kcd-1")]
    assert runs(results) == {ALONE: [0, 1], "mimic": [0, 1], "kcd": [0]}


def test_a_pair_without_its_teacher_or_its_student_alone_is_named(copied: Path) -> None:
    for seed in SEEDS:
        (copied / f"artifacts/metrics/pretrained/small/{seed}.json").unlink()
    results = collected(copied)
    assert left_out(results)[-1] == ("pair pair", "dvc repro evaluate_pretrained@small-0")
    (copied / "artifacts/predictions/teachers/finder.npz").unlink()
    results = collected(copied)
    assert left_out(results) == [
        ("teacher finder", "dvc repro evaluate_teacher@finder"),
        ("pair pair", "dvc repro evaluate_teacher@finder"),
    ]
    assert results.detection.teachers.keys() == {"idle"}


def test_teachers_that_teach_nobody_are_reported(copied: Path, tmp_path: Path) -> None:
    alone = PARAMS | {"pairs": {}, "distill": []}
    shutil.rmtree(copied / "params")
    for name, block in blocks(project(alone)).items():
        publish.write_json(copied / f"params/{name}.json", block.model_dump(mode="json"))

    out = tmp_path / "report"
    report.main(copied / "params", copied / "artifacts", copied / "prepared", out)
    links = Links((out / "index.html").read_text())
    assert "There is nothing to compare" in links.text
    assert "no student is trained, so nothing is compared" in links.text
    assert "There is nothing to report" not in links.text
    assert all((out / name).exists() for name in links.files)
    assert not (out / "detection_gains.csv").exists()
    assert {row["teacher"] for row in rows(out / "detection.csv")} == {"finder", "idle"}


def test_a_run_may_be_called_like_a_teacher(made: Path) -> None:
    (pair,) = collected(made).detection.pairs
    named = replace(pair, runs=(*pair.runs[:2], replace(pair.runs[2], name="teacher")))
    page = str(detection._pair(named, len(SEEDS)))
    for name in ("teacher finder", "teacher"):
        assert page.count(f"<b>{name}</b>") == 3


def test_data_that_are_missing_are_named_with_their_teachers(copied: Path) -> None:
    (copied / "prepared").unlink()
    with pytest.raises(MissingArtifactError) as error:
        collected(copied)
    one_line(error, "No teacher and no pair can be reported", "data set toys", "dvc repro prepare_data@toys")


def test_what_was_made_from_other_settings_is_left_out(copied: Path) -> None:
    block = copied / "params/pairs/pair.json"
    content = json.loads(block.read_text())
    content["runs"]["kcd"]["recipe"]["learning_rate"] = 0.5
    block.write_text(json.dumps(content))
    results = collected(copied)
    assert runs(results) == {ALONE: [0, 1], "mimic": [0, 1]}
    assert "with other recipe" in results.missing[0].reason

    # A teacher that was trained by another recipe has taught all of them.
    block = copied / "params/teachers/finder/train.json"
    content = json.loads(block.read_text())
    content["recipe"]["learning_rate"] = 0.5
    block.write_text(json.dumps(content))
    assert left_out(collected(copied))[0] == ("teacher finder", "dvc repro evaluate_teacher@finder")


def test_a_matching_that_has_changed_since_leaves_its_run_out(copied: Path) -> None:
    folder = copied / "artifacts/matchings/pair/own/kcd"
    shutil.copy(folder / "1.npz", folder / "0.npz")
    results = collected(copied)
    assert runs(results) == {ALONE: [0, 1], "mimic": [0, 1], "kcd": [1]}
    assert left_out(results)[0] == ("matchings pair/own", "dvc repro match_channels@pair")


LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")


def shown(written: Path, name: str) -> str:
    """Return the part of the page that a section of the pair is."""
    html = (written / "index.html").read_text()
    part = html[html.index(f'<section id="pair0-{name}"') :]
    return part[: part.index("</section>")]


def test_a_pair_has_the_sections_that_do_not_ask_for_classes(written: Path) -> None:
    parts = re.findall(r'<section id="pair0-(\w+)"', (written / "index.html").read_text())
    assert parts == ["settings", "curves", "consistency", "cost"]


def test_every_loss_is_drawn_and_listed_by_epoch(made: Path, written: Path) -> None:
    part = shown(written, "curves")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", part)
    assert captions[0].startswith("AP by epoch")
    assert [caption.partition("(")[2].partition(")")[0] for caption in captions[1:5]] == [*LOSSES]
    assert [caption.partition(",")[0] for caption in captions[5:]] == ["mimic: mimic", "kcd: mimic"]

    listed = rows(written / "detection_curves.csv")
    for key in ("teachers/idle", "pretrained/small/1", "students/pair/kcd/0"):
        history = rows(made / f"artifacts/{key}/history.csv")
        own = [row for row in listed if row["detector"] == key]
        assert len(history) == 2
        assert [{name: row[name] for name in history[0]} for row in own] == history
        assert {row["mimic"] == "" for row in own} == {not key.startswith("students")}


def test_epochs_that_were_not_evaluated_are_passed_over(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = {"epoch": ["1", "2", "3"], "loss_classifier": ["3", "2", "1"], "AP": ["", "5", "7"]}
    results = collected(made)
    (pair,), teacher = results.detection.pairs, results.detection.teachers["finder"]
    student = replace(pair.alone.students[0], history=history)
    alone = replace(pair.alone, students=(student,), planned=1)
    lines: list[tuple[list[float], list[int]]] = []

    def note(ax: object, values: Any, style: object, epochs: Any) -> None:
        lines.append((values.tolist(), epochs.tolist()))

    monkeypatch.setattr(curves, "line", note)
    curves.section(results, replace(pair, runs=(alone,)))
    assert lines == [([5.0, 7.0], [2, 3]), ([3.0, 2.0, 1.0], [1, 2, 3])]

    lines.clear()
    monkeypatch.setattr(teachers, "line", note)
    taught = replace(teacher, trained=replace(teacher.trained, history=history | {"loss": ["3", "2", "1"]}))
    teachers.section(replace(results, detection=Detection(teachers={"finder": taught})))
    assert lines == [([5.0, 7.0], [2, 3]), ([3.0, 2.0, 1.0], [1, 2, 3])]


def test_channels_costs_and_settings_are_those_of_the_files(made: Path, written: Path) -> None:
    part = shown(written, "consistency")
    numbers = json.loads((made / "artifacts/metrics/matchings/pair/own.json").read_text())["kcd"]
    for name in ("identity", "random", "greedy", "bipartite"):
        mean = sum(numbers[str(seed)]["gamma"][name] for seed in SEEDS) / len(SEEDS)
        assert f"{mean:.3f}".replace("-", "\N{MINUS SIGN}") in part
    distance = sum(measured(made, f"students/pair/mimic/{seed}")["teacher_l2"] for seed in SEEDS) / 2
    assert f"{distance:.3f}" in part
    assert "KL" not in part

    part = shown(written, "cost")
    assert "images/s" in part
    assert not any(words in part for words in ("MACs", "multiply", "atency"))
    seconds = [measured(made, f"students/pair/kcd/{seed}")["train_seconds"] for seed in SEEDS]
    assert f'data-order="{sum(seconds) / 2!r}"' in part

    part = shown(written, "settings")
    facts = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", part)
    assert facts[(place := facts.index("pyramid_width")) : place + 3] == ["pyramid_width", "16", "16"]
    assert facts[(place := facts.index("reduction")) : place + 2] == ["reduction", "sum"]


def test_histories_and_matchings_that_have_changed_are_refused(copied: Path) -> None:
    path = copied / "artifacts/students/pair/kcd/0/history.csv"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"main", b"maim"))
    with pytest.raises(DamagedArtifactError) as error:
        collected(copied)
    one_line(error, "history.csv", "distill@pair/kcd-0")
    path.write_bytes(content)

    path = copied / "artifacts/metrics/matchings/pair/own.json"
    numbers = json.loads(path.read_text())
    numbers["kcd"]["1"]["gamma"]["greedy"] += 1
    path.write_text(json.dumps(numbers))
    with pytest.raises(DamagedArtifactError) as error:
        collected(copied)
    one_line(error, "is not what was written", "dvc repro --force --single-item match_channels@pair")
    path.unlink()
    results = collected(copied)
    assert left_out(results) == [("matchings pair/own", "dvc repro match_channels@pair")]
    assert runs(results) == {ALONE: [0, 1], "mimic": [0, 1], "kcd": [0, 1]}


def test_numbers_and_boxes_that_have_changed_are_refused(copied: Path) -> None:
    path = copied / "artifacts/metrics/students/pair/kcd/0.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"AP": 99.0}))
    with pytest.raises(DamagedArtifactError) as error:
        collected(copied)
    one_line(error, "is not what was written", "dvc repro --force --single-item evaluate@pair/kcd-0")

    path.write_text(json.dumps(content))
    place = copied / "artifacts/predictions/students/pair/kcd/0.npz"
    found = arrays.read(place, "")
    arrays.write(place, found | {"last_boxes": found["last_boxes"] + 1})
    with pytest.raises(DamagedArtifactError) as error:
        collected(copied)
    one_line(error, "does not belong to", "evaluate@pair/kcd-0")
