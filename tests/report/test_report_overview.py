"""Whether a run gains: in words, in color and beside a zero line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from report_fixtures import Links, Project

from pipeline.report import statistics
from pipeline.report.drawing import intervals, palette, text
from pipeline.report.sections import overview
from pipeline.report.statistics import Estimate


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
    spans = [lines.get_segments()[0][:, 0].tolist() for lines in ax.collections[::2]]  # type: ignore[attr-defined]
    np.testing.assert_allclose(spans, [[1.5, 2.5], [-0.3, 0.7], [-2.5, -1.5]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
