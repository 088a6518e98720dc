"""The tap as it is."""

from __future__ import annotations

from torch import Tensor


def encode(x: Tensor) -> Tensor:
    """Return `x` (B, ...) unchanged."""
    return x
