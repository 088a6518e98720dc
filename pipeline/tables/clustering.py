"""K-means over rows that stream, on a CPU: k-means++ on a sample, then Lloyd's iterations over all rows.

scikit-learn is the engine: `kmeans_plusplus` chooses the first centers and `KMeans.predict` finds the nearest one,
the fastest of what was measured (C = 64 and 256, K = 4096, two cores: 203,000 and 98,000 rows a second;
`pairwise_distances_argmin` 116,000 and 44,000, torch's addmm and argmin 170,000 and 88,000). Its `fit` is not used:
it holds all rows, and adds them up in float32 in each thread, so that its centers change with the number of
threads. Here sums are float64 and in the order of the rows: bit for bit the same whatever the threads, the blocks of
the store and the memory that is spent on holding rows. A GPU follows the same rules in `pipeline.tables.device.lloyd`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import progress, seeding
from pipeline.tables.pixels import Points

Array = NDArray[Any]

# Rows that k-means++ chooses from: it takes about ten passes over them for every center.
START_ROWS = 1 << 15
START_ROWS_PER_CLUSTER = 8


@dataclass(frozen=True)
class Clusters:
    """What Lloyd's iterations came to.

    Attributes:
        centers: float32 (K, D).
        iterations: number of iterations done.
        relocated: how many empty clusters were moved to the rows farthest from their center, over all iterations.
    """

    centers: Array
    iterations: int
    relocated: int


@dataclass(frozen=True)
class Members:
    """The rows that are nearest to each center.

    Attributes:
        counts: int64 (K,).
        sums: float64 (K, D).
        inertia: sum of squared distances to the nearest center.
    """

    counts: Array
    sums: Array
    inertia: float


class Words(NamedTuple):
    """What one engine makes of the pixels of a map.

    Attributes:
        mean: of the pixels, which was taken away from them, float32 (C,).
        clusters: in coordinates without it.
        counts: pixels nearest to each center, int64 (K,).
        quality: how well and how softly the clusters serve.
        shown: the exemplars.
    """

    mean: Array
    clusters: Clusters
    counts: Array
    quality: dict[str, float]
    shown: dict[str, Array]


class Nearest:
    """Finds the nearest of centers (K, D) for rows; of equal ones the first.

    Args:
        centers: float32 (K, D).
    """

    def __init__(self, centers: Array) -> None:
        from sklearn.cluster import KMeans

        centers = np.ascontiguousarray(centers, np.float32)
        # Fitted to one row, for predict's sake alone; then it gets the centers.
        self._model = KMeans(1, init=centers[:1], n_init=1, max_iter=1).fit(centers[:1])
        self._model.cluster_centers_ = centers

    def __call__(self, x: Array) -> Array:
        """Return the nearest center of rows float32 (n, D), int32 (n,)."""
        nearest: Array = self._model.predict(x)
        return nearest


def fit(points: Points, count: int, clusters: int, iterations: int, seed: int, title: str) -> Clusters:
    """Cluster rows: k-means++, then Lloyd.

    Args:
        points: the rows, best with a mean near zero: distances are computed in float32.
        count: number of rows.
        clusters: K, at most `count`.
        iterations: at most; it ends earlier when no center moves.
        seed: of the draws.
        title: of the progress bar.
    """
    with progress.bar(title, count * iterations) as advance:
        advance(0, note="k-means++")
        return lloyd(points, start(points, count, clusters, seed), iterations, advance)


def start(points: Points, count: int, clusters: int, seed: int) -> Array:
    """Choose the first centers, float32 (K, D), by greedy k-means++ from a seeded sample of the rows.

    The sample has 8 rows a cluster, and 32,768 at least: all of them, where there are no more.
    """
    from sklearn.cluster import kmeans_plusplus
    from threadpoolctl import threadpool_limits

    # They are picked out as the blocks go by: no block is kept.
    chosen = sampled(count, clusters, seed)
    rows, seen = [], 0
    for x, _, _ in points:
        first, last = np.searchsorted(chosen, (seen, seen + len(x)))
        rows.append(x[chosen[first:last] - seen])
        seen += len(x)

    with threadpool_limits(1):  # the products' last bits depend on the threads; one is as fast
        centers, _ = kmeans_plusplus(np.concatenate(rows), clusters, random_state=state(seed))
    return np.asarray(centers, np.float32)


def sampled(count: int, clusters: int, seed: int) -> Array:
    """Draw which of `count` rows k-means++ chooses from, int64 (n,), ascending."""
    size = max(START_ROWS, START_ROWS_PER_CLUSTER * clusters)
    if size >= count:
        return np.arange(count)

    from sklearn.utils.random import sample_without_replacement

    # The method whose memory is that of the sample.
    return np.sort(
        sample_without_replacement(count, size, method="reservoir_sampling", random_state=state(seed))
    )


def state(seed: int) -> int:
    """Return scikit-learn's `random_state` for a seed."""
    return seeding.derive(seed, "kmeans") % (1 << 32)


