"""Published numbers beside measured ones, in the report and in its files."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import EPOCHS, Links, Project, rows

from pipeline.data.layout import Meta
from pipeline.data.prepared import Prepared
from pipeline.detection.layout import Meta as BoxMeta
from pipeline.report import beside
from pipeline.report.beside import OFFICIAL, Official, official, unlike
from pipeline.report.published import published

TITLE = "Published beside measured"
TABLE = Path(beside.__file__).with_name("published.csv")


@pytest.fixture
def cifar(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project of a pair that is in every table, as if its pets were all of CIFAR-100."""
    small = Official("digits", "cat", 3, project.meta.size, dict(project.meta.samples))
    monkeypatch.setitem(beside.OFFICIAL, "CIFAR-100", small)
    project.metrics("teachers/big", network="resnet56", top1=72.0, best_top1=72.5)
    for seed in project.seeds:
        project.metrics(f"pretrained/small/{seed}", network="resnet20")
    measured("kd", project, (70.0, 71.0, 72.0), (71.0, 72.0, 73.0))
    return project


def measured(run: str, project: Project, top1: tuple[float, ...], best: tuple[float, ...]) -> None:
    for seed, last, highest in zip(project.seeds, top1, best, strict=True):
        project.metrics(f"students/big-small/{run}/{seed}", network="resnet20", top1=last, best_top1=highest)


