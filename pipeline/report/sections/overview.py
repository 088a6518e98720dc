"""What came out: one line a pair, and all runs on all pairs."""

from __future__ import annotations

from markupsafe import Markup

from pipeline.params.project import ALONE
from pipeline.report.drawing import markup, text
from pipeline.report.results import Pair, Results

TITLE = "Overview"


def section(results: Results) -> Markup:
    """Return the headlines and, with several pairs, the table of all gains."""
    if not results.pairs:
        return markup.note("params.yaml has no pairs: teachers and data sets are all there is to report.")
    lines = Markup('<ul class="headline">{}</ul>').format(Markup().join(map(_headline, results.pairs)))
    notes = [_how(results)]
    if len(results.pairs) > 1 and any(len(pair.runs) > 1 for pair in results.pairs):
        notes = [_matrix(results), *notes]
    return lines + Markup().join(notes)


def _headline(pair: Pair) -> Markup:
    alone, teacher = pair.alone.estimate("top1"), pair.teacher.trained.metrics["top1"]
    reach = f"student alone {text.mean(alone)}, teacher {text.fixed(teacher)}"
    best = pair.best
    if best is pair.alone:
        return Markup("<li>Nothing is distilled on <b>{}</b> <small>{}</small></li>").format(pair.name, reach)
    gain = best.gain(pair.alone)
    details = [f"top-1 {text.mean(best.estimate('top1'))}", reach, text.count(gain.count, "seed")]
    if gain.half is not None and gain.verdict == 0:
        details.insert(0, "0 lies inside the interval")
    if len(pair.runs) > 2:
        details.append(f"best of {len(pair.runs) - 1} runs")
    return Markup("<li{}><b>{}</b> gains <b>{}</b> over {} on <b>{}</b> <small>{}</small></li>").format(
        Markup(("", ' class="up"', ' class="down"')[gain.verdict]),
        best.name,
        text.gain(gain),
        ALONE,
        pair.name,
        "; ".join(details),
    )


def _matrix(results: Results) -> Markup:
    names = dict.fromkeys(run.name for pair in results.pairs for run in pair.runs[1:])
    found = {pair.name: {run.name: run.gain(pair.alone) for run in pair.runs[1:]} for pair in results.pairs}
    best = {pair.name: pair.best.name for pair in results.pairs}
    rows: list[markup.Row] = [
        [
            "teacher, top-1",
            *(markup.Cell(text.fixed(pair.teacher.trained.metrics["top1"])) for pair in results.pairs),
        ],
        ["student alone, top-1", *(markup.mean(pair.alone.estimate("top1")) for pair in results.pairs)],
    ]
    for name in names:
        row: list[markup.Cell | markup.Content] = [name]
        for pair in results.pairs:
            gain = found[pair.name].get(name)
            cell = markup.NOTHING if gain is None else markup.gain(gain)
            if name == best[pair.name]:
                cell = markup.Cell(cell.content, cell.order, f"{cell.kind} best")
            row.append(cell)
        rows.append(row)
    head = ["gain over student", *(pair.name for pair in results.pairs)]
    return markup.table(head, rows)


def _how(results: Results) -> Markup:
    splits = {pair.dataset.chooser for pair in results.pairs}
    words = (
        f"Top-1 is the accuracy of the last epoch on the test split, in percent; {text.ABOUT} after a mean is the "
        "standard deviation over seeds. A gain is the mean of per-seed differences: for one seed all runs share "
        "init, order of samples and views. "
    )
    if len(results.seeds) > 1:
        words += (
            f"{text.ABOUT} after a gain is half its 95 % t-interval over {len(results.seeds)} seeds; in color "
            "where the interval leaves out 0. It does not make up for choosing the best of many runs. "
        )
    else:
        words += "With one seed there is no telling a gain from luck, so no interval is shown. "
    if splits == {"holdout"}:
        words += "The best epoch is chosen on the holdout split."
    else:
        words += (
            "The best epoch is chosen on the test split, so its accuracy is too high; declare a holdout "
            "(datasets, prepare) to choose it on data of its own."
        )
    return markup.note(words)
