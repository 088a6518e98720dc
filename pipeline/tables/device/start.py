"""The first centers of K-means: scikit-learn's greedy k-means++, its distances computed on a device.

Distances are the work: for each center, those of all rows of the sample to a handful of candidates. They are float64
products rounded to float32, as scikit-learn's. The draws are scikit-learn's own, number by number, and are made on
the CPU from the same sums. So both choose the same rows, unless a last bit of a distance decides a draw.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.tables import clustering
from pipeline.tables.device.rows import DeviceRows

Array = NDArray[Any]


def start(rows: DeviceRows, clusters: int, seed: int) -> Tensor:
    """Choose the first centers, float32 (K, D), from the sample that `clustering.start` takes for this seed."""
    sample = torch.from_numpy(clustering.sampled(len(rows), clusters, seed)).to(rows.device)
    return plus_plus(rows.take(sample), clusters, seed)


def plus_plus(x: Tensor, clusters: int, seed: int) -> Tensor:
    """Choose centers float32 (K, D) among rows float32 (n, D), each far from those before.

    Args:
        x: the sample.
        clusters: K, at most n.
        seed: of the draws.
    """
    from threadpoolctl import threadpool_limits

    draw = np.random.RandomState(clustering.state(seed))  # scikit-learn's generator
    weights, trials = np.ones(len(x), np.float32), 2 + int(math.log(clusters))
    chosen = [int(draw.choice(len(x), p=weights / weights.sum()))]

    distances = _Distances(x, trials)
    closest, near = distances.of(chosen, None)
    with threadpool_limits(1):  # as in `clustering.start`: last bits of the sums depend on the threads
        potential = near @ weights
        for _ in range(1, clusters):
            drawn = draw.uniform(size=trials) * potential
            candidates = np.searchsorted(np.cumsum(near[0]), drawn).clip(max=len(x) - 1)

            # Of the candidates the one that leaves the least distance over all rows.
            kept, near = distances.of(candidates.tolist(), closest)
            potentials = near @ weights[:, None]
            best = int(potentials.argmin())
            potential, near, closest = potentials[best], near[best : best + 1].copy(), kept[best : best + 1]
            chosen.append(int(candidates[best]))
    return x[torch.tensor(chosen, device=x.device)]


class _Distances:
    """Squared distances of all rows to some of them, on the device and on the CPU."""

    def __init__(self, x: Tensor, most: int) -> None:
        self._x = x.double()
        self._square = (self._x**2).sum(dim=1)
        # Page-locked, since thousands of copies go through it.
        self._copy = torch.empty(most, len(x), pin_memory=x.device.type == "cuda")

    def of(self, rows: list[int], closest: Tensor | None) -> tuple[Tensor, Array]:
        """Return the distance to each of m rows, or to what is closer already: float32 (m, n), twice.

        Args:
            rows: which.
            closest: distance to the closest center so far, float32 (1, n).
        """
        index = torch.tensor(rows).to(self._x.device)
        squares = self._square[index][:, None] + self._square
        distance = torch.addmm(squares, self._x[index], self._x.T, alpha=-2).clamp_(min=0).float()
        if closest is not None:
            distance = torch.minimum(distance, closest)

        copy = self._copy[: len(rows)]
        copy.copy_(distance)
        return distance, copy.numpy()