def lloyd(
    points: Points, centers: Array, iterations: int, advance: progress.Advance | None = None
) -> Clusters:
    """Move centers to the means of their rows, until none moves or `iterations` are done.

    A center that has no rows goes to the row farthest from its own center, as in scikit-learn.

    Args:
        points: the rows.
        centers: the first ones, float32 (K, D).
        iterations: at most.
        advance: called with the number of rows of each block.
    """
    relocated = 0
    for done in range(1, iterations + 1):
        counts, sums = _means(points, centers, advance, f"iteration {done}")
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            relocated += _relocate(points, centers, empty, counts, sums)

        moved = centers.copy()
        moved[counts > 0] = sums[counts > 0] / counts[counts > 0, None]
        still, centers = np.array_equal(moved, centers), moved
        if still:
            return Clusters(centers, done, relocated)
    return Clusters(centers, iterations, relocated)


def members(points: Points, centers: Array) -> Members:
    """Count and add up the rows nearest to each of centers float32 (K, D)."""
    nearest, inertia = Nearest(centers), 0.0
    counts, sums = np.zeros(len(centers), np.int64), np.zeros(centers.shape)
    for x, _, _ in points:
        label = nearest(x)
        counts += np.bincount(label, minlength=len(centers))
        sums += grouped_sums(x, label, len(centers))
        inertia += float(squared_distances(x, centers[label]).sum(dtype=np.float64))
    return Members(counts, sums, inertia)


def grouped_sums(x: Array, group: Array, num_groups: int) -> Array:
    """Add up rows (n, D) by group, in their order: float64 (groups, D).

    Args:
        x: the rows.
        group: of each row, int (n,).
        num_groups: number of groups.
    """
    from scipy.sparse import csr_array

    rows = len(x)
    one_hot = csr_array(
        (np.ones(rows), group.astype(np.int64), np.arange(rows + 1)), shape=(rows, num_groups)
    )
    sums: Array = one_hot.T @ x.astype(np.float64)
    return sums


def squared_distances(x: Array, y: Array) -> Array:
    """Return the squared distance of each row of (n, D) to the same row of another, (n,)."""
    difference = x - y
    squared: Array = np.einsum("nd,nd->n", difference, difference)
    return squared


def _means(
    points: Points, centers: Array, advance: progress.Advance | None, note: str
) -> tuple[Array, Array]:
    nearest = Nearest(centers)
    counts, sums = np.zeros(len(centers), np.int64), np.zeros(centers.shape)
    for x, _, _ in points:
        label = nearest(x)
        counts += np.bincount(label, minlength=len(centers))
        sums += grouped_sums(x, label, len(centers))
        if advance is not None:
            advance(len(x), note=note)
    return counts, sums


def _relocate(points: Points, centers: Array, empty: Array, counts: Array, sums: Array) -> int:
    """Give each of the clusters `empty` one of the rows farthest from their center; return how many were given.

    Changes `counts` and `sums`. A row that lies on its center is not taken: there are fewer kinds of rows than
    clusters.
    """
    nearest = Nearest(centers)
    far = np.zeros(0)
    rows, label = np.zeros((0, centers.shape[1]), np.float32), np.zeros(0, np.int64)
    for x, _, _ in points:
        own = nearest(x)
        # The farthest so far and this block's compete; of equals the first stays.
        distance = np.concatenate([far, squared_distances(x, centers[own])])
        order = np.argsort(-distance, kind="stable")[: len(empty)]
        far, label = distance[order], np.concatenate([label, own])[order]
        rows = np.concatenate([rows, x])[order]

    taken = int((far > 0).sum())
    for cluster, row, old in zip(empty[:taken], rows[:taken], label[:taken], strict=True):
        counts[old] -= 1
        sums[old] -= row
        counts[cluster], sums[cluster] = 1, row
    return taken
