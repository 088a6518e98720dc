"""How consistent the channels of teacher and student are, before and after they are matched (KCD, arXiv:2103.16844)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.detectors import BoxPair, BoxRun
from pipeline.report.drawing import markup, text
from pipeline.report.drawing.figure import THIRD, draw
from pipeline.report.results import Pair, Results, Run
from pipeline.report.trainings import Matched

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Channel consistency"
LEAD = (
    "how much matching raises \N{GREEK CAPITAL LETTER GAMMA} over the teacher's own order of channels, "
    "and whether the distilled student ends up closer to the teacher."
)
GROUP, ORDER = "pair", 80
NUMBERS = {"results.csv": "distances of the runs: teacher_kl, teacher_l2"}
DETECTION = {"detection.csv": "distances of the runs: teacher_l2"}

OVERLAPS = (
    ("plain", "student and teacher"),
    ("students", "two students from different inits"),
    ("transformed", "student and transformed teacher"),
)
DISTANCES = ("teacher_kl", "teacher_l2")  # of a run, from its teacher
MOST_CHANNELS = 64  # rows of a picture
MORE, LESS = (0.769, 0.271, 0.110), (0.0, 0.447, 0.698)

Maps = NDArray[np.float64]  # (C, H * W)


def section(results: Results, pair: Pair | BoxPair) -> Markup:
    """Return what every matching of the pair measured, borrowed ones too, and the students' distance to the teacher."""
    runs = [run for run in pair.runs if any(run.shared(name) is not None for name in DISTANCES)]
    if not pair.matchings:
        return Markup()
    parts = [_gammas(pair), _overlaps(pair), _distances(pair, runs)]
    # The maps of detectors have no picture: their images differ in size.
    pictures = [] if isinstance(pair, BoxPair) else [_pictures(pair, matched) for matched in pair.matchings]
    return Markup().join([*parts, *pictures])


def _gammas(pair: Pair | BoxPair) -> Markup:
    shown, borrowed = _strategies(pair), any(matched.borrowed for matched in pair.matchings)
    rows: list[markup.Row] = []
    for matched in pair.matchings:
        scores = [_cell(matched, ("gamma", name), 3) for name in shown]
        dead = [_cell(matched, ("dead", side), 1) for side in ("student", "teacher")]
        recipe = matched.recipe
        lent = [matched.borrowed or text.DASH] if borrowed else []
        rows.append([matched.title, *lent, recipe.measure, recipe.strategy, *scores, *dead])

    head = ["matching", *(["borrowed as"] if borrowed else []), "measure", "strategy"]
    head += [*(f"\N{GREEK CAPITAL LETTER GAMMA} {name}" for name in shown)]
    head += ["dead, student", "dead, teacher"]
    words = (
        "\N{GREEK CAPITAL LETTER GAMMA} sums the consistency of each student channel with the teacher channel at its "
        "place: in the teacher's own order, in a random one, with each channel's best (which may repeat), and in the "
        "best order without repeats. Measured on all plain training images against the student trained alone; dead "
        "channels have one value everywhere."
    )
    if borrowed:
        words += " A borrowed matching is with another teacher of the same network."
    return markup.table(head, rows, 4 if borrowed else 3) + markup.note(words)


def _strategies(pair: Pair | BoxPair) -> list[str]:
    """Return the strategies that were measured, the least consistent first."""
    best: dict[str, float] = {}
    for matched in pair.matchings:
        for name in matched.numbers[0].get("gamma", {}):
            estimate = matched.estimate("gamma", name)
            if estimate is not None:
                best[name] = max(estimate.mean, best.get(name, estimate.mean))
    return sorted(best, key=lambda name: (best[name], name))


def _overlaps(pair: Pair | BoxPair) -> Markup:
    tops = list(
        dict.fromkeys(
            top
            for matched in pair.matchings
            for kinds in matched.numbers
            for shares in kinds.get("overlap", {}).values()
            for top in shares
        )
    )

    if not tops:
        return Markup()
    rows: list[markup.Row] = []
    for matched in pair.matchings:
        for key, words in OVERLAPS:
            if any(matched.estimate("overlap", key, top) is not None for top in tops):
                rows.append(
                    [matched.title, words, *(_cell(matched, ("overlap", key, top), 1) for top in tops)]
                )
    head = ["matching", "between", *(f"top {top.removeprefix('top')}, %" for top in tops)]
    return markup.table(head, rows, 2) + markup.note(
        "The share of a class's most active channels that two networks have in common, mean over classes."
    )


