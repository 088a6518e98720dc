"""The table of all methods on the page of methods, with measured gains and without."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import plugin

DOCS = Path(__file__).parents[2] / ".github" / "docs"
GAINS = """pair,run,key,mean,std,gain,gain_half,gain_over_kd,gain_over_kd_half,seeds
big-small,student,student,60.0,0.2,,,,,3
big-small,kd,kd,61.0,0.2,1.0,0.25,,,3
big-small,words,"letkd[words]",61.5,0.2,1.5,1.75,-0.5,0.25,3
big-small,both,at+kd,62.0,,2.0,,1.0,,1
big-small,slkd,kd/self_learning,61.25,0.2,1.25,0.5,0.25,0.5,3
big-small,kcd,mimicry/anchors|permutation[ranges=10],61.75,0.2,1.75,0.5,0.75,0.5,3
"""


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import what makes the table, as mkdocs does."""
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("method_table")


def cells(markdown: str) -> dict[str, list[str]]:
    """Return the cells of every row by the plug-in that it is of."""
    rows = [line[2:-2] for line in markdown.splitlines() if line.startswith("| ")]
    split = [re.split(r"(?<!\\) \| ", row) for row in rows]
    assert {len(row) for row in split} == {len(split[0])}
    return {match[1]: row for row in split if (match := re.match(r"\[`(\w+)`\]", row[0]))}


def test_without_gains_every_plug_in_has_a_row_with_paper_and_needs(
    table: ModuleType, tmp_path: Path
) -> None:
    made = table.table(tmp_path / "none.csv")
    found = cells(made)
    listed = {name for kind in ("methods", "schedules", "transforms") for name in plugin.names(kind)} - {
        "final"
    }
    assert set(found) == listed
    assert "gain" not in made
    for name, (_, paper, what, reads) in found.items():
        assert re.search(r"arxiv\.org/abs/\d{4}\.\d+\)$|\d{4}$", paper), name
        # A name alone, such as "DSN.", would say nothing.
        assert len(what.split()) > 3, name
        assert reads, name
    assert found["kd"][1:] == [
        "[1503.02531](https://arxiv.org/abs/1503.02531)",
        "The student learns labels and the teacher's softened logits.",
        "`logits`",
    ]
    assert found["fsp"][1] == "CVPR 2017"
    assert found["letkd"][3] == "`final`; table `words`; leaves `kd_layer` in the student"
    assert found["ab"][3].endswith("a phase of its own")


def test_gains_of_a_report_stand_in_the_rows_of_what_a_run_consists_of(
    table: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "gains.csv"
    path.write_text(GAINS)
    made = table.table(path)
    found = {name: line[4:] for name, line in cells(made).items()}
    assert found["kd"] == ["**+1.00 ± 0.25**<br>`at+kd` +2.00", "`at+kd` +1.00"]
    assert found["letkd"] == ["`letkd[words]` +1.50 ± 1.75", "`letkd[words]` **\N{MINUS SIGN}0.50 ± 0.25**"]
    assert found["self_learning"] == [
        "`kd/self_learning` **+1.25 ± 0.50**",
        "`kd/self_learning` +0.25 ± 0.50",
    ]
    # What has both a schedule and a transform stands with the transform, and a key's own bar is no new cell.
    assert found["permutation"][0] == r"`mimicry/anchors\|permutation[ranges=10]` **+1.75 ± 0.50**"
    assert found["anchors"] == found["mimicry"] == found["crd"] == ["", ""]
    assert "on big-small, paired by seed over 3 or 1 seeds" in made


def test_the_page_has_the_table(table: ModuleType) -> None:
    hooks = importlib.import_module("hooks")
    page = hooks.on_page_markdown((DOCS / "methods.md").read_text("utf-8"))
    assert table.table() in page
