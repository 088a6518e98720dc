"""The page: sections of the whole project and of each pair, in one html file that loads nothing.

A section is a file of `pipeline/report/sections`; the folder's listing is the catalogue, so a new section is its file
and nothing else. It holds

    TITLE = "Accuracy"                      # its heading
    LEAD = "whether a gain is clear."       # the line under the heading: what to look for
    GROUP = "pair"                          # "opening" and "closing": once on the page; "pair": once for each pair
    ORDER = 10                              # its place within the group, the smallest first
    NUMBERS = {"curves.csv": "one row for each run, seed and epoch"}    # optional: files of its numbers
    DETECTION = {"detection.csv": "..."}    # optional, in the group "pair": it shows pairs of detectors too, and these
                                            # are the files of their numbers

and `section(results)`, or in the group "pair" `section(results, pair)`, which returns markup. Empty markup leaves the
section out. "{pair}" in the path of a file is the pair's name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import ModuleType

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.report import sections
from pipeline.report.detectors import BoxPair
from pipeline.report.drawing import markup
from pipeline.report.results import Pair, Results


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: the target of links.
        title: the heading.
        lead: the line under the heading.
        content: the body.
        parts: the sections within it.
    """

    anchor: str
    title: str
    lead: Markup
    content: Markup
    parts: tuple[Section, ...] = ()


def page(results: Results) -> str:
    """Return the page as html."""
    shown = _whole("opening", results)
    if not results.pairs and not results.detection.pairs:
        shown.append(_nothing(results))
    pairs: list[Pair | BoxPair] = [*results.pairs, *results.detection.pairs]
    shown += [_pair(number, results, pair) for number, pair in enumerate(pairs)]
    shown += _whole("closing", results)

    files = resources.files("pipeline.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Read as packages' resources: they are found in an installed wheel too.
    template = environment.from_string((files / "page.html").read_text("utf-8"))

    return template.render(
        style=Markup((files / "page.css").read_text("utf-8")),
        title=" ".join(
            ["Distillation", *(["on", " and ".join(_datasets(results))] if _datasets(results) else [])]
        ),
        summary=_summary(results),
        provenance=results.provenance,
        sections=shown,
    )


def catalog(group: str) -> list[ModuleType]:
    """Return the section files of a group, in the order of the page."""
    names = sorted(entry.name for entry in pkgutil.iter_modules(sections.__path__))
    modules = [importlib.import_module(f"{sections.__name__}.{name}") for name in names]
    # Files of equal order stay in that of their names, so the page is the same everywhere.
    return sorted((module for module in modules if group == module.GROUP), key=lambda module: module.ORDER)


def _whole(group: str, results: Results) -> list[Section]:
    """Return the sections of the whole project that have something to show."""
    shown = []
    for module in catalog(group):
        content = module.section(results)
        if content:
            shown.append(_section(module, _name(module), content))
    return shown


def _nothing(results: Results) -> Section:
    """Return what stands in the place of the opening where no student is trained."""
    # Without seeds the pairs of params.yaml are not even collected.
    teachers = [*results.teachers, *results.detection.teachers]
    needed = {"datasets": _datasets(results), "teachers": teachers, "pairs": results.pairs}
    lacking = [name for name, entries in needed.items() if not entries] if results.seeds else ["seeds"]
    if results.missing:
        lead = Markup("No pair of params.yaml is whole, so nothing is compared.")
        return Section("nothing", "There is nothing to compare", lead, Markup())
    listed = " or ".join(filter(None, [", ".join(lacking[:-1]), lacking[-1]]))
    words = f"params.yaml has no {listed}: no student is trained, so nothing is compared."
    if teachers:
        words += " What follows is about its teachers and data sets."
    # What detectors find is shown above, though they teach nobody.
    title = f"There is nothing to {'compare' if results.detection.teachers else 'report'}"
    return Section("nothing", title, Markup("{}").format(words), Markup())


def _pair(number: int, results: Results, pair: Pair | BoxPair) -> Section:
    """Return a pair's section, with those of its group as parts."""
    parts, of_boxes = [], isinstance(pair, BoxPair)
    for module in catalog("pair"):
        if of_boxes and not hasattr(module, "DETECTION"):
            continue
        content = module.section(results, pair)
        if content:
            # By number: a pair may be called like a section.
            anchor, files = f"pair{number}-{_name(module)}", "DETECTION" if of_boxes else "NUMBERS"
            parts.append(_section(module, anchor, content, files, pair=pair.name))

    lead = Markup("Teacher <b>{}</b>, student <b>{}</b>, on <b>{}</b>.").format(
        pair.teacher.name, pair.student, pair.dataset.name
    )
    return Section(f"pair{number}", pair.name, lead, Markup(), tuple(parts))


def _section(
    module: ModuleType, anchor: str, content: Markup, files: str = "NUMBERS", **names: str
) -> Section:
    numbers: Mapping[str, str] = getattr(module, files, {})
    links = {path.format(**names): remark for path, remark in numbers.items()}
    body = content + markup.numbers(links) if links else content
    lead = Markup("<b>What to look for:</b> {}").format(module.LEAD)
    return Section(anchor, module.TITLE, lead, body)


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _datasets(results: Results) -> list[str]:
    return [*results.datasets, *results.detection.datasets]


def _summary(results: Results) -> list[tuple[str, str]]:
    pairs: list[Pair | BoxPair] = [*results.pairs, *results.detection.pairs]
    # The student alone comes first in every pair, and is not a run.
    runs = {run.name for pair in pairs for run in pair.runs[1:]}
    students = sum(len(run.students) for pair in pairs for run in pair.runs)
    return [
        ("data", ", ".join(_datasets(results)) or "none"),
        ("pairs", str(len(pairs))),
        ("runs", str(len(runs))),
        ("seeds", ", ".join(str(seed) for seed in results.seeds) or "none"),
        ("students", str(students)),
    ]
