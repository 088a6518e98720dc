"""Data with boxes: average precision of teachers, students alone and runs, curves, and what is found in some images."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from pipeline.params.sections import ALONE
from pipeline.report.beside import beside, uncompared
from pipeline.report.detectors import CURVES, MEASURES, BoxPair, BoxRun, Detector, Finder
from pipeline.report.drawing import boxes, compared, intervals, markup, palette, text
from pipeline.report.drawing.figure import draw
from pipeline.report.drawing.palette import Style
from pipeline.report.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Detection"
LEAD = "whether a run's gain in AP is clear, and whether it is one of small objects, of large ones, or of tight boxes."
GROUP, ORDER = "opening", 30
NUMBERS = {
    "detection.csv": "one row for each teacher, and for each run and seed",
    "precision_recall.csv": "one row for each detector and recall",
    "summary.json": "means over seeds, under detection",
}
# What is not there without pairs, or without a published number that is compared.
GAINS = {"detection_gains.csv": "one row for each run and measure"}
PUBLISHED = {"detection_published.csv": "one row for each published number"}

NAMES = {"AP_small": "AP, small", "AP_medium": "AP, medium", "AP_large": "AP, large"}
MAY_DIFFER = "So may the sizes of images, and the maps that a method reads."
OVERLAPS = {"AP": "the mean over overlaps from 0.5 to 0.95", "AP50": "an overlap of at least 0.5"}


def section(results: Results) -> Markup:
    """Return a part for each pair, and one for the teachers of none; nothing where no data have boxes."""
    detection = results.detection
    if not detection.teachers:
        return Markup()

    taught = {pair.teacher.name for pair in detection.pairs}
    others = [teacher for name, teacher in detection.teachers.items() if name not in taught]
    parts = [_pair(pair, len(results.seeds)) for pair in detection.pairs]
    parts += [_teacher(teacher) for teacher in others]
    if detection.pairs:
        parts.append(markup.numbers(GAINS))
    return Markup().join([*parts, _how(len(results.seeds))])


def _pair(pair: BoxPair, seeds: int) -> Markup:
    """Return the tables, curves and pictures of a pair."""
    title = Markup("{} <small>teacher {}, student {}, on {}</small>").format(
        pair.name, pair.teacher.name, pair.student, pair.teacher.dataset.name
    )
    runs = [pair.alone, *sorted(pair.runs[1:], key=lambda run: -run.estimate("AP").mean)]
    parts = [_table(pair, runs)]

    if len(runs) > 1:
        parts.append(markup.folded("Gains in every measure", _gains(pair, runs[1:])))
        gains = [(run.title, run.gain(pair.alone, "AP")) for run in runs[1:]]
        interval = ", with 95 % intervals: in color where they exclude zero" if seeds > 1 else ""
        paint = partial(intervals.paint, gains=gains, title="gain over the student alone, points of AP")
        caption = f"{pair.name}: gain in AP over the student alone, paired by seed{interval}."
        picture = draw(f"detection/{pair.name}/gain", caption, intervals.height(len(gains)), paint)
        parts.append(markup.figures([picture]))
    parts.append(_published(pair))

    styles = _styles(pair, runs)
    teacher = _of_teacher(pair)
    detectors = {teacher: [pair.teacher.trained]} | {run.title: [*run.students] for run in runs}
    pictures = _curves(pair.name, detectors, styles)
    named = [(name, style) for name, style in styles.items() if style.named]
    parts += [markup.legend(named, len(styles) - len(named)), markup.figures(pictures)]
    # There is room for the best run alone.
    found = {name: detectors[name][0] for name in (teacher, pair.alone.title, pair.best.title)}
    parts.append(boxes.gallery(pair.teacher.dataset, found, f"pair-boxes-{pair.name}"))
    return Markup("<section><h3>{}</h3>{}</section>").format(title, Markup().join(parts))


def _teacher(teacher: Finder) -> Markup:
    """Return the table, curves and pictures of a teacher that teaches nobody."""
    trained = teacher.trained
    title = Markup("{} <small>a teacher, on {}</small>").format(teacher.name, teacher.dataset.name)
    table = markup.table(
        ["teacher", "network", *map(_name, trained.measures), "best epoch's AP"],
        [[teacher.name, trained.metrics["network"], *_single(trained, trained.measures)]],
        2,
    )
    pictures = _curves(
        f"teachers/{teacher.name}", {teacher.name: [trained]}, {teacher.name: palette.series(0)}
    )
    gallery = boxes.gallery(teacher.dataset, {teacher.name: trained}, f"teacher-boxes-{teacher.name}")
    return Markup("<section><h3>{}</h3>{}{}{}</section>").format(
        title, table, markup.figures(pictures), gallery
    )


def _table(pair: BoxPair, runs: list[BoxRun]) -> Markup:
    head = [
        "run",
        "composition",
        "AP",
        f"gain over {ALONE}",
        *map(_name, pair.measures[1:]),
        "best epoch's AP",
    ]
    trained = pair.teacher.trained
    ap, *rest = _single(trained, pair.measures)
    name = Markup("teacher <small>{}</small>").format(pair.teacher.name)
    rows: list[markup.Row] = [
        [markup.Cell(name), markup.Cell("alone", None, "quiet"), ap, markup.NOTHING, *rest]
    ]
    best = max(runs, key=lambda run: run.estimate("AP").mean).name
    for run in runs:
        row: list[markup.Cell | markup.Content] = [run.title, run.composition]
        row.append(markup.mean(run.estimate("AP"), kind="best" if run.name == best else ""))
        row.append(markup.NOTHING if run is pair.alone else markup.gain(run.gain(pair.alone, "AP")))
        row += [markup.mean(run.estimate(measure)) for measure in pair.measures[1:]]
        row.append(markup.mean(run.estimate("best_AP"), kind="quiet"))
        rows.append(row)
    return markup.table(head, rows, 2)


def _published(pair: BoxPair) -> Markup:
    """Return a row for each published number of a pair, or why none is compared."""
    listed = beside(pair)
    if not listed:
        reason = uncompared(pair)
        return markup.note(reason) if reason else Markup()
    rows = [compared.table(listed), markup.note(f"{compared.HOW} {MAY_DIFFER}"), markup.numbers(PUBLISHED)]
    return markup.folded("AP as published, beside ours", Markup().join(rows), opened=True)


def _single(detector: Detector, measures: list[str]) -> list[markup.Cell]:
    """Return the cells of one detector: its measures, and AP of its best epoch."""
    metrics = detector.metrics
    cells = [markup.Cell(text.fixed(metrics[name]), metrics[name]) for name in measures]
    return [*cells, markup.Cell(text.fixed(metrics["best_AP"]), metrics["best_AP"], "quiet")]


def _gains(pair: BoxPair, runs: list[BoxRun]) -> Markup:
    """Return a row for each run: its gain over the student alone in every measure."""
    rows: list[markup.Row] = [
        [run.title, *(markup.gain(run.gain(pair.alone, measure)) for measure in pair.measures)]
        for run in runs
    ]
    return markup.table(["gain over the student alone", *map(_name, pair.measures)], rows)


def _styles(pair: BoxPair, runs: list[BoxRun]) -> dict[str, Style]:
    """Return the style of the teacher and of every run, by title; runs have theirs in all figures of the pair."""
    own = palette.styles(pair)
    return {_of_teacher(pair): Style(palette.INK, "o", (5.0, 2.0))} | {
        run.title: own[run.name] for run in runs
    }


def _of_teacher(pair: BoxPair) -> str:
    """Return what the teacher is called in figures: a run has no space in its name, so none is called alike."""
    return f"teacher {pair.teacher.name}"


def _curves(name: str, detectors: dict[str, list[Detector]], styles: dict[str, Style]) -> list[Markup]:
    """Return a picture for each measure of `CURVES`: precision by recall, the mean over seeds."""
    return [
        draw(
            f"detection/{name}/{measure}",
            f"Precision by recall, mean over classes and seeds, {OVERLAPS[measure]}: the area below is {measure}.",
            2.7,
            partial(_precision, detectors=detectors, styles=styles, measure=measure),
        )
        for measure in CURVES
    ]


def _precision(
    ax: Axes, detectors: dict[str, list[Detector]], styles: dict[str, Style], measure: str
) -> None:
    for name, seeds in sorted(
        detectors.items(), key=lambda entry: styles[entry[0]].named
    ):  # gray below color
        style = styles[name]
        precision = np.stack([one.curves[measure] for one in seeds]).mean(axis=0)
        settings: dict[str, Any] = {"color": style.color, "linewidth": 1.6 if style.named else 0.7}
        if style.dash:
            settings["dashes"] = style.dash
        ax.plot(seeds[0].recalls, precision, **settings)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.set_title(f"precision, {measure}")
    ax.set_xlabel("recall")


def _how(seeds: int) -> Markup:
    """Return how the numbers are measured, and what they cannot show."""
    words = (
        "Average precision is pycocotools', in percent, of the last epoch on the test split: of the surest 100 boxes "
        "of an image, in its own pixels. Small is below 32 x 32 pixels, large above 96 x 96; a size that no "
        f"object has is left out. {text.ABOUT} after a mean is the standard deviation over seeds. A gain is the mean "
        "of per-seed differences"
    )
    if seeds > 1:
        words += f", and {text.ABOUT} after it half its 95 % t-interval, in color where that excludes zero. "
    else:
        words += "; one seed cannot tell a gain from luck, so no interval is shown. "
    return markup.note(words + "The best epoch is chosen on the test split, so its AP is too high.")


def _name(measure: str) -> str:
    assert measure in MEASURES
    return NAMES.get(measure, measure)
