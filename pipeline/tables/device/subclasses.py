"""Sub-classes on a device: all classes are clustered at once, in as many passes as one class takes.

The rules are those of `pipeline.tables.subclasses`, with the same draws in each class. Pixels in LDA space are
float32 products, so they differ from the CPU engine's in their last bits, and centers by as much (1e-4 in tests); a
pixel between two centers may go to the other one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline import progress, seeding
from pipeline.tables import clustering
from pipeline.tables.device import lloyd, nearest
from pipeline.tables.device import rows as device_rows
from pipeline.tables.device.fixed_point import FixedPoint, count_members
from pipeline.tables.device.gallery import exemplars
from pipeline.tables.device.rows import DeviceRows, Rows
from pipeline.tables.device.start import plus_plus
from pipeline.tables.discriminants import Discriminants
from pipeline.tables.pixels import Array


@dataclass(frozen=True)
class Clustered:
    """Centers and prototypes of all classes; see `pipeline.tables.subclasses.Subclasses`.

    Attributes:
        centers: float32 (M, D).
        prototypes: float32 (M, D).
        counts: pixels of each, int64 (M,).
        per_class: sub-classes of each class.
        inertia: sum of squared distances to the nearest center of the pixel's class.
        relocated: empty clusters that were moved.
    """

    centers: Tensor
    prototypes: Tensor
    counts: Tensor
    per_class: int
    inertia: float
    relocated: int


def projected(rows: DeviceRows, space: Discriminants) -> DeviceRows:
    """Return pixels in LDA space."""
    mean = torch.from_numpy(space.mean).to(rows.device)
    scalings = torch.from_numpy(space.scalings.astype(np.float32)).to(rows.device)
    return rows.map(lambda x: (x - mean).float() @ scalings, scalings.shape[1])


def class_counts(rows: DeviceRows, num_classes: int) -> Array:
    """Count the pixels of each class, int64 (K,)."""
    counts = torch.zeros(num_classes, dtype=torch.int64, device=rows.device)
    for block in rows:
        count_members(counts, block.label)
    numbers: Array = counts.cpu().numpy()
    return numbers


def clustered(
    rows: DeviceRows, counts: Array, per_class: int, iterations: int, seed: int, title: str
) -> Clustered:
    """Cluster the pixels of each class.

    Args:
        rows: pixels in LDA space.
        counts: pixels of each class, int64 (K,).
        per_class: sub-classes of each.
        iterations: at most.
        seed: of the draws.
        title: of the progress bar.
    """
    with progress.bar(title, len(rows) * iterations) as advance:
        advance(0, note="k-means++")
        first = torch.cat(
            [plus_plus(x, per_class, own) for x, own in _samples(rows, counts, per_class, seed)]
        )
        clusters = lloyd.lloyd(rows, first, iterations, per_class, advance)

    unit = FixedPoint.of(rows)
    found = lloyd.members(rows, clusters.centers, unit, per_class)
    means = unit.mean(found.sums, found.counts).float()
    prototypes = torch.where(found.counts[:, None] > 0, means, clusters.centers)
    inertia = lloyd.distances(rows, clusters.centers, found.cluster).sum(dtype=torch.float64)
    return Clustered(
        clusters.centers, prototypes, found.counts, per_class, float(inertia), clusters.relocated
    )


def _samples(rows: DeviceRows, counts: Array, per_class: int, seed: int) -> Iterator[tuple[Tensor, int]]:
    """Give the rows that each class's k-means++ chooses from, and its seed; as many classes a pass as fit."""
    order = rows.labels().argsort(stable=True)  # places by class, in their order in each
    begin = np.concatenate([[0], np.cumsum(counts)])
    seeds = [seeding.derive(seed, "subclasses", label) for label in range(len(counts))]
    chosen = [
        clustering.sampled(int(count), per_class, own) for count, own in zip(counts, seeds, strict=True)
    ]

    budget = (device_rows.free_bytes(rows.device) if rows.budget is None else rows.budget) // 4
    first = 0
    while first < len(counts):
        size = np.cumsum([4 * rows.width * len(index) for index in chosen[first:]])
        last = first + max(1, int(np.searchsorted(size, budget, side="right")))
        places = np.concatenate([begin[label] + chosen[label] for label in range(first, last)])
        x = rows.take(order[torch.from_numpy(places).to(rows.device)])

        samples = torch.split(x, [len(index) for index in chosen[first:last]])
        yield from zip(samples, seeds[first:last], strict=True)
        first = last


def joint(rows: DeviceRows, of: Clustered) -> Array:
    """Count how often h1 says i and h2 says j, int64 (M, M)."""
    number = len(of.centers)
    counts = torch.zeros(number * number, dtype=torch.int64, device=rows.device)
    ids = of.counts.nonzero()[:, 0]  # h2 never says one without pixels
    anywhere, own = nearest.Nearest(of.prototypes[ids]), lloyd.of_class(of.centers, of.per_class)
    with progress.bar("decisions of the sub-classes", len(rows)) as advance:
        for block in rows:
            count_members(counts, own(block) * number + ids[anywhere(block.x)])
            advance(len(block.x))

    matrix: Array = counts.view(number, number).cpu().numpy()
    return matrix


def gallery(rows: DeviceRows, of: Clustered, groups: Array, height: int, width: int) -> dict[str, Array]:
    """Return the exemplars of sub-classes int64 (G,)."""
    return exemplars(rows, groups, _nearness(of, groups), height, width)


def _nearness(of: Clustered, groups: Array) -> Callable[[Rows], Tensor]:
    """Return the score of pixels: minus the squared distance, in their own class."""

    def score(rows: Rows) -> Tensor:
        columns = []
        for group in groups.tolist():
            distance = nearest.squared_distances(rows.x, of.centers[group])
            columns.append(torch.where(rows.label == group // of.per_class, -distance, -torch.inf))
        return torch.stack(columns, dim=1)

    return score
