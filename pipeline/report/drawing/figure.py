"""Figures: drawn with matplotlib, kept as inline SVG whose text and colors are the page's.

The same data give the same bytes: no date, and identifiers that come from the figure's name.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.drawing import palette
from pipeline.report.drawing.palette import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 4.3  # inches; two stand side by side on a screen, one fills a telephone's
THIRD = 3.4  # three stand side by side
RC: Any = {  # matplotlib types each key
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.titlecolor": palette.MUTED,
    "axes.labelsize": 8.5,
    "axes.labelcolor": palette.MUTED,
    "axes.edgecolor": palette.FAINT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "grid.color": palette.GRID,
    "grid.linewidth": 0.7,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": palette.INK,
    "xtick.color": palette.FAINT,
    "ytick.color": palette.FAINT,
    "xtick.labelcolor": palette.MUTED,
    "ytick.labelcolor": palette.MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
}


def draw(
    name: str, caption: str, height: float, paint: Callable[[Axes], None], width: float = WIDTH
) -> Markup:
    """Draw one pair of axes.

    Args:
        name: of the figure, one of its kind on the page.
        caption: a sentence that stands below it.
        height: in inches.
        paint: draws on the axes.
        width: in inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    salt = "f" + hashlib.blake2b(name.encode(), digest_size=5).hexdigest()
    file = io.BytesIO()
    # The salt makes identifiers that matplotlib would draw at random those of the figure's name.
    with mpl.rc_context(RC | {"svg.hashsalt": salt}), warnings.catch_warnings():
        # A class name may hold letters that the font for measuring lacks; the reader's font draws them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.subplots())
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = _inline(file.getvalue().decode(), salt, caption)
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(svg, caption)


def line(
    ax: Axes, values: NDArray[np.float64], style: Style, epochs: NDArray[np.int64] | None = None
) -> None:
    """Draw a value an epoch, (epochs,), in a run's style; by default from the first epoch on."""
    settings: dict[str, Any] = {"color": style.color, "linewidth": 1.6 if style.named else 0.7}
    if style.dash:
        settings["dashes"] = style.dash
    ax.plot(range(1, len(values) + 1) if epochs is None else epochs, values, **settings)


def by_epoch(ax: Axes, title: str) -> None:
    """Finish axes whose x is the epoch; y is named by `title`."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.margins(x=0.02)
    ax.set_title(title)
    ax.set_xlabel("epoch")


def logarithmic(ax: Axes) -> None:
    """Make y logarithmic, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 100 else (1.0, 3.0), numticks=9))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(which="minor", length=0)


def _inline(text: str, salt: str, label: str) -> Markup:
    """Return what stands inside a page: no prologue, no metadata, no size of its own, identifiers made unique."""
    text = text[text.index("<svg") :]

    # A style sheet within an SVG would hold for the whole page.
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)

    # Without width and height the picture takes those of its place on the page.
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = Markup('<svg {} role="img" aria-label="{}">').format(Markup(box[0]), label)
    text = str(head) + text[text.index(">") + 1 :]

    # Figures of one page share one space of identifiers.
    text = re.sub(r' id="([^"]+)"', rf' id="{salt}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{salt}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{salt}-\1"', text)
    return Markup(palette.variables(re.sub(r"\n\s*", "\n", text)))
