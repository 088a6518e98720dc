"""What came out: which runs gain over the student alone, in a sentence, a picture and a table."""

from __future__ import annotations

from functools import partial

from markupsafe import Markup

from pipeline.report.drawing import intervals, markup, text
from pipeline.report.drawing.figure import draw
from pipeline.report.results import Pair, Results, Run

TITLE = "Overview"
LEAD = (
    "which runs gain over the student alone: those whose whole interval lies to the right of the zero line."
)
GROUP, ORDER = "opening", 10
NUMBERS = {
    "results.csv": "one row for each run and seed",
    "gains.csv": "one row for each run",
    "summary.json": "means over seeds",
}

MOST_OPEN = 20  # rows; a longer table is folded


def section(results: Results) -> Markup:
    """Return the headlines, a picture of all gains, and their tables."""
    if not results.pairs:
        return Markup()
    lines = Markup('<ul class="headline">{}</ul>').format(Markup().join(map(_headline, results.pairs)))
    parts = [lines]
    distilled = [pair for pair in results.pairs if len(pair.runs) > 1]
    if distilled:
        parts += [markup.figures(map(_picture, distilled)), _verdicts(distilled)]
    if len(results.pairs) > 1 and distilled:
        parts.append(_matrix(results))
    return Markup().join([*parts, _how(results)])


def _headline(pair: Pair) -> Markup:
    """Return the best run of a pair, and how many of its runs gain."""
    alone, teacher = pair.alone.estimate("top1"), pair.teacher.trained.metrics["top1"]
    reach = f"student alone {text.mean(alone)}, teacher {text.fixed(teacher)}"
    best = pair.best
    if best is pair.alone:
        return Markup("<li>Nothing is distilled on <b>{}</b> <small>{}</small></li>").format(pair.name, reach)

    gain = best.gain(pair.alone)
    details = [f"top-1 {text.mean(best.estimate('top1'))}", reach, text.count(gain.count, "seed")]
    if len(pair.runs) > 2:
        details.append(f"best of {len(pair.runs) - 1} runs")

    interval = f"interval {text.verdict(gain)}" if gain.half is not None else text.verdict(gain)
    words = Markup(
        "<b>{}</b> is the best on <b>{}</b>, with a gain over the student alone of <b>{}</b> ({})."
    ).format(best.title, pair.name, text.gain(gain), interval)
    kind = Markup(("", ' class="up"', ' class="down"')[gain.verdict])
    return Markup("<li{}>{} {} <small>{}</small></li>").format(kind, words, _clear(pair), "; ".join(details))


def _clear(pair: Pair) -> str:
    """Return how many runs of a pair gain, in words."""
    # Of one seed there is no interval: where seeds are missing, some of the runs may have one.
    gains = [gain for run in pair.runs[1:] if (gain := run.gain(pair.alone)).half is not None]
    if not gains:
        return "One seed cannot show whether a run gains."
    clear, worse = (sum(gain.verdict == verdict for gain in gains) for verdict in (1, -1))
    words = f"{clear} of {text.count(len(gains), 'run')} clearly gain{'s' if clear == 1 else ''}"
    if worse:
        words += f", {worse} clearly lose{'s' if worse == 1 else ''}"
    return words + "."


def _picture(pair: Pair) -> Markup:
    runs = _by_gain(pair)
    gains = [(run.title, run.gain(pair.alone)) for run in runs]
    interval = (
        "with 95 % intervals: in color where they exclude zero"
        if any(gain.half is not None for _, gain in gains)
        else "one seed"
    )
    return draw(
        f"overview/{pair.name}",
        f"{pair.name}: gain in top-1 over the student alone, {interval}.",
        intervals.height(len(runs)),
        partial(intervals.paint, gains=gains, title="gain over the student alone, points of top-1"),
    )


def _verdicts(pairs: list[Pair]) -> Markup:
    """Return a row for each run: its gain, and whether the interval excludes zero."""
    rows: list[markup.Row] = []
    for pair in pairs:
        for run in _by_gain(pair):
            gain = run.gain(pair.alone)
            kind = ("quiet", "up", "down")[gain.verdict]
            rows.append(
                [pair.name, run.title, run.composition, markup.gain(gain), markup.Cell(text.verdict(gain), None, kind)]
            )  # fmt: skip
    table = markup.table(["pair", "run", "composition", "gain over the student alone", "interval"], rows, 3)
    return markup.folded("Gain of every run", table, opened=len(rows) <= MOST_OPEN)


def _by_gain(pair: Pair) -> list[Run]:
    return [run for run in pair.ranked() if run is not pair.alone]


def _matrix(results: Results) -> Markup:
    # Pairs may be asked for different runs: a row each, with blanks.
    names = dict.fromkeys(run.name for pair in results.pairs for run in pair.runs[1:])
    gains = {pair.name: {run.name: run.gain(pair.alone) for run in pair.runs[1:]} for pair in results.pairs}
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
            gain = gains[pair.name].get(name)
            cell = markup.NOTHING if gain is None else markup.gain(gain)
            if name == best[pair.name]:
                cell = markup.Cell(cell.content, cell.order, f"{cell.kind} best")
            row.append(cell)
        rows.append(row)

    head = ["gain over student", *(pair.name for pair in results.pairs)]
    return markup.table(head, rows)


def _how(results: Results) -> Markup:
    """Return how the numbers are measured, and what they cannot show."""
    splits = {pair.dataset.chooser for pair in results.pairs}
    words = (
        f"Top-1 is the accuracy of the last epoch on the test split, in percent; {text.ABOUT} after a mean is the "
        "standard deviation over seeds. A gain is the mean of per-seed differences: for one seed all runs share "
        "init, order of samples and, unless one has its own, views. "
    )
    if len(results.seeds) > 1:
        words += (
            f"{text.ABOUT} after a gain is half its 95 % t-interval over {_seeds(results)}; in color where "
            "the interval excludes zero. It does not correct for choosing the best of many runs. "
        )
    else:
        words += "One seed cannot tell a gain from luck, so no interval is shown. "

    if splits == {"holdout"}:
        words += "The best epoch is chosen on the holdout split."
    else:
        words += (
            "The best epoch is chosen on the test split, so its accuracy is too high; declare a holdout in "
            "params.yaml to choose it on data of its own."
        )
    return markup.note(words)


def _seeds(results: Results) -> str:
    """Return over which seeds gains are, in words."""
    whole = all(not run.gain(pair.alone).lacking for pair in results.pairs for run in pair.runs)
    return f"{len(results.seeds)} seeds" if whole else "the seeds that both runs have"
