"""Lloyd's iterations on a device, for one clustering of all rows or one of each class, all classes at once.

The rules are those of `pipeline.tables.clustering`: the nearest center and of equal ones the first, means in float64
that become float32 centers, and an empty cluster goes to the row farthest from its own center. Sums are exact
(`fixed_point`), so centers depend neither on the order in which a GPU adds up nor on the blocks of the rows. They
agree with the CPU engine's to float32's rounding of distances: a row between two centers may go to the other one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import progress
from pipeline.tables.device import nearest
from pipeline.tables.device.fixed_point import FixedPoint, count_members
from pipeline.tables.device.nearest import Nearest
from pipeline.tables.device.rows import DeviceRows, Rows

Assign = Callable[[Rows], Tensor]  # gives the cluster of each row, int64 (n,)


@dataclass(frozen=True)
class Clusters:
    """What Lloyd's iterations came to.

    Attributes:
        centers: float32 (M, D).
        iterations: number of iterations done.
        relocated: how many empty clusters were moved to the rows farthest from their center, over all iterations.
    """

    centers: Tensor
    iterations: int
    relocated: int


@dataclass(frozen=True)
class Members:
    """The rows of each cluster.

    Attributes:
        cluster: of each row, int64 (N,).
        counts: rows of each cluster, int64 (M,).
        sums: in the unit of a `FixedPoint`, int64 (M, D).
    """

    cluster: Tensor
    counts: Tensor
    sums: Tensor


def of_all(centers: Tensor) -> Assign:
    """Return the nearest of centers (M, D), for rows of any class."""
    find = Nearest(centers)
    return lambda rows: find(rows.x)


def of_class(centers: Tensor, per_class: int) -> Assign:
    """Return the nearest of centers (M, D) among those of the row's class: c's are K * c to K * c + K - 1.

    A row is compared with K centers only, by their differences, whatever the number of classes.
    """
    own = centers.view(-1, per_class, centers.shape[1])  # (classes, K, D)

    def assign(rows: Rows) -> Tensor:
        clusters = []
        size = max(1, nearest.TILE_BYTES // (4 * own[0].numel()))
        for x, label in zip(torch.split(rows.x, size), torch.split(rows.label, size), strict=True):
            distance = nearest.squared_distances(x[:, None], own[label])  # (n, K)
            clusters.append(label * per_class + distance.argmin(dim=1))
        return torch.cat(clusters)

    return assign


def lloyd(
    rows: DeviceRows,
    centers: Tensor,
    iterations: int,
    per_class: int | None = None,
    advance: progress.Advance | None = None,
) -> Clusters:
    """Move centers to the means of their rows, until none moves or `iterations` are done.

    A class whose centers stand still is at its end, as it is alone: the same rows give the same means.

    Args:
        rows: to cluster.
        centers: the first ones, float32 (M, D).
        iterations: at most.
        per_class: clusters of each class; None where rows of all classes are clustered together.
        advance: called with the number of rows of each block.
    """
    unit, relocated = FixedPoint.of(rows), 0
    for done in range(1, iterations + 1):
        found = members(rows, centers, unit, per_class, advance, f"iteration {done}")
        if not bool(found.counts.all()):
            relocated += _relocate(rows, centers, found, unit, per_class or len(centers))

        means = unit.mean(found.sums, found.counts).float()
        moved = torch.where(found.counts[:, None] > 0, means, centers)
        still, centers = torch.equal(moved, centers), moved
        if still:
            return Clusters(centers, done, relocated)
    return Clusters(centers, iterations, relocated)


def members(
    rows: DeviceRows,
    centers: Tensor,
    unit: FixedPoint,
    per_class: int | None = None,
    advance: progress.Advance | None = None,
    note: str = "",
) -> Members:
    """Find the cluster of each row, and count and add up the rows of each; arguments as in `lloyd`."""
    assign = of_all(centers) if per_class is None else of_class(centers, per_class)
    counts = torch.zeros(len(centers), dtype=torch.int64, device=centers.device)
    sums = torch.zeros(centers.shape, dtype=torch.int64, device=centers.device)
    clusters = []
    for block in rows:
        cluster = assign(block)
        count_members(counts, cluster)
        sums.index_add_(0, cluster, unit.counted(block.x))
        clusters.append(cluster)
        if advance is not None:
            advance(len(cluster), note=note)
    return Members(torch.cat(clusters), counts, sums)


def distances(rows: DeviceRows, centers: Tensor, cluster: Tensor) -> Tensor:
    """Return the squared distance of each row to the center of its cluster int64 (N,), float32 (N,)."""
    parts, seen = [], 0
    for block in rows:
        own = cluster[seen : seen + len(block.x)]
        parts.append(nearest.squared_distances(block.x, centers[own]))
        seen += len(block.x)
    return torch.cat(parts)


def _relocate(rows: DeviceRows, centers: Tensor, found: Members, unit: FixedPoint, per_class: int) -> int:
    """Give each empty cluster one of its class's rows farthest from their center; return how many were given.

    Changes counts and sums. A row that lies on its center is not taken: there are fewer kinds of rows than
    clusters.
    """
    far = distances(rows, centers, found.cluster)
    empty = (found.counts == 0).nonzero()[:, 0]
    filled, places = [], []
    for label in torch.unique(empty // per_class).tolist():
        mine = empty[empty // per_class == label]
        # Rows of other classes come last; of equally far ones the first is taken.
        candidates = torch.where(found.cluster // per_class == label, far, -1.0)
        distance, order = candidates.sort(descending=True, stable=True)
        taken = int((distance[: len(mine)] > 0).sum())
        filled.append(mine[:taken])
        places.append(order[:taken])

    cluster, place = torch.cat(filled), torch.cat(places)
    old, x = found.cluster[place], unit.counted(rows.take(place))
    found.counts.index_add_(0, old, torch.full_like(old, -1))
    found.sums.index_add_(0, old, -x)
    found.counts[cluster], found.sums[cluster] = 1, x
    return len(cluster)
