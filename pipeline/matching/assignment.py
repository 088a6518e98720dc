"""Which teacher channel stands at each place of the student (KCD, arXiv:2103.16844, section 3.3).

All are gathers: place j of the transformed teacher is its channel permutation[j].

    bipartite   no channel twice, and the largest sum of M there is (Kuhn and Munkres)
    greedy      each student channel takes the largest M of its column, so a teacher channel may stand twice
    random      no channel twice, drawn uniformly
    identity    the teacher's own order

Where the teacher has more channels than the student, some are not used: identity keeps the first c_S, random
draws c_S of them. Where it has fewer, only greedy is possible.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import ShapeError

ONE_TO_ONE = ("bipartite", "random", "identity")
Permutation = NDArray[np.int64]


def assign(matrix: NDArray[Any], strategy: str, generator: torch.Generator) -> Permutation:
    """Return the permutation int64 (c_S,) of a strategy.

    Args:
        matrix: M (c_T, c_S).
        strategy: one of the four above.
        generator: the CPU's, for `random`.

    Raises:
        ShapeError: the teacher has too few channels.
    """
    teacher, student = matrix.shape
    if strategy in ONE_TO_ONE and teacher < student:
        raise ShapeError(
            f"Strategy '{strategy}' gives each of the student's {student} channels a channel of its own, and the "
            f"teacher has {teacher}. Choose strategy greedy, fc or residual, or other taps, in 'matchings' in "
            "params.yaml."
        )

    if strategy == "identity":
        return np.arange(student, dtype=np.int64)
    if strategy == "random":
        # The beginning of a permutation: a random subset in random order.
        drawn: Permutation = torch.randperm(teacher, generator=generator)[:student].numpy()
        return drawn
    if strategy == "greedy":
        return np.asarray(matrix.argmax(axis=0), dtype=np.int64)

    from scipy.optimize import linear_sum_assignment

    # The matrix may be rectangular: surplus teacher channels get no place.
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    permutation = np.empty(student, dtype=np.int64)
    permutation[columns] = rows
    return permutation


def score(matrix: NDArray[Any], permutation: Permutation) -> float:
    """Return Gamma: the sum of M (c_T, c_S) over the places of the student."""
    return float(matrix[permutation, np.arange(matrix.shape[1])].sum())