def compared(project: Project, run: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return the rows of published.csv of a run, by source and tables."""
    found = rows(project.run() / "published.csv")
    return {(row["source"], row["tables"]): row for row in found if row["run"] == run}


def printed(**cells: str) -> dict[str, str]:
    """Return the one row of the package's table that has these cells, read without the package's reader."""
    with TABLE.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if cells.items() <= row.items()]
    assert len(found) == 1
    return found[0]


def test_a_number_stands_beside_ours_by_its_own_rule(cifar: Project) -> None:
    cifar.distill("slkd", methods="kd", schedule="self_learning")
    measured("slkd", cifar, (71.0, 71.0, 71.0), (73.0, 73.0, 73.0))
    pair = {"dataset": "CIFAR-100", "teacher": "resnet56", "student": "resnet20", "metric": "top1"}

    row = compared(cifar, "kd")["letKD", "1, S1"]
    theirs = printed(source="letKD", table="1", method="KD", **pair)
    assert float(row["published"]) == float(theirs["value"])
    assert (row["published_rule"], theirs["rule"]) == ("last", "last")
    assert float(row["ours"]) == 71.0
    assert float(row["ours_half"]) == pytest.approx(
        4.302653 / 3**0.5, rel=1e-6
    )  # t of two degrees, deviation 1
    assert float(row["ours_best"]) == 72.0
    assert float(row["difference"]) == pytest.approx(71.0 - float(theirs["value"]))
    assert (row["seeds"], row["epochs"], row["published_epochs"]) == ("3", str(EPOCHS), "240.0")

    # SLKD's tables are of the best epoch, and one of them has this pair.
    row = compared(cifar, "slkd")["SLKD", "5"]
    theirs = printed(source="SLKD", table="5", method="SLKD", **pair)
    assert float(row["difference"]) == pytest.approx(73.0 - float(theirs["value"]))


def test_teacher_and_student_alone_have_rows(cifar: Project) -> None:
    assert float(compared(cifar, "teacher")["letKD", "1, S1, 3"]["difference"]) == pytest.approx(72.0 - 72.34)
    assert set(compared(cifar, "student")) == {("letKD", "1, S1, 3"), ("KCD", "7")}


def test_remarks_name_other_epochs_and_another_teacher(cifar: Project) -> None:
    remarks = compared(cifar, "kd")["letKD", "1, S1"]["remarks"]
    assert remarks == f"ours has {EPOCHS} epochs, theirs 240"
    cifar.metrics("teachers/big", top1=60.0)
    remarks = compared(cifar, "kd")["letKD", "1, S1"]["remarks"]
    assert remarks == f"ours has {EPOCHS} epochs, theirs 240; our teacher has 60.00, theirs 72.34"


def test_results_csv_has_the_first_number_of_a_run_and_how_far_each_seed_lies(cifar: Project) -> None:
    out = cifar.run()
    found = [row for row in rows(out / "results.csv") if row["run"] == "kd"]
    assert {row["published_source"] for row in found} == {"letKD, Tables 1, S1"}
    for row, top1 in zip(found, (70.0, 71.0, 72.0), strict=True):
        assert float(row["difference"]) == pytest.approx(top1 - float(row["published"]))


def test_the_section_is_on_the_page_and_links_its_file(cifar: Project) -> None:
    out = cifar.run()
    links = Links((out / "index.html").read_text())
    assert TITLE in links.text
    assert "published.csv" in links.files
    assert f"ours has {EPOCHS} epochs, theirs 240" in links.text


def test_other_data_and_other_networks_show_no_section(project: Project, cifar: Project) -> None:
    for seed in cifar.seeds:
        cifar.metrics(f"pretrained/small/{seed}", network="resnet8x0.25")
    out = cifar.run()
    assert TITLE not in (out / "index.html").read_text()
    assert not (out / "published.csv").exists()
    assert {row["published"] for row in rows(out / "results.csv")} == {""}


def test_digits_show_no_section(project: Project) -> None:
    project.metrics("teachers/big", network="resnet56")
    for seed in project.seeds:
        project.metrics(f"pretrained/small/{seed}", network="resnet20")
    assert TITLE not in (project.run() / "index.html").read_text()


def test_a_part_of_an_official_set_is_named_and_not_compared(
    cifar: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(OFFICIAL["CIFAR-100"], samples={"train": 120, "test": 60})
    monkeypatch.setitem(beside.OFFICIAL, "CIFAR-100", whole)
    out = cifar.run()
    text = Links((out / "index.html").read_text()).text
    assert "pets is CIFAR-100 with 90 train images in the place of 120" in text
    assert not (out / "published.csv").exists()


def meta(cifar: Meta, **changed: Any) -> Meta:
    classes = ("apple", "aquarium_fish", *(f"class{k}" for k in range(98)))
    whole = {"source": "cifar", "classes": classes, "size": 32, "samples": {"train": 50_000, "test": 10_000}}
    return cifar.model_copy(update=whole | changed)


def test_an_official_set_is_known_by_its_source_or_by_its_classes(project: Project) -> None:
    own = Prepared.open(project.folder / "prepared" / "pets").meta
    classes = tuple(f"class{k}" for k in range(100))
    assert official(meta(own)) == official(meta(own, source="image_folder")) == "CIFAR-100"
    assert official(meta(own, source="image_folder", classes=classes)) is None
    assert official(own) is None
    assert unlike(meta(own), "CIFAR-100") == ""
    held = {"train": 45_000, "test": 10_000, "holdout": 5_000}
    assert unlike(meta(own, samples=held), "CIFAR-100") == "45,000 train images in the place of 50,000"
    assert unlike(meta(own, size=64), "CIFAR-100") == "images of 64 pixels in the place of 32"


def test_every_published_data_set_is_known() -> None:
    assert {row.dataset for row in published()} == set(OFFICIAL)


def test_coco_is_known_by_its_classes_and_compared_whole_alone() -> None:
    hashes = {"train": "a", "test": "b"}
    sizes = {"train": 118_287, "test": 5_000}
    coco = BoxMeta(
        source="coco", classes=(*(f"class{k}" for k in range(79)), "toothbrush"), samples=sizes, boxes=sizes,
        mean=(0.5,), std=(0.5,), root=None, fingerprint=hashes, listing=hashes,
    )  # fmt: skip
    assert official(coco) == "COCO"
    assert unlike(coco, "COCO") == ""
    tiny = coco.model_copy(update={"samples": {"train": 80, "test": 80}})
    assert unlike(tiny, "COCO") == "80 train images in the place of 118,287"
    assert official(coco.model_copy(update={"classes": coco.classes[1:]})) is None


def test_gains_csv_has_paired_gains_over_alone_and_the_baseline(project: Project) -> None:
    results = project.collect()
    (pair,) = results.pairs
    found = {row["run"]: row for row in rows(project.run() / "gains.csv")}
    assert list(found) == ["student", "kd", "fitnet"]
    assert [found["fitnet"]["key"], found["fitnet"]["seeds"]] == ["fitnet", "3"]
    for run, name, base in (
        ("fitnet", "gain", "student"),
        ("fitnet", "gain_over_kd", "kd"),
        ("kd", "gain", "student"),
    ):
        runs = {entry.name: entry for entry in pair.runs}
        expected = runs[run].gain(runs[base])
        assert float(found[run][name]) == pytest.approx(expected.mean)
        assert float(found[run][f"{name}_half"]) == pytest.approx(expected.half)
    assert found["kd"]["gain_over_kd"] == found["student"]["gain"] == ""
