"""Sums of float32 rows by group, exact and the same in whatever order they are added up.

A GPU adds up the rows of a group in an order of its own, so sums of floats differ from run to run. Here values become
integers of 64 bits, counted in a unit that is a power of two, so small that the sum of all rows just fits. Sums of
integers have no rounding: only each value is rounded once, to half a unit. For N rows of magnitude m that is
2 m N 2**-62 at most, 1e-12 m for 3.2 million rows, where float32 rounds m itself to 6e-8 m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.tables.device.rows import DeviceRows

BITS = 62  # of 63, so that a sum of roundings cannot overflow either


@dataclass(frozen=True)
class FixedPoint:
    """A unit to count values in.

    Attributes:
        scale: units in one, a power of two.
    """

    scale: float

    @classmethod
    def of(cls, rows: DeviceRows) -> FixedPoint:
        """Return the smallest unit in which all rows can be added up; it takes a pass over them."""
        largest = torch.zeros((), device=rows.device)
        for block in rows:
            largest = torch.maximum(largest, block.x.abs().max())

        exponent = math.frexp(float(largest))[1]  # largest < 2**exponent
        # Clipped for rows that are tiny: 2**1024 is no float.
        return cls(math.ldexp(1.0, min(BITS - len(rows).bit_length() - exponent, 1000)))

    def counted(self, x: Tensor) -> Tensor:
        """Return values (n, D) in units, int64 (n, D)."""
        return (x.double() * self.scale).round_().to(torch.int64)

    def mean(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Return the means float64 (K, D) of groups; zero for a group without rows.

        Args:
            sums: in units, int64 (K, D).
            counts: rows of each group, int64 (K,).
        """
        return sums.double() / counts.clamp(min=1)[:, None] / self.scale


def count_members(counts: Tensor, group: Tensor) -> None:
    """Add one to `counts` int64 (K,) for each row of the groups int64 (n,): unlike bincount, without waiting."""
    counts.index_add_(0, group, torch.ones_like(group))
