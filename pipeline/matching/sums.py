"""What one pass over the plain training images sees of a teacher and a student."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import seeding
from pipeline.matching.assignment import ONE_TO_ONE, assign, score
from pipeline.matching.consistency import Statistics, pooled, range_of
from pipeline.networks.network import Shape
from pipeline.params.matchings import Measure

STRATEGIES = ("identity", "random", "greedy", "bipartite")


@dataclass
class Sums:
    """What one pass has seen of teacher and student.

    Attributes:
        statistics: sums from which M follows, one for each range of labels.
        teacher: sums of pooled features by class, float64 (K, c_T).
        student: the same of the student (K, c_S).
        counts: samples by class (K,).
        teacher_map: sum of the features of the pictured class, float64 (c_T, ...).
        student_map: the same of the student (c_S, ...).
        learned: the same pass over the output of a learned network, or None.
    """

    statistics: list[Statistics]
    teacher: Tensor
    student: Tensor
    counts: Tensor
    teacher_map: Tensor
    student_map: Tensor
    learned: Sums | None = None

    @classmethod
    def empty(
        cls,
        teacher: int,
        student: int,
        shape: Shape,
        ranges: int,
        classes: int,
        measure: Measure,
        device: torch.device,
    ) -> Sums:
        """Return sums over no samples; `shape` is that of the teacher's feature."""

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float64, device=device)

        return cls(
            [Statistics(teacher, student, measure).to(device) for _ in range(ranges)],
            zeros(classes, teacher),
            zeros(classes, student),
            zeros(classes),
            zeros(teacher, *shape[1:]),
            zeros(student, *shape[1:]),
        )

    def add(self, a: Tensor, b: Tensor, label: Tensor, pictured: int) -> None:
        """Add features (B, ...) of teacher and student, of samples with labels int64 (B,)."""
        flat_a, flat_b = pooled(a), pooled(b)
        if len(self.statistics) == 1:
            self.statistics[0].add(flat_a, flat_b)  # to pick out all of them would wait for a GPU
        else:
            ranges = range_of(label, len(self.statistics), len(self.counts))
            for number, statistics in enumerate(self.statistics):
                chosen = ranges == number
                statistics.add(flat_a[chosen], flat_b[chosen])

        self.teacher.index_add_(0, label, flat_a)
        self.student.index_add_(0, label, flat_b)
        # Unlike bincount it does not wait for a GPU; counts are exact in any order.
        self.counts.index_add_(0, label, torch.ones_like(label, dtype=torch.float64))

        shown = label == pictured
        if a.ndim == b.ndim:  # a pooled feature has no picture
            self.teacher_map += _sum_of(a, shown)
            self.student_map += _sum_of(b, shown)

    def joined(self, learned: Sums) -> Sums:
        """Return these sums with those of a learned network's output."""
        self.learned = learned
        return self

    def matrices(self) -> list[NDArray[np.float64]]:
        """Return M (c_T, c_S) of each range."""
        return [statistics.matrix().cpu().numpy() for statistics in self.statistics]

    def gammas(self, seed: int) -> dict[str, float]:
        """Return Gamma of the strategies that are possible, the mean over ranges.

        Args:
            seed: the random permutation's.
        """
        teacher, student = self.teacher.shape[1], self.student.shape[1]
        gammas = {}
        for strategy in STRATEGIES:
            if strategy in ONE_TO_ONE and teacher < student:
                continue
            scores = [
                score(matrix, assign(matrix, strategy, seeding.generator(seed, "gamma", number)))
                for number, matrix in enumerate(self.matrices())
            ]
            gammas[strategy] = float(np.mean(scores))
        if self.learned is not None:
            # Its outputs stand at the student's places already, so Gamma is the trace.
            gammas["learned"] = float(np.trace(self.learned.matrices()[0]))
        return gammas


def _sum_of(x: Tensor, chosen: Tensor) -> Tensor:
    """Return the sum float64 (C, ...) of the samples of x (B, C, ...) that are chosen, bool (B,)."""
    if x.device.type != "cuda":
        return x[chosen].sum(dim=0, dtype=torch.float64)
    # Zeros in place of the others: to pick out samples is to wait for their number.
    mask = chosen.view(-1, *(1,) * (x.ndim - 1))
    return torch.where(mask, x, 0.0).sum(dim=0, dtype=torch.float64)
