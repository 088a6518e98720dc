"""Random numbers of views: functions of sample and view id alone, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline import seeding


def uniform(index: Tensor, view: Tensor, count: int, salt: int = 0) -> Tensor:
    """Return float32 (B, count) in [0, 1) that depend on sample and view alone.

    Args:
        index: sample indices int64 (B,).
        view: view ids int64 (B,).
        count: number of draws a sample.
        salt: of what draws, so that spaces that are stacked do not draw alike.
    """
    return seeding.uniform(hashed(index, view, count, salt))


def hashed(index: Tensor, view: Tensor, count: int, salt: int = 0) -> Tensor:
    """Return int64 (B, count), any number equally often; see `uniform`."""
    key = seeding.mix(seeding.mix(index + 1) + view)
    if salt:
        key = seeding.mix(key ^ salt)
    return seeding.mix(key[:, None] + torch.arange(1, count + 1, device=index.device))
