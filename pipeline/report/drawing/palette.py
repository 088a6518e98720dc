"""Colors of the report: names, so that the page's style sheet decides between light and dark.

A figure is drawn in the light colors, and each is then replaced by its variable of `page.css`. The series can be
told apart by people who are color-blind (after Okabe and Ito 2008); marks and dashes tell them apart as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeline.params.sections import ALONE
from pipeline.report.trainings import BASELINE, OfRuns

INK, MUTED, FAINT, GRID, PAPER = "#1f2329", "#626870", "#b3b0aa", "#e3e0da", "#fffefc"
UP, DOWN = "#0a7553", "#b23a14"
SERIES = ("#0072b2", "#cf7a00", "#00916a", "#b04f93", "#3a9bd9", "#c4451c")
SHADES = {
    INK: "ink",
    MUTED: "muted",
    FAINT: "faint",
    GRID: "grid",
    PAPER: "paper",
    UP: "up",
    DOWN: "down",
} | {color: f"series{number}" for number, color in enumerate(SERIES)}
MARKS = ("o", "s", "D", "^", "v", "P")
DASHES = ((), (5.0, 2.0), (1.5, 1.5))


@dataclass(frozen=True)
class Style:
    """How a run is drawn, the same in all figures of its pair.

    Attributes:
        color: of `SERIES`, or a gray.
        mark: of its dots.
        dash: of its lines; empty is solid.
        named: it stands in the legend; the others are in gray.
    """

    color: str
    mark: str
    dash: tuple[float, ...]
    named: bool = True


def styles(pair: OfRuns[Any]) -> dict[str, Style]:
    """Return the style of every run of a pair.

    The student alone, the baseline and the best of the others have a color of their own; so a pair with thirty
    runs is still a picture.
    """
    # These two keep their colors on every page, whatever else is listed.
    known = [name for name in (ALONE, BASELINE) if any(run.name == name for run in pair.runs)]
    ranked = [run.name for run in pair.ranked() if run.name not in known]
    chosen = {*known, *ranked[: len(SERIES) - 1]}  # the first color is the baseline's

    styled, used = {}, 1
    for run in pair.runs:
        if run.name not in chosen:
            styled[run.name] = Style(FAINT, "o", (), named=False)
        elif run.name == ALONE:
            styled[run.name] = Style(MUTED, "o", (1.5, 1.5))
        elif run.name == BASELINE:
            styled[run.name] = Style(SERIES[0], MARKS[0], ())
        else:
            styled[run.name] = series(used)
            used += 1
    return styled


def series(number: int) -> Style:
    """Return the style of the `number`-th series."""
    place = number % len(SERIES)
    return Style(SERIES[place], MARKS[place], DASHES[number // len(SERIES) % len(DASHES)])


def variables(svg: str) -> str:
    """Replace the colors of the palette in `svg` by variables of the style sheet."""

    def variable(match: re.Match[str]) -> str:
        name = SHADES.get(match[0].lower())
        return f"var(--{name})" if name else match[0]

    return re.sub(r"#[0-9a-fA-F]{6}\b", variable, svg)
