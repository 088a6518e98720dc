"""A linear classifier on what a backbone gives: multinomial logistic regression, fitted before a teacher is trained.

Features are what the classifier reads of the plain view, computed once and kept. The loss is the mean cross-entropy
plus |W|^2 / (2 N) over standardized features (scikit-learn's default, C = 1), and L-BFGS starts from zero: there is
nothing to draw and nothing to tune. Then the standardization is folded into the classifier.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.compute.machine import Machine
from pipeline.errors import DataError
from pipeline.evaluation.forward import PlainSplit
from pipeline.networks.network import Network

STEPS = 1000
CHUNK = 65536  # rows that are in float64 at a time


def fit(network: Network, split: PlainSplit, machine: Machine) -> None:
    """Set the classifier of a network to the one that is fitted to a split.

    Raises:
        DataError: the backbone gives values that are not finite.
    """
    features = pooled(network, split, machine)
    if not features.isfinite().all():
        raise DataError("The backbone gives features that are not finite. Name other weights in params.yaml.")
    weight, bias = regression(features, split.labels.to(features.device), network.classifier.out_features)
    with torch.no_grad():
        network.classifier.weight.copy_(weight)
        network.classifier.bias.copy_(bias)


@torch.no_grad()
def pooled(network: Network, split: PlainSplit, machine: Machine) -> Tensor:
    """Return what the classifier reads, float32 (N, C), of the plain images of a split."""
    training = network.training
    network.eval()
    with machine.autocast():
        features = [network.record(image, ("pooled",))["pooled"].float() for image in split.batches()]
    network.train(training)
    return torch.cat(features)


def regression(features: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the weight (K, C) and bias (K,) of a logistic regression, in float64.

    Args:
        features: float32 (N, C).
        label: classes int64 (N,).
        classes: their number K.
    """
    chunks = [*zip(torch.split(features, CHUNK), torch.split(label, CHUNK), strict=True)]
    count = len(features)
    mean = torch.stack([chunk.double().sum(dim=0) for chunk, _ in chunks]).sum(dim=0) / count
    squares = torch.stack([(chunk.double() - mean).square().sum(dim=0) for chunk, _ in chunks]).sum(dim=0)
    std = (squares / count).sqrt()
    std = torch.where(std > 0, std, 1)  # of a feature that is always the same

    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    bias = weight.new_zeros(classes)
    for x in (weight, bias):
        x.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=STEPS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = weight.square().sum() / 2
        total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for chunk, wanted in chunks:
            scores = F.linear((chunk.double() - mean) / std, weight, bias)
            part = F.cross_entropy(scores, wanted, reduction="sum")
            part.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total = total.detach() + part.detach()
        for x in (weight, bias):
            assert x.grad is not None
            x.grad /= count
        return total / count

    optimizer.step(loss)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    folded = weight.detach() / std
    return folded, bias.detach() - folded @ mean
