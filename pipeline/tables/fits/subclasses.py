"""Sub-classes: what the teacher tells apart within and between classes (letKD, 4.2.2).

LDA comes first: it finds the space z in which the pixels' classes differ most (`pipeline.tables.discriminants`). There
each class has K centers of its own (K-means over its pixels): sub-class K * c + k. h1(z, c) is the
nearest center of the pixel's own class, h2(z) the nearest prototype of all classes, where a prototype is the mean of
the pixels that h1 gives to its center. S[i, j] is the share of the pixels of sub-class i for which h2 says j: the
p_T of a pixel is the row S[h1(z, c)].

It is estimated on all plain training pixels; the paper's code drops the remainder of its last chunk. Its prototypes
are numerically almost its centers, and h1 in training uses the centers: so it is here. A sub-class without pixels
has no prototype, so h2 never says it, and its row is one on itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import ParamsError
from pipeline.params.numbers import Seed, Width
from pipeline.tables import discriminants, exemplars, pictured
from pipeline.tables import subclasses as engine
from pipeline.tables.discriminants import Discriminants
from pipeline.tables.pixels import Pixels
from pipeline.tables.subclasses import Subclasses
from pipeline.tables.table import FitContext, Fitted, Stream, TableConfig

Array = NDArray[Any]

UNIT: str | None = "sub-class"
MOST = 16_384  # sub-classes of all classes: a gigabyte of scores


class Config(TableConfig):
    """Settings.

    Attributes:
        components: directions of the LDA that are kept, the most discriminating first.
        per_class: sub-classes of each class, 16,384 at most of all classes.
        iterations: Lloyd's in each class, at most.
        seed: decides the draws.
    """

    components: Width = 60
    per_class: int = Field(default=8, ge=1, le=1000)
    iterations: int = Field(default=20, ge=1, le=10_000)
    seed: Seed = 0


# What an engine makes: the space, the sub-classes in it, how often h1 says i and h2 says j (M, M), the exemplars.
Parts = tuple[Discriminants, Subclasses, Array, dict[str, Array]]


def stand_in(config: Config, channels: int, num_classes: int) -> dict[str, Array]:
    """Return arrays of the table's sizes.

    Raises:
        ParamsError: there would be too many sub-classes.
    """
    number = _number(config, num_classes)
    return {
        "mean": np.zeros(channels),
        "scalings": np.zeros((channels, config.components)),
        "centers": np.zeros((number, config.components), np.float32),
        "scores": np.zeros((number, number), np.float32),
        "counts": np.zeros(number, np.int64),
        "per_class": np.array(config.per_class, np.int64),
    }


def fit(stream: Stream, config: Config, context: FitContext) -> Fitted:
    """Fit sub-classes to a stream of maps (N, C, H, W), for M = classes * per_class of them in D dimensions.

    Arrays: `mean` (C,) and `scalings` (C, D) of the LDA, float64, as the table `lda` has them; `centers` and
    `prototypes` float32 (M, D); `scores` float32 (M, M); `counts` int64 (M,), what h1 gives to each; `per_class`
    int64 (); the exemplars of `pipeline.tables.exemplars`, and the images of `pipeline.tables.pictured`.

    Raises:
        ParamsError: the feature is no map of floats, there are fewer directions than components, a class has too few
            pixels, or there would be too many sub-classes.
        DivergedError: the feature holds values that are not finite.
    """
    _number(config, context.num_classes)
    pixels = Pixels.of(stream, config.feature)
    parts = _on_cpu if context.device is None else _on_device
    space, subclasses, joint, shown = parts(pixels, config, context)

    counts = joint.sum(axis=1)
    scores = joint / np.maximum(counts, 1)[:, None]
    empty = np.flatnonzero(counts == 0)
    scores[empty, empty] = 1

    arrays = {
        "mean": space.mean,
        "scalings": space.scalings,
        "centers": subclasses.centers,
        "prototypes": subclasses.prototypes,
        "scores": scores.astype(np.float32),
        "counts": counts,
        "per_class": np.array(config.per_class, np.int64),
    }
    quality = _quality(scores, counts, joint, subclasses)
    shown |= pictured.pictured(pixels, space, subclasses)
    return Fitted(arrays | shown, quality | {"explained": float(space.explained.sum())})


def _on_cpu(pixels: Pixels, config: Config, context: FitContext) -> Parts:
    space = discriminants.fit(pixels, config.components, context.num_classes)
    projected = engine.projected(pixels, space)

    class_counts = engine.class_counts(pixels, context.num_classes)
    _require(class_counts, config)
    title = f"sub-classes of {config.feature}"
    subclasses = engine.clustered(
        projected, class_counts, config.per_class, config.iterations, config.seed, title
    )

    joint = engine.joint(projected, subclasses)
    groups, (height, width) = exemplars.chosen(joint.sum(axis=1)), pixels.stream.shape[2:]
    shown = exemplars.exemplars(projected, groups, subclasses.nearness(groups), height, width)
    return space, subclasses, joint, shown


def _on_device(pixels: Pixels, config: Config, context: FitContext) -> Parts:
    import torch

    from pipeline.tables.device import subclasses as device
    from pipeline.tables.device.rows import DeviceRows
    from pipeline.tables.device.scatter import scatter

    num_classes = context.num_classes
    stored = DeviceRows.of(pixels, torch.device(context.device or "cpu"))
    space = discriminants.fit(pixels, config.components, num_classes, partial(scatter, stored, num_classes))
    projected = device.projected(stored, space)
    del stored  # they are larger than what is left of them

    class_counts = device.class_counts(projected, num_classes)
    _require(class_counts, config)
    title = f"sub-classes of {config.feature}"
    clustered = device.clustered(
        projected, class_counts, config.per_class, config.iterations, config.seed, title
    )

    joint = device.joint(projected, clustered)
    groups, (height, width) = exemplars.chosen(joint.sum(axis=1)), pixels.stream.shape[2:]
    shown = device.gallery(projected, clustered, groups, height, width)
    centers, prototypes, counts = (
        x.cpu().numpy() for x in (clustered.centers, clustered.prototypes, clustered.counts)
    )
    subclasses = Subclasses(
        centers, prototypes, counts > 0, config.per_class, clustered.inertia, clustered.relocated
    )
    return space, subclasses, joint, shown


def _number(config: Config, num_classes: int) -> int:
    """Return how many sub-classes there are."""
    number = num_classes * config.per_class
    if number > MOST:
        raise ParamsError(
            f"'per_class: {config.per_class}' of {num_classes} classes are {number:,} sub-classes, expected {MOST:,} "
            "at most. Lower it in the table's settings in params.yaml, then: dvc repro"
        )
    return number


def _require(counts: Array, config: Config) -> None:
    """Check that each class has pixels for its sub-classes."""
    if counts.min() < config.per_class:
        raise ParamsError(
            f"Class {counts.argmin()} has {counts.min()} pixels of feature '{config.feature}', fewer than "
            f"'per_class: {config.per_class}'. Lower it in the table's settings in params.yaml, then: dvc repro"
        )


def _quality(scores: Array, counts: Array, joint: Array, subclasses: Subclasses) -> dict[str, float]:
    """Return how tight the sub-classes are, and how often the teacher confuses them."""
    label = np.arange(len(counts)) // subclasses.per_class
    # 0 log 0 is 0.
    entropy = -(scores * np.log(np.where(scores > 0, scores, 1))).sum(axis=1)
    return {
        "subclasses": float(len(counts)),
        "pixels": float(counts.sum()),
        "empty": float((counts == 0).sum()),
        "relocated": float(subclasses.relocated),
        "inertia": subclasses.inertia,
        "inertia_per_pixel": subclasses.inertia / float(counts.sum()),
        "mean_diagonal": float(np.diag(scores).mean()),
        "true_class_share": float(joint[label[:, None] == label].sum() / counts.sum()),
        "mean_row_entropy": float(entropy.mean()),
    }
