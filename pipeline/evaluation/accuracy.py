"""Accuracy of logits: all that a training measures."""

from __future__ import annotations

from torch import Tensor


def top(logits: Tensor, label: Tensor, k: int) -> float:
    """Return the share, in percent, of samples whose label is among the k largest logits.

    Args:
        logits: (N, K); with fewer than k classes all count.
        label: int64 (N,).
        k: for instance 1 or 5.
    """
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices  # (N, k)
    return 100 * (best == label[:, None]).any(dim=1).double().mean().item()
