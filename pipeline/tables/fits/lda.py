"""Linear discriminant analysis of pixels, each labelled with its image's class (letKD, 4.2.2, step 1).

The directions are those of scikit-learn's `LinearDiscriminantAnalysis(solver="svd")`, priors from the class
frequencies, with its rules of rank: z = (x - mean) @ scalings. scikit-learn holds all pixels in float64; this goes
through them once and keeps the classes' means and the scatter within classes, updated in float64 as in Chan, Golub
and LeVeque 1983: each block by its own class means, so nothing cancels. Both are exact, so scikit-learn is the
tests' oracle and has no place here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline import progress
from pipeline.errors import ParamsError
from pipeline.tables import clustering
from pipeline.tables.pixels import Pixels
from pipeline.tables.table import FitContext, Fitted, Stream, TableConfig

Array = NDArray[Any]

TOLERANCE = 1e-4  # scikit-learn's, on singular values
ROWS = 4096  # that are in float64 at a time


class Config(TableConfig):
    """Settings.

    Attributes:
        components: directions that are kept, the most discriminating first.
    """

    components: int = Field(default=60, ge=1)


@dataclass
class Scatter:
    """Sums over the pixels seen so far.

    Attributes:
        counts: pixels of each class, int64 (K,).
        means: of each class, float64 (K, C).
        within: sum of outer products of what remains of pixels without their class mean, float64 (C, C).
    """

    counts: Array
    means: Array
    within: Array

    def add(self, x: Array, label: Array) -> None:
        """Add pixels (n, C) with labels int64 (n,)."""
        num = len(self.counts)
        counts = np.bincount(label, minlength=num)
        some = counts > 0
        means = clustering.grouped_sums(x, label, num)
        means[some] /= counts[some, None]
        rest = x - means[label]  # float64
        step = means[some] - self.means[some]
        before, here = self.counts[some], counts[some]
        weighted = step * np.sqrt(before * here / (before + here))[:, None]
        self.within += rest.T @ rest + weighted.T @ weighted
        self.means[some] += step * (here / (before + here))[:, None]
        self.counts += counts


def fit(stream: Stream, config: Config, context: FitContext) -> Fitted:
    """Fit `mean` (C,) and `scalings` (C, components) to a stream of maps (N, C, H, W); all arrays float64.

    Beside them `explained` (components,), each direction's share of the variance between classes, `class_means`
    (K, C), zero for a class without pixels, and `priors` (K,).

    Raises:
        ParamsError: the feature is no map of floats, or there are fewer directions than components.
        DivergedError: it holds values that are not finite.
    """
    pixels = Pixels.of(stream, config.feature)
    num, channels = context.num_classes, pixels.channels
    _require(config, min(num - 1, channels), f"{num} classes and {channels} channels")
    scatter = Scatter(np.zeros(num, np.int64), np.zeros((num, channels)), np.zeros((channels, channels)))
    with progress.bar(f"LDA of {config.feature}", len(pixels)) as advance:
        for x, label, _ in pixels:
            for first in range(0, len(x), ROWS):
                scatter.add(x[first : first + ROWS], label[first : first + ROWS])
            advance(len(x))
    scalings, variance, dropped = directions(scatter)
    some = int((scatter.counts > 0).sum())
    _require(
        config, len(variance), f"{some} classes with pixels, of {channels - dropped} independent channels,"
    )
    explained = (variance / variance.sum())[: config.components]
    priors = scatter.counts / scatter.counts.sum()
    arrays = {
        "mean": priors @ scatter.means,
        "scalings": scalings[:, : config.components],
        "explained": explained,
        "class_means": scatter.means,
        "priors": priors,
    }
    quality = {
        "components": float(config.components),
        "classes": float(some),
        "pixels": float(len(pixels)),
        "explained": float(explained.sum()),
        "explained_first": float(explained[0]),
        "rank": float(len(variance)),
        "dropped_directions": float(dropped),
    }
    return Fitted(arrays, quality)


def directions(scatter: Scatter) -> tuple[Array, Array, int]:
    """Return scikit-learn's directions: those that whiten the scatter within, turned to the spread of the means.

    Returns:
        Scalings (C, rank), the best first, the largest entry of each positive; the variance of the class means
        along them (rank,); and how many directions of the scatter within were dropped as having none.
    """
    total, some = scatter.counts.sum(), scatter.counts > 0
    counts, classes = scatter.counts[some], int(some.sum())
    std = np.sqrt(np.diag(scatter.within) / total)
    std[std == 0] = 1  # a dead channel
    degrees = max(1, total - classes)
    values, vectors = np.linalg.eigh(scatter.within / np.outer(std, std) / degrees)
    kept = np.sqrt(np.maximum(values, 0)) > TOLERANCE
    whiten = vectors[:, kept] / std[:, None] / np.sqrt(values[kept])  # (C, rank within)
    centre = counts @ scatter.means[some] / total
    spread = np.sqrt(counts / max(1, classes - 1))[:, None] * (scatter.means[some] - centre)
    _, singular, turn = np.linalg.svd(spread @ whiten, full_matrices=False)
    rank = int((singular > TOLERANCE * singular[0]).sum()) if len(singular) else 0
    scalings = whiten @ turn[:rank].T
    largest = scalings[np.abs(scalings).argmax(axis=0), np.arange(rank)]
    return scalings * np.where(largest < 0, -1, 1), singular[:rank] ** 2, int((~kept).sum())


def _require(config: Config, most: int, why: str) -> None:
    if config.components > most:
        raise ParamsError(
            f"'components: {config.components}' is more than the {most} directions that LDA has with {why} in "
            f"feature '{config.feature}'. Lower it in the table's config in params.yaml, then: dvc repro"
        )
