"""The blocks that sections are built of. All text is escaped; what is `Markup` already is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report.drawing import text
from pipeline.report.drawing.palette import SHADES, Style
from pipeline.report.statistics import Estimate

Content = str | Markup


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        content: what it shows.
        order: what it is sorted by; None sorts by the text.
        kind: class of the style sheet: "best", "up", "down", "quiet".
    """

    content: Content
    order: float | None = None
    kind: str = ""


Row = Sequence[Cell | Content]
NOTHING = Cell(text.DASH, None, "quiet")


def table(head: Sequence[Content], rows: Sequence[Row], words: int = 1) -> Markup:
    """Return a table that can be sorted by a click on a head.

    Args:
        head: of every column.
        rows: their cells.
        words: that many first columns hold words, the others numbers.
    """
    heads = [
        Markup('<th scope="col"{}>{}</th>').format(_kind("" if column < words else "number"), title)
        for column, title in enumerate(head)
    ]

    lines = []
    for row in rows:
        cells = []
        for column, value in enumerate(row):
            cell = value if isinstance(value, Cell) else Cell(value)
            kind = " ".join(filter(None, ["" if column < words else "number", cell.kind]))
            # Shown texts such as "1.2 k" do not sort as numbers do, so the script reads this one.
            order = "" if cell.order is None else Markup(' data-order="{}"').format(repr(cell.order))
            # The first cell names its row, which a screen reader repeats with each of the others.
            tag = Markup('th scope="row"') if column == 0 else Markup("td")
            end = Markup("th") if column == 0 else Markup("td")
            cells.append(Markup("<{}{}{}>{}</{}>").format(tag, _kind(kind), order, cell.content, end))
        lines.append(Markup("<tr>{}</tr>").format(Markup().join(cells)))

    return Markup(
        '<div class="scroll" tabindex="0"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(Markup().join(heads), Markup("\n").join(lines))


def mean(value: Estimate, digits: int = 2, kind: str = "") -> Cell:
    """Return the cell of a mean with its standard deviation."""
    shown: Content = text.fixed(value.mean, digits)
    if value.std is not None:
        shown = Markup("{} <small>{} {}</small>").format(shown, text.ABOUT, text.fixed(value.std, digits))
    return Cell(shown, value.mean, kind)


def gain(value: Estimate, digits: int = 2) -> Cell:
    """Return the cell of a gain with half its interval; its color says which side of zero the interval is on."""
    if not value.count:
        return NOTHING
    shown: Content = text.signed(value.mean, digits)
    if value.half is not None:
        shown = Markup("{} <small>{} {}</small>").format(shown, text.ABOUT, text.fixed(value.half, digits))
    if value.lacking:
        shown = Markup("{} <small>{}</small>").format(shown, text.seeds(value))
    return Cell(shown, value.mean, ("quiet", "up", "down")[value.verdict])


def figures(drawn: Iterable[Markup], columns: int = 2) -> Markup:
    """Return figures side by side where the screen is wide enough."""
    return Markup('<div class="figures of{}">{}</div>').format(columns, Markup("\n").join(drawn))


def legend(entries: Iterable[tuple[str, Style]], rest: int = 0) -> Markup:
    """Return the legend of a group of figures.

    Args:
        entries: names and styles.
        rest: number of runs that are drawn in gray.
    """
    items = [Markup("<li>{} {}</li>").format(swatch(style), name) for name, style in entries]
    if rest:
        items.append(Markup("<li>{} more in gray</li>").format(rest))
    return Markup('<ul class="legend">{}</ul>').format(Markup().join(items))


def swatch(style: Style) -> Markup:
    """Return a short line in a run's color and dash, with its mark."""
    color = Markup("var(--{})").format(SHADES[style.color])
    dash = " ".join(f"{1.5 * length:g}" for length in style.dash)
    return Markup(
        '<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true"><path d="M1 6H25" '
        'style="stroke:{0};stroke-dasharray:{1}"/><path d="{2}" style="fill:{0}"/></svg>'
    ).format(color, dash or "none", _MARK_PATHS[style.mark])


# matplotlib's marks, drawn by hand at the middle of a swatch of 26x12.
_MARK_PATHS = {
    "o": "M13 2.6a3.4 3.4 0 1 0 .01 0z",
    "s": "M10 3h6v6h-6z",
    "D": "M13 1.8l4.2 4.2-4.2 4.2-4.2-4.2z",
    "^": "M13 2l4 7.4h-8z",
    "v": "M13 10l4-7.4h-8z",
    "P": "M11.6 2.4h2.8v2.2h2.2v2.8h-2.2v2.2h-2.8v-2.2h-2.2v-2.8h2.2z",
}


def note(content: Content) -> Markup:
    """Return a paragraph in small print."""
    return Markup('<p class="note">{}</p>').format(content)


def numbers(files: Mapping[str, str]) -> Markup:
    """Return the line that links the files of a section's numbers.

    Args:
        files: what a file holds, by its path beside the page.
    """
    links = [
        Markup('<a href="{}">{}</a>{}').format(path, path, f" ({remark})" if remark else "")
        for path, remark in files.items()
    ]
    return Markup('<p class="numbers">These numbers: {}</p>').format(Markup(", ").join(links))


def folded(title: Content, content: Markup, *, opened: bool = False) -> Markup:
    """Return a block that a click on its title opens."""
    return Markup("<details{}><summary>{}</summary>{}</details>").format(
        Markup(" open") if opened else Markup(), title, content
    )


def facts(entries: Iterable[tuple[Content, Content]]) -> Markup:
    """Return a list of terms and values."""
    items = [Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(term, value) for term, value in entries]
    return Markup('<dl class="facts">{}</dl>').format(Markup().join(items))


def strong(content: Content) -> Markup:
    """Return emphasized text."""
    return Markup("<b>{}</b>").format(content)


def _kind(kind: str) -> Markup:
    return Markup(' class="{}"').format(kind) if kind else Markup()
