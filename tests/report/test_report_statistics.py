"""Means over seeds and their intervals, against plain references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.report import statistics


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 30, 200, 1001])
def test_t_quantiles_are_those_of_a_plain_reference(degrees: int, level: float) -> None:
    """Bisection of P(|T| < sqrt(degrees) tan(angle)): Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""

    def within(angle: float) -> float:
        sine, cosine, odd = math.sin(angle), math.cos(angle), degrees % 2
        term = cosine if odd else 1.0
        total = 0.0 if degrees == 1 else term
        for k in range(2 + odd, degrees - 1, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        return 2 / math.pi * (angle + sine * total) if odd else sine * total

    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < level else (low, middle)
    expected = math.tan(low) * math.sqrt(degrees)
    assert statistics.t_quantile(degrees, level) == pytest.approx(expected, rel=1e-9)


def test_a_paired_gain_is_the_paired_t_test() -> None:
    one, other = [71.2, 70.1, 73.4, 72.0], [70.0, 70.3, 71.9, 71.1]
    found = statistics.gain(one, other)
    test = stats.ttest_rel(one, other)
    low, high = test.confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(np.subtract(one, other)))
    assert found.std == pytest.approx(np.std(np.subtract(one, other), ddof=1))
    assert found.half == pytest.approx((high - low) / 2, rel=1e-9)
    assert found.count == 4


def test_one_seed_has_no_interval_and_a_clear_gain_has_a_verdict() -> None:
    alone = statistics.gain([71.0], [70.0])
    assert (alone.mean, alone.std, alone.half, alone.verdict) == (1.0, None, None, 0)
    assert statistics.gain([71.0, 71.1, 71.2], [70.0, 70.1, 70.1]).verdict == 1
    assert statistics.gain([70.0, 70.1, 70.1], [71.0, 71.1, 71.2]).verdict == -1
    assert statistics.gain([70.0, 72.0], [71.0, 71.1]).verdict == 0


def test_gains_of_unequal_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        statistics.gain([1.0, 2.0], [1.0])
