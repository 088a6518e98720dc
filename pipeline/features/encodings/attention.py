"""Spatial attention (Zagoruyko and Komodakis 2017, arXiv:1612.03928): the channel mean of squares."""

from __future__ import annotations

from torch import Tensor

AXES = 4


def encode(x: Tensor) -> Tensor:
    """Return the mean of squares over channels, (B, H, W) of a map (B, C, H, W)."""
    return x.square().mean(dim=1)
