"""Linear discriminant analysis of pixels, each labeled with its image's class, in one pass.

The directions are those of scikit-learn's `LinearDiscriminantAnalysis(solver="svd")`, priors from the class
frequencies, with its rules of rank: z = (x - mean) @ scalings. scikit-learn holds all pixels in float64; this goes
through them once and keeps the classes' means and the scatter within classes, updated in float64 as in Chan, Golub
and LeVeque 1983: each block by its own class means, so nothing cancels. Both are exact, so scikit-learn is the
tests' oracle and has no place here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import progress
from pipeline.errors import ParamsError
from pipeline.tables import clustering
from pipeline.tables.pixels import Pixels

Array = NDArray[Any]

TOLERANCE = 1e-4  # scikit-learn's, on singular values
ROWS = 4096  # that are in float64 at a time


@dataclass
class Scatter:
    """Sums over the pixels seen so far.

    Attributes:
        counts: pixels of each class, int64 (K,).
        means: mean pixel of each class, float64 (K, C).
        within: sum of outer products of what remains of pixels without their class mean, float64 (C, C).
    """

    counts: Array
    means: Array
    within: Array

    @classmethod
    def empty(cls, num_classes: int, channels: int) -> Scatter:
        """Return the sums over no pixels."""
        means, within = np.zeros((num_classes, channels)), np.zeros((channels, channels))
        return cls(np.zeros(num_classes, np.int64), means, within)

    def add(self, x: Array, label: Array) -> None:
        """Add pixels (n, C) with labels int64 (n,)."""
        num = len(self.counts)
        counts = np.bincount(label, minlength=num)
        some = counts > 0
        means = clustering.grouped_sums(x, label, num)
        means[some] /= counts[some, None]
        rest = x - means[label]  # float64

        # Two groups of pixels scatter as each does, and as their means lie apart.
        step = means[some] - self.means[some]
        before, here = self.counts[some], counts[some]
        weighted = step * np.sqrt(before * here / (before + here))[:, None]
        self.within += rest.T @ rest + weighted.T @ weighted
        self.means[some] += step * (here / (before + here))[:, None]
        self.counts += counts


@dataclass(frozen=True)
class Discriminants:
    """The space in which classes differ most: z = (x - mean) @ scalings.

    Attributes:
        mean: mean pixel, float64 (C,).
        scalings: directions, the most discriminating first, float64 (C, D).
        explained: each direction's share of the variance between classes, float64 (D,).
        class_means: mean pixel of each class, zero for one without pixels, float64 (K, C).
        priors: share of the pixels in each class, float64 (K,).
        rank: how many directions there are, kept or not.
        dropped: directions of the scatter within classes that have no variance.
    """

    mean: Array
    scalings: Array
    explained: Array
    class_means: Array
    priors: Array
    rank: int
    dropped: int

    @property
    def classes(self) -> int:
        """Number of classes that have pixels."""
        return int((self.priors > 0).sum())


def fit(
    pixels: Pixels, components: int, num_classes: int, seen: Callable[[str], Scatter] | None = None
) -> Discriminants:
    """Find the directions that tell classes apart best, in one pass.

    Args:
        pixels: of all images, C channels each.
        components: D, how many directions are kept.
        num_classes: K.
        seen: goes through the pixels on a device, under a title for its progress; None is done here.

    Raises:
        ParamsError: there are fewer directions than components, or the feature is no map of floats.
        DivergedError: it holds values that are not finite.
    """
    # Before the pass, which may take minutes.
    most = min(num_classes - 1, pixels.channels)
    _require(components, most, f"{num_classes} classes and {pixels.channels} channels", pixels.feature)

    title = f"LDA of {pixels.feature}"
    scatter = _scatter(pixels, num_classes, title) if seen is None else seen(title)
    scalings, variance, dropped = directions(scatter)
    some, independent = int((scatter.counts > 0).sum()), pixels.channels - dropped
    why = f"{some} classes with pixels, of {independent} independent channels,"
    _require(components, len(variance), why, pixels.feature)

    priors = scatter.counts / scatter.counts.sum()
    return Discriminants(
        mean=priors @ scatter.means,
        scalings=scalings[:, :components],
        explained=(variance / variance.sum())[:components],
        class_means=scatter.means,
        priors=priors,
        rank=len(variance),
        dropped=dropped,
    )


def _scatter(pixels: Pixels, num_classes: int, title: str) -> Scatter:
    scatter = Scatter.empty(num_classes, pixels.channels)
    with progress.bar(title, len(pixels)) as advance:
        for x, label, _ in pixels:
            for first in range(0, len(x), ROWS):
                scatter.add(x[first : first + ROWS], label[first : first + ROWS])
            advance(len(x))
    return scatter


def directions(scatter: Scatter) -> tuple[Array, Array, int]:
    """Return scikit-learn's directions: those that whiten the scatter within, turned to the spread of the means.

    Returns:
        Scalings (C, rank), the best first, the largest entry of each positive; the variance of the class means
        along them (rank,); and how many directions of the scatter within were dropped as having none.
    """
    total, some = scatter.counts.sum(), scatter.counts > 0
    counts, classes = scatter.counts[some], int(some.sum())

    # Directions in which the classes are spheres; those without any variance tell nothing.
    std = np.sqrt(np.diag(scatter.within) / total)
    std[std == 0] = 1  # a dead channel
    degrees = max(1, total - classes)
    values, vectors = np.linalg.eigh(scatter.within / np.outer(std, std) / degrees)
    kept = np.sqrt(np.maximum(values, 0)) > TOLERANCE
    whiten = vectors[:, kept] / std[:, None] / np.sqrt(values[kept])  # (C, rank within)

    # Among spheres, the best directions are those in which the means lie farthest apart.
    center = counts @ scatter.means[some] / total
    spread = np.sqrt(counts / max(1, classes - 1))[:, None] * (scatter.means[some] - center)
    _, singular, turn = np.linalg.svd(spread @ whiten, full_matrices=False)
    rank = int((singular > TOLERANCE * singular[0]).sum()) if len(singular) else 0
    scalings = whiten @ turn[:rank].T

    # An eigenvector's sign is the library's whim: with a rule, all machines agree on it.
    largest = scalings[np.abs(scalings).argmax(axis=0), np.arange(rank)]
    return scalings * np.where(largest < 0, -1, 1), singular[:rank] ** 2, int((~kept).sum())


def _require(components: int, most: int, why: str, feature: str) -> None:
    if components > most:
        raise ParamsError(
            f"'components: {components}' is more than the {most} directions that LDA has with {why} in feature "
            f"'{feature}'. Lower it in the table's settings in params.yaml, then: dvc repro"
        )
