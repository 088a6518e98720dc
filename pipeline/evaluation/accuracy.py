"""Accuracy of logits, what two classifiers have in common, and what classes have."""

from __future__ import annotations

import torch
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


def confusion(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Return counts int64 (K, K): rows are labels, columns predictions.

    Args:
        prediction: classes int64 (N,).
        label: classes int64 (N,).
        num_classes: K.
    """
    pairs = label * num_classes + prediction
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