def _distances(pair: Pair | BoxPair, runs: Sequence[Run | BoxRun]) -> Markup:
    rows: list[list[markup.Cell | markup.Content]] = []
    for matched in pair.matchings:
        for key, words in (("theta0", "before training"), ("alone", "trained alone")):
            if key not in matched.numbers[0]:
                continue  # of detectors, the runs alone are measured
            cells = [_cell(matched, (key, name), 3) for name in ("kl", "l2", "l2_transformed")]
            rows.append([words, matched.title, *cells])

    for run in runs:
        kl, l2 = (
            markup.mean(run.estimate(name), 3) if run.shared(name) is not None else markup.NOTHING
            for name in DISTANCES
        )
        # With a transform, the maps that a method compares are the transformed ones.
        moved = bool(run.settings.transform)
        sides = [markup.NOTHING, l2] if moved else [l2, markup.NOTHING]
        rows.append([run.title, run.composition, kl, *sides])

    if not rows:
        return Markup()
    head = ["student", "matching or composition", "KL of predictions", "L2 of maps", "L2 to the transformed"]
    if all(row[2] is markup.NOTHING for row in rows):  # detectors have no predictions of an image
        del head[2]
        rows = [[*row[:2], *row[3:]] for row in rows]
    return markup.table(head, rows, 2) + markup.note(
        "On the test split. A run's maps are compared where its method compares them itself."
    )


def _pictures(pair: Pair, matched: Matched) -> Markup:
    flat = {name: x.reshape(len(x), -1).astype(np.float64) for name, x in matched.arrays.items()}
    if any(x.ndim != 3 or not x.any() for x in matched.arrays.values()):
        return Markup()  # vectors have no picture
    shown = {name.removesuffix("_map"): x[:MOST_CHANNELS] for name, x in flat.items()}

    name = pair.dataset.classes[matched.recipe.pictured]
    student = shown["student"]
    drawn = [
        ("student", "the student alone", student),
        ("teacher", "the teacher", shown["teacher"]),
        ("transformed", "the transformed teacher", shown["transformed"]),
        # A teacher may have more channels than the student: its first ones are compared.
        ("teacher-student", "teacher minus student", shown["teacher"][: len(student)] - student),
        ("transformed-student", "transformed teacher minus student", shown["transformed"] - student),
    ]
    # One scale for all, so that a difference can be compared with what it is the difference of.
    top = max(float(np.abs(x).max()) for _, _, x in drawn) or 1.0

    pictures = [
        draw(
            f"{pair.name}/consistency/{matched.title}/{key}",
            f"{matched.title}: {words}.",
            2.6,
            partial(_maps, values=values, top=top),
            THIRD,
        )
        for key, words, values in drawn
    ]

    lead = markup.note(
        Markup(
            "Mean maps of the class <b>{}</b>: a row is a channel, its pixels side by side. Orange is positive, blue "
            "negative; all pictures have one scale."
        ).format(name)
    )
    return lead + markup.figures(pictures, 3)


def _maps(ax: Axes, values: Maps, top: float) -> None:
    # The root lets small values be seen beside the largest.
    strength = np.sqrt(np.abs(values) / top).clip(0, 1)
    color = np.where(values[..., None] > 0, MORE, LESS)
    image = np.concatenate([color, strength[..., None]], axis=2)  # (C, H * W, RGBA): the page shines through
    ax.imshow(np.round(255 * image).astype(np.uint8), interpolation="none", aspect="auto")
    ax.grid(visible=False)
    ax.set_xlabel("pixel")
    ax.set_ylabel("channel")
    ax.locator_params(nbins=5, integer=True)


def _cell(matched: Matched, place: tuple[str, ...], digits: int) -> markup.Cell:
    estimate = matched.estimate(*place)
    return markup.NOTHING if estimate is None else markup.mean(estimate, digits)
