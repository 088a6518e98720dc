"""The table of published numbers beside measured ones."""

from __future__ import annotations

from markupsafe import Markup

from pipeline.report.beside import Beside
from pipeline.report.drawing import markup, text

METRICS = {"top1": "", "top5": "top-5", "AP": ""}  # what is said of each beside a run
HOW = (
    f"{text.ABOUT} after ours is half its 95 % t-interval over seeds, and after a published number its standard "
    "deviation over trials. A difference is ours less the published number, by the rule that it was published by: the "
    "last epoch's, or that of the best epoch on the test split; where the rule is unknown, the last epoch's. It takes "
    "the published number for exact, and is in color where the interval excludes zero. Weights, temperatures and other "
    "numbers of a method may differ from those of its source."
)


def table(listed: list[Beside]) -> Markup:
    """Return a row for each number, and below the table what its notes are."""
    # Notes are as long as a table is wide, and many rows share them.
    remarks = list(dict.fromkeys(remark for compared in listed for remark in compared.remarks))
    rows: list[markup.Row] = []
    for compared in listed:
        row, metric = compared.row, METRICS[compared.row.metric]
        name = Markup("{} <small>{}</small>").format(compared.name, metric) if metric else compared.name
        by_best = row.rule == "best"
        notes = ", ".join(str(1 + remarks.index(remark)) for remark in compared.remarks)
        rows.append(
            [
                name,
                Markup("{} <small>{}</small>").format(row.method, compared.citation),
                row.rule,
                _interval(row.value, row.std),
                _interval(compared.last.mean, compared.last.half, "quiet" if by_best else ""),
                _interval(compared.best.mean, compared.best.half, "" if by_best else "quiet"),
                markup.gain(compared.difference),
                markup.Cell(f"{compared.epochs}, {text.plain(row.epochs)}", compared.epochs),
                markup.Cell(str(compared.last.count), compared.last.count),
                markup.Cell(notes, None, "quiet"),
            ]
        )

    head = ["run", "published as", "rule", "published", "ours, last epoch", "ours, best epoch", "difference"]
    shown = markup.table([*head, "epochs: ours, theirs", "our seeds", "notes"], rows, 3)
    listing = "; ".join(f"({number}) {remark}" for number, remark in enumerate(remarks, start=1))
    return shown + (markup.note(f"Notes: {listing}.") if remarks else Markup())


def _interval(value: float, half: float | None, kind: str = "") -> markup.Cell:
    shown: markup.Content = text.fixed(value)
    if half is not None:
        shown = Markup("{} <small>{} {}</small>").format(shown, text.ABOUT, text.fixed(half))
    return markup.Cell(shown, value, kind)
