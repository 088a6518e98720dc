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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline import progress, seeding
from pipeline.errors import ParamsError
from pipeline.tables import clustering, discriminants, exemplars
from pipeline.tables import pixels as rows
from pipeline.tables.discriminants import Discriminants
from pipeline.tables.pixels import Block, Pixels, Points
from pipeline.tables.table import FitContext, Fitted, Stream, TableConfig

Array = NDArray[Any]

UNIT: str | None = "sub-class"


class Config(TableConfig):
    """Settings.

    Attributes:
        components: directions of the LDA that are kept, the most discriminating first.
        per_class: sub-classes of each class.
        iterations: Lloyd's in each class, at most.
        seed: decides the draws.
    """

    components: int = Field(default=60, ge=1)
    per_class: int = Field(default=8, ge=1)
    iterations: int = Field(default=20, ge=1)
    seed: int = 0


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
        return rows.blocked((_of(block, self.label) for block in self.pixels), self.pixels.width)


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


# What an engine makes: the space, the sub-classes in it, how often h1 says i and h2 says j (M, M), the exemplars.
Engine = tuple[Discriminants, Subclasses, Array, dict[str, Array]]


def stand_in(config: Config, channels: int, num_classes: int) -> dict[str, Array]:
    """Return arrays of the table's sizes."""
    number = num_classes * config.per_class
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
    int64 (); and the exemplars of `pipeline.tables.exemplars`.

    Raises:
        ParamsError: the feature is no map of floats, there are fewer directions than components, or a class has
            too few pixels.
        DivergedError: the feature holds values that are not finite.
    """
    pixels = Pixels.of(stream, config.feature)
    engine = _on_cpu if context.device is None else _on_device
    space, subclasses, joint, shown = engine(pixels, config, context)

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
    return Fitted(arrays | shown, quality | {"explained": float(space.explained.sum())})


def _on_cpu(pixels: Pixels, config: Config, context: FitContext) -> Engine:
    space = discriminants.fit(pixels, config.components, context.num_classes)
    projected = _projected(pixels, space)

    class_counts = _class_counts(pixels, context.num_classes)
    _require(class_counts, config)
    subclasses = _clustered(projected, class_counts, config)

    joint = _joint(projected, subclasses)
    groups, (height, width) = exemplars.chosen(joint.sum(axis=1)), pixels.stream.shape[2:]
    shown = exemplars.exemplars(projected, groups, subclasses.nearness(groups), height, width)
    return space, subclasses, joint, shown


def _on_device(pixels: Pixels, config: Config, context: FitContext) -> Engine:
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


def _projected(pixels: Pixels, space: Discriminants) -> Pixels:
    """Return the pixels in LDA space, float32 (n, D)."""
    from threadpoolctl import ThreadpoolController

    scalings, threads = space.scalings.astype(np.float32), ThreadpoolController()

    def project(x: Array) -> Array:
        with threads.limit(limits=1):  # the product's last bits depend on them, and K-means on those
            z: Array = (x - space.mean).astype(np.float32) @ scalings
        return z

    return pixels.map(project, scalings.shape[1])


def _class_counts(pixels: Pixels, num_classes: int) -> Array:
    """Count the pixels of each class, int64 (K,)."""
    counts = np.zeros(num_classes, np.int64)
    for _, label, _ in pixels:
        counts += np.bincount(label, minlength=num_classes)
    return counts


def _require(counts: Array, config: Config) -> None:
    """Check that each class has pixels for its sub-classes."""
    if counts.min() < config.per_class:
        raise ParamsError(
            f"Class {counts.argmin()} has {counts.min()} pixels of feature '{config.feature}', fewer than "
            f"'per_class: {config.per_class}'. Lower it in the table's settings in params.yaml, then: dvc repro"
        )


def _clustered(space: Pixels, counts: Array, config: Config) -> Subclasses:
    """Cluster the pixels of each class."""
    centers, prototypes, some, inertia, relocated = [], [], [], 0.0, 0
    with progress.bar(f"sub-classes of {config.feature}", len(counts)) as advance:
        for label, points in _by_class(space, counts, config):
            # By class, so that the draws of one do not depend on the others.
            seed = seeding.derive(config.seed, "subclasses", label)
            first = clustering.start(points, int(counts[label]), config.per_class, seed)
            clusters = clustering.lloyd(points, first, config.iterations)

            members = clustering.members(points, clusters.centers)
            mean = members.sums / np.maximum(members.counts, 1)[:, None]
            centers.append(clusters.centers)
            prototypes.append(np.where(members.counts[:, None] > 0, mean, clusters.centers))
            some.append(members.counts > 0)
            inertia, relocated = inertia + members.inertia, relocated + clusters.relocated
            advance(1, note=f"class {label}")

    stacked = np.concatenate(prototypes).astype(np.float32)
    return Subclasses(
        np.concatenate(centers), stacked, np.concatenate(some), config.per_class, inertia, relocated
    )


def _by_class(space: Pixels, counts: Array, config: Config) -> Iterator[tuple[int, Points]]:
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
            parts[label].append(_of(block, label))
    for label in labels:
        # Dropped as they are given: only the classes to come stay in memory.
        yield label, list(rows.blocked(parts.pop(label), space.width))


def _of(block: Block, label: int) -> Block:
    mine = block.label == label
    return Block(block.x[mine], block.label[mine], block.pixel[mine])


def _joint(space: Pixels, subclasses: Subclasses) -> Array:
    """Count how often h1 says i and h2 says j, int64 (M, M)."""
    joint = np.zeros((len(subclasses.centers), len(subclasses.centers)), np.int64)
    ids = np.flatnonzero(subclasses.some)  # h2 never says one without pixels
    anywhere = clustering.Nearest(subclasses.prototypes[ids])
    own = [
        clustering.Nearest(subclasses.centers[subclasses.of_class(label)])
        for label in range(len(joint) // subclasses.per_class)
    ]

    with progress.bar("decisions of the sub-classes", len(space)) as advance:
        for block in space:
            for label in np.unique(block.label):
                x = block.x[block.label == label]
                h1 = label * subclasses.per_class + own[label](x)
                # A pair may occur many times in a block: `joint[...] += 1` would count it once.
                np.add.at(joint, (h1, ids[anywhere(x)]), 1)
            advance(len(block.x))
    return joint


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
