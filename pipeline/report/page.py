"""The page: a list of sections, of the whole project and of each pair, in one self-contained html file.

A section is a file of `pipeline/report/sections` with a `TITLE` and a function `section` that takes the results, or
the results and a pair, and returns markup; empty markup leaves the section out. A new one is that file and its
name in a tuple below.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.report.results import Results

OPENING = ("overview",)
OF_PAIR = (
    "scores",
    "curves",
    "weights",
    "trajectories",
    "confusion",
    "probe",
    "consistency",
    "correlation",
    "embedding",
    "cost",
)
CLOSING = (
    "tradeoff",
    "teachers",
    "caches",
    "tables",
    "sizes",
    "discriminants",
    "subclasses",
    "templates",
    "datasets",
)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: what a link points at.
        title: its heading.
        content: its body.
        parts: sections within it.
    """

    anchor: str
    title: str
    content: Markup
    parts: tuple[Section, ...] = ()


def page(results: Results) -> str:
    """Return the page as html."""
    sections = [*_whole(OPENING, results)]
    for number, pair in enumerate(results.pairs):
        parts = []
        for name in OF_PAIR:
            module = importlib.import_module(f"pipeline.report.sections.{name}")
            content = module.section(results, pair)
            if content:
                parts.append(Section(f"pair{number}-{name}", module.TITLE, content))
        lead = Markup('<p class="lead">Teacher <b>{}</b>, student <b>{}</b>, on <b>{}</b>.</p>').format(
            pair.teacher.name, pair.student, pair.dataset.name
        )
        sections.append(Section(f"pair{number}", pair.name, lead, tuple(parts)))
    sections += _whole(CLOSING, results)
    files = resources.files("pipeline.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files / "page.html").read_text("utf-8"))
    return template.render(
        style=Markup((files / "page.css").read_text("utf-8")),
        title=" and ".join(results.datasets),
        summary=_summary(results),
        sections=sections,
    )


def _whole(names: tuple[str, ...], results: Results) -> list[Section]:
    found = []
    for name in names:
        module = importlib.import_module(f"pipeline.report.sections.{name}")
        content = module.section(results)
        if content:
            found.append(Section(name, module.TITLE, content))
    return found


def _summary(results: Results) -> list[tuple[str, str]]:
    runs = {run.name for pair in results.pairs for run in pair.runs[1:]}
    students = sum(len(run.students) for pair in results.pairs for run in pair.runs)
    return [
        ("data", ", ".join(results.datasets)),
        ("pairs", str(len(results.pairs))),
        ("runs", str(len(runs))),
        ("seeds", ", ".join(str(seed) for seed in results.seeds)),
        ("students", str(students)),
    ]
