"""What two classifiers have in common, and what classes have."""

from __future__ import annotations

import torch
from torch import Tensor


def agreement(prediction: Tensor, other: Tensor) -> float:
    """Return the share, in percent, of samples that two classifiers put into the same class.

    Args:
        prediction: classes int64 (N,).
        other: classes int64 (N,).
    """
    return 100 * (prediction == other).double().mean().item()


def correlation(logits: Tensor) -> Tensor:
    """Return Pearson's correlation over samples of the logits of every two classes, float64 (K, K).

    It is 0 with a class whose logit never changes.

    Args:
        logits: (N, K).
    """
    return torch.corrcoef(logits.double().T).nan_to_num(0.0)
