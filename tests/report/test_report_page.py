"""The page: it loads nothing, its links lead somewhere, and a section is its file."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from report_fixtures import Links, Project, rows

from pipeline.report import page, sections
from pipeline.report.drawing import text


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


def test_the_report_needs_no_torch(project: Project) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom stages import report\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"f = Path({str(project.folder)!r})\n"
        "report.main(f / 'artifacts', f / 'prepared', f / 'report', f / 'params.yaml')\n"
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
