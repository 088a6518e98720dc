"""Means over seeds, and how sure they are: paired differences with Student's t-interval.

Runs of one seed share init, order and views, so a gain is the mean of per-seed differences. That takes out what
the seed gives to both, which the difference of two means would leave in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: the mean.
        std: standard deviation, with n - 1 in the denominator; None for one seed.
        half: half the width of the 95 % t-interval of the mean; None for one seed.
        count: number of seeds.
        planned: number of seeds that there should be; None where it does not matter.
    """

    mean: float
    std: float | None
    half: float | None
    count: int
    planned: int | None = None

    @property
    def lacking(self) -> bool:
        """Whether seeds are missing."""
        return self.planned is not None and self.count < self.planned

    @property
    def verdict(self) -> int:
        """1 where the whole interval lies above zero, -1 where below, 0 where it includes zero or there is none."""
        if self.half is None or abs(self.mean) <= self.half:
            return 0
        return 1 if self.mean > 0 else -1


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the mean of `values`, one a seed; of none it is NaN."""
    count = len(values)
    if not count:  # two runs that have no seed in common
        return Estimate(math.nan, None, None, 0)
    mean = math.fsum(values) / count
    if count == 1:  # there is nothing to estimate a spread from
        return Estimate(mean, None, None, 1)

    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Estimate(mean, std, t_quantile(count - 1) * std / math.sqrt(count), count)


def gain(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """Estimate the mean of `values - base`, paired by seed.

    Args:
        values: one a seed.
        base: as many, in the same order of seeds.
    """
    return estimate([value - other for value, other in zip(values, base, strict=True)])


def shared_gain(values: Mapping[int, float], base: Mapping[int, float], planned: int) -> Estimate:
    """Estimate the mean of `values - base` over the seeds that both have.

    Args:
        values: by seed.
        base: by seed.
        planned: number of seeds that there should be.
    """
    shared = [seed for seed in values if seed in base]
    paired = gain([values[seed] for seed in shared], [base[seed] for seed in shared])
    return replace(paired, planned=planned)


def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """Return the t for which Student's distribution has the share `level` within [-t, t].

    Args:
        degrees: of freedom, an integer of 1 or more.
        level: in (0, 1).
    """
    # Symmetric: what lies outside is shared by both tails.
    return float(stdtrit(degrees, (1 + level) / 2))
