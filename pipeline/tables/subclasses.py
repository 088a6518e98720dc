"""Sub-classes on the CPU: K-means of each class's pixels in LDA space, as many classes in memory as fit.

What they are stands in `pipeline.tables.fits.subclasses`; `pipeline.tables.device.subclasses` finds them on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import progress, seeding
from pipeline.tables import clustering
from pipeline.tables import pixels as rows
from pipeline.tables.discriminants import Discriminants
from pipeline.tables.pixels import Block, Pixels, Points

Array = NDArray[Any]


@dataclass(frozen=True)
class OfClass:
    """The pixels of one class, read again each time.

    Attributes:
        pixels: those of all classes.
        label: the class.
    """

    pixels: Pixels
    label: int

    def __iter__(self) -> Iterator[Block]:
        """Give blocks."""
        return rows.blocked((of_class(block, self.label) for block in self.pixels), self.pixels.width)


@dataclass(frozen=True)
class Subclasses:
    """Centers and prototypes.

    Attributes:
        centers: float32 (M, D), those of class 0 first.
        prototypes: mean of each one's members, float32 (M, D); its center where it has none.
        some: which have members, bool (M,).
        per_class: sub-classes of each class.
        inertia: sum of squared distances to the nearest center of the pixel's class.
        relocated: empty clusters that were moved, over all iterations and classes.
    """

    centers: Array
    prototypes: Array
    some: Array
    per_class: int
    inertia: float
    relocated: int

    def of_class(self, label: int) -> slice:
        """Return the sub-classes of a class."""
        return slice(label * self.per_class, (label + 1) * self.per_class)

    def nearness(self, groups: Array) -> Callable[[Block], Array]:
        """Return the score of pixels in sub-classes `groups`: minus the squared distance, in their own class."""

        def score(block: Block) -> Array:
            scores = np.full((len(block.x), len(groups)), -np.inf, np.float32)
            for column, group in enumerate(groups):
                mine = block.label == group // self.per_class
                scores[mine, column] = -clustering.squared_distances(block.x[mine], self.centers[group])
            return scores

        return score


def projected(pixels: Pixels, space: Discriminants) -> Pixels:
    """Return the pixels in LDA space, float32 (n, D)."""
    from threadpoolctl import ThreadpoolController

    scalings, threads = space.scalings.astype(np.float32), ThreadpoolController()

    def project(x: Array) -> Array:
        with threads.limit(limits=1):  # the product's last bits depend on them, and K-means on those
            z: Array = (x - space.mean).astype(np.float32) @ scalings
        return z

    return pixels.map(project, scalings.shape[1])


def class_counts(pixels: Pixels, num_classes: int) -> Array:
    """Count the pixels of each class, int64 (K,)."""
    counts = np.zeros(num_classes, np.int64)
    for _, label, _ in pixels:
        counts += np.bincount(label, minlength=num_classes)
    return counts


def clustered(
    space: Pixels, counts: Array, per_class: int, iterations: int, seed: int, title: str
) -> Subclasses:
    """Cluster the pixels of each class.

    Args:
        space: the pixels in LDA space.
        counts: pixels of each class, int64 (K,).
        per_class: sub-classes of each.
        iterations: at most.
        seed: of the draws.
        title: of the progress bar.
    """
    centers, prototypes, some, inertia, relocated = [], [], [], 0.0, 0
    with progress.bar(title, len(counts)) as advance:
        for label, points in _by_class(space, counts):
            # By class, so that the draws of one do not depend on the others.
            own = seeding.derive(seed, "subclasses", label)
            first = clustering.start(points, int(counts[label]), per_class, own)
            clusters = clustering.lloyd(points, first, iterations)

            members = clustering.members(points, clusters.centers)
            mean = members.sums / np.maximum(members.counts, 1)[:, None]
            centers.append(clusters.centers)
            prototypes.append(np.where(members.counts[:, None] > 0, mean, clusters.centers))
            some.append(members.counts > 0)
            inertia, relocated = inertia + members.inertia, relocated + clusters.relocated
            advance(1, note=f"class {label}")

    stacked = np.concatenate(prototypes).astype(np.float32)
    return Subclasses(np.concatenate(centers), stacked, np.concatenate(some), per_class, inertia, relocated)


def _by_class(space: Pixels, counts: Array) -> Iterator[tuple[int, Points]]:
    """Give every class and its pixels, as many classes in memory at a time as the budget allows."""
    first = 0
    while first < len(counts):
        size = np.cumsum(counts[first:]) * rows.row_bytes(space.width)
        last = first + int(np.searchsorted(size, rows.HELD_BYTES, side="right"))
        if last == first:  # one class alone is too large
            yield first, OfClass(space, first)
            first += 1
        else:
            yield from _gathered(space, range(first, last))
            first = last


def _gathered(space: Pixels, labels: Sequence[int]) -> Iterator[tuple[int, Points]]:
    """Read the pixels of some classes into memory, in one go, and give them class by class."""
    parts: dict[int, list[Block]] = {label: [] for label in labels}
    for block in space:
        for label in labels:
            parts[label].append(of_class(block, label))
    for label in labels:
        # Dropped as they are given: only the classes to come stay in memory.
        yield label, list(rows.blocked(parts.pop(label), space.width))


def of_class(block: Block, label: int) -> Block:
    """Return the pixels of a block that are of one class."""
    mine = block.label == label
    return Block(block.x[mine], block.label[mine], block.pixel[mine])


def joint(space: Pixels, subclasses: Subclasses) -> Array:
    """Count how often h1 says i and h2 says j, int64 (M, M)."""
    matrix = np.zeros((len(subclasses.centers), len(subclasses.centers)), np.int64)
    ids = np.flatnonzero(subclasses.some)  # h2 never says one without pixels
    anywhere = clustering.Nearest(subclasses.prototypes[ids])
    own = [
        clustering.Nearest(subclasses.centers[subclasses.of_class(label)])
        for label in range(len(matrix) // subclasses.per_class)
    ]

    with progress.bar("decisions of the sub-classes", len(space)) as advance:
        for block in space:
            for label in np.unique(block.label):
                x = block.x[block.label == label]
                h1 = label * subclasses.per_class + own[label](x)
                # A pair may occur many times in a block: `matrix[...] += 1` would count it once.
                np.add.at(matrix, (h1, ids[anywhere(x)]), 1)
            advance(len(block.x))
    return matrix
