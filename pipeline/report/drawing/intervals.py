"""Gains with their intervals beside a zero line: what excludes zero is seen at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.report.drawing import palette, text
from pipeline.report.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (palette.MUTED, palette.UP, palette.DOWN)  # by verdict: includes zero, above, below


def height(number: int) -> float:
    """Return the height in inches of a picture with `number` rows."""
    return 0.75 + 0.27 * number


def paint(ax: Axes, gains: Sequence[tuple[str, Estimate]], title: str) -> None:
    """Draw gains with their names, the first on top: filled where the interval excludes zero."""
    ax.axvline(0, color=palette.INK, linewidth=1.1)
    for row, (_, gain) in enumerate(gains):
        color = COLORS[gain.verdict]
        if gain.half is not None:
            ends = (gain.mean - gain.half, gain.mean + gain.half)
            ax.hlines(row, *ends, color=color, linewidth=2.2)
            ax.vlines(ends, row - 0.16, row + 0.16, color=color, linewidth=1.6)
        # Filled or hollow says the same as the color, to those who cannot tell the colors apart.
        face = color if gain.verdict else palette.PAPER
        ax.plot([gain.mean], [row], marker="D", markersize=5.5, color=color, mfc=face, mew=1.2)
    rows(ax, [name for name, _ in gains], title)


def rows(ax: Axes, names: Sequence[str], title: str) -> None:
    """Finish axes that have a row for each run.

    Args:
        ax: the axes.
        names: of the rows, the first on top.
        title: what x is.
    """
    ax.set_yticks(range(len(names)), [text.short(name) for name in names])
    ax.tick_params(axis="y", length=0, labelcolor=palette.INK)
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.06)
    ax.locator_params(axis="x", nbins=6)
    ax.set_title(title)
