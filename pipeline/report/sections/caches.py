"""What the stores of the teachers' outputs hold, how large they are, and whether they match the live teacher."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.report.drawing import markup, text
from pipeline.report.results import Code, Results, Teacher

TITLE = "Feature caches"
LEAD = "whether the stored features are those of the live teacher, and whether channels are dead."
GROUP, ORDER = "closing", 30


def section(results: Results) -> Markup:
    """Return the content of every teacher's store."""
    parts = [
        _teacher(teacher, [code for code in results.codes if code.teacher == teacher.name])
        for teacher in results.teachers.values()
    ]
    if not parts:
        return Markup()

    words = (
        "A sample of rows is computed again by the live teacher on views made from scratch; the error is the largest "
        "difference, relative to the value plus the feature's rms. What rounding explains is measured on this network: "
        "its features in the store's precision beside those in float32. Values, samples, channels and the scale of "
        "each feature are compared, and the check fails above 100 %. Slots are the cached augmented views of each "
        "training sample, beside the plain one. Shares and dead channels (one value everywhere) are of the plain "
        "training samples; sizes are before compression."
    )
    return Markup().join(parts) + markup.note(words)


def _teacher(teacher: Teacher, codes: list[Code]) -> Markup:
    check = teacher.check
    facts = markup.facts(
        [
            ("on disk", text.amount(check["bytes"], "B")),
            ("files", str(check["files"])),
            ("precision", str(check["precision"])),
            ("largest error", f"{float(check['largest_error']):.1e}"),
            ("share of what rounding explains", f"{100 * float(check['largest_share']):.0f} %"),
        ]
    )

    errors = _errors(check["error"])
    described = teacher.store["features"]
    # Arrays are named "checkpoint/split/feature".
    checkpoints = len({array.split("/")[0] for array in check["error"]}) or 1
    rows = [
        _row(name, described.get(name), errors.get(name), teacher, checkpoints)
        for name in dict.fromkeys([*described, *errors])
    ]

    head = [
        "feature",
        "shape",
        "dtype",
        "slots",
        "size",
        "largest error",
        "mean",
        "std",
        "zeros",
        "dead channels",
    ]
    return Markup("<section><h3>{}</h3>{}{}{}{}</section>").format(
        teacher.name, facts, markup.table(head, rows, 3), _largest(check.get("lost", {})), _codes(codes)
    )


def _largest(lost: dict[str, Any]) -> Markup:
    """Return what a store loses that keeps the largest logits alone, by array and temperature."""
    if not lost:
        return Markup()
    rows: list[markup.Row] = [
        [
            array,
            f"{loss['kept']} of {loss['classes']}",
            f"{loss['bytes']} for {loss['whole']}",
            markup.Cell(f"{100 * loss['mass']:.2f} %", loss["mass"]),
            markup.Cell(f"{100 * loss['top1']:.1f} %", loss["top1"]),
            markup.Cell(temperature, float(temperature)),
            markup.Cell(text.plain(kl["mean"]), kl["mean"]),
            markup.Cell(text.plain(kl["high"]), kl["high"]),
            markup.Cell(text.plain(kl["flat"]), kl["flat"]),
        ]
        for array, loss in lost.items()
        for temperature, kl in loss["kl"].items()
    ]

    words = (
        "The largest logits of each view are stored, and the others as one number that keeps their common probability. "
        "Bytes are of a view, and what all its logits would take. Their probability is the teacher's own at "
        "temperature 1. 'Same first class' is the share of views whose most probable class is still the teacher's. KL, "
        "in nats, is that of the teacher's distribution from the stored one, at temperature 1 and at those that runs "
        "read the logits at: its mean and its 99th percentile, and as their scale "
        "the mean of a uniform distribution, over "
        f"{max(loss['rows'] for loss in lost.values())} views of each split at most."
    )
    head = [
        "array",
        "kept",
        "bytes",
        "their probability",
        "same first class",
        "temperature",
        "mean KL",
        "99 % below",
        "KL of keeping none",
    ]
    table = markup.table(head, rows, 3)
    return Markup("<h4>Largest logits</h4>{}{}").format(table, markup.note(words))


def _codes(codes: list[Code]) -> Markup:
    """Return what the codes that a table makes of all views lose."""
    if not codes:
        return Markup()
    rows: list[markup.Row] = [
        [
            code.name,
            markup.Cell(str(code.slots), code.slots),
            markup.Cell(text.plain(code.lost), code.lost),
        ]
        for code in codes
    ]

    words = (
        "Codes are stores of their own, made with a fitted table. Lost is the mean KL divergence, in nats, "
        "between the words that it keeps and the teacher's whole distribution over words, of the plain training pixels."
    )
    table = markup.table(["code", "slots", "mean KL lost"], rows, 1)
    return Markup("<h4>Codes of the views</h4>{}{}").format(table, markup.note(words))


def _errors(errors: dict[str, float]) -> dict[str, float]:
    """Return the largest error of each feature over checkpoints and splits."""
    worst: dict[str, float] = {}
    for array, error in errors.items():
        name = array.split("/", 2)[2]
        worst[name] = max(error, worst.get(name, 0.0))
    return worst


def _row(
    name: str, feature: dict[str, Any] | None, error: float | None, teacher: Teacher, checkpoints: int
) -> markup.Row:
    shown = markup.NOTHING if error is None else markup.Cell("0" if error == 0 else f"{error:.1e}", error)
    if feature is None:  # codes: integers have no mean
        return [name, *[markup.NOTHING] * 4, shown, *[markup.NOTHING] * 4]

    samples = teacher.dataset.prepared.meta.samples
    # Only training samples have augmented slots.
    rows = sum(
        number * (feature["slots"] + 1 if split == "train" else 1) for split, number in samples.items()
    )
    # Every row, of every checkpoint: what the store would take without compression.
    size = rows * math.prod(feature["shape"]) * np.dtype(feature["dtype"]).itemsize * checkpoints

    dead, channels = feature["dead_channels"], feature["channels"]
    return [
        name,
        text.TIMES.join(str(length) for length in feature["shape"]),
        feature["dtype"],
        markup.Cell(str(feature["slots"]), feature["slots"]),
        markup.Cell(text.amount(size, "B"), size),
        shown,
        markup.Cell(text.fixed(feature["mean"], 3), feature["mean"]),
        markup.Cell(text.fixed(feature["std"], 3), feature["std"]),
        markup.Cell(f"{100 * feature['zeros']:.1f} %", feature["zeros"]),
        markup.Cell(f"{dead} of {channels}", dead, "down" if dead else ""),
    ]
