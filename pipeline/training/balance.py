"""What labels cost: the term `ce`, what the labels of each class weigh, and an order that draws classes evenly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.mixing import Mixture
from pipeline.errors import ParamsError
from pipeline.params.recipe import Recipe


def class_weights(
    recipe: Recipe, labels: NDArray[np.int64], classes: Sequence[str], title: str
) -> Tensor | None:
    """Return what the label of each class weighs, float32 (K,), or None where all weigh the same.

    "balanced" is in inverse proportion to the number of images; classes that a mapping leaves out weigh 1. Then all are
    divided by what the labels of an epoch weigh on average, so that the learning rate means what it did.

    Args:
        recipe: gives the setting.
        labels: of the training images, int64 (N,).
        classes: class names.
        title: of the training, for errors.

    Raises:
        UnknownNameError: the setting names a class that is not there.
        ParamsError: the classes that it gives a weight above 0 have no images.
    """
    given = recipe.class_weights
    if given is None:
        return None
    counts = np.bincount(labels, minlength=len(classes)).astype(np.float64)
    if given == "balanced":
        weights = np.divide(1, counts, out=np.zeros_like(counts), where=counts > 0)
    else:
        recipe.check_classes(classes, title)
        weights = np.array([given.get(name, 1.0) for name in classes])

    shares = np.where(counts > 0, 1, 0) if recipe.sampling == "balanced" else counts
    mean = (shares * weights).sum() / shares.sum()
    if mean == 0:
        raise ParamsError(f"params.yaml: class_weights of {title} are 0 for every image. Give one above 0.")
    return torch.from_numpy(weights / mean).float()


def label_term(
    logits: Tensor,
    label: Tensor,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    mixture: Mixture | None = None,
) -> Tensor:
    """Return the cross-entropy of labels: the mean over the batch of each sample's, times what its class weighs.

    A sample of two labels has the mean of both losses, by what the labels count.

    Args:
        logits: (B, K).
        label: int64 (B,).
        smoothing: share of each label that is spread over all classes.
        weights: of the classes (K,); None weighs all alike.
        mixture: the second labels, where samples are mixed.
    """
    if weights is None and mixture is None:
        return F.cross_entropy(logits, label, label_smoothing=smoothing)

    # torch's own weights divide by what the batch weighs, which differs between batches and between ranks.
    def rows(label: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, label, label_smoothing=smoothing, reduction="none")
        return losses if weights is None else weights.index_select(0, label) * losses

    return rows(label).mean() if mixture is None else mixture.mean(rows, label)


def by_class(labels: NDArray[np.int64]) -> tuple[Tensor, ...]:
    """Return the samples of each class that has any, int64 (n,) each."""
    return tuple(torch.from_numpy(np.flatnonzero(labels == label)) for label in np.unique(labels))


def evenly(groups: Sequence[Tensor], number: int, generator: torch.Generator) -> Tensor:
    """Draw from every group equally often, but for a remainder of one; within a group, from every sample too.

    Args:
        groups: samples, int64 (n,) each.
        number: of samples that are drawn in all.
        generator: of the draws.

    Returns:
        the samples in random order, int64 (number,).
    """
    times, left = divmod(number, len(groups))
    once_more = set(torch.randperm(len(groups), generator=generator)[:left].tolist())
    drawn = []
    for place, rows in enumerate(groups):
        wanted = times + (place in once_more)
        # Whole passes over the group, and a part of one more.
        passes = [
            torch.randperm(len(rows), generator=generator) for _ in range(math.ceil(wanted / len(rows)))
        ]
        drawn += [rows[torch.cat(passes)[:wanted]]] if passes else []
    order = torch.cat(drawn)
    return order[torch.randperm(len(order), generator=generator)]
