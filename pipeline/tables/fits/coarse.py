"""Coarse labels of one stage: which classes the teacher does not tell apart there yet (TDD, Song et al., CVPR 2021).

The classes' mean features, pooled, are merged by Ward's criterion into a binary tree. The accuracy of a node is the
share of the 20 samples nearest to its mean that are of its classes. From the root down, a node whose accuracy is below
0.2 is kept whole: its classes share one label. Any other is split, down to single classes. Coarse labels are numbered
by the first of their classes.

20 and 0.2 are those of the authors' example for CIFAR-10 (zju-vipa/KamalEngine); what they set for CIFAR-100 is not
known, and the same is taken. They read the BN before the last ReLU of the third block of each stage; here it is the
feature that is stored, a map or a vector, mostly the stage's own map. The mean of a node is that of its samples, where
their code takes the mean of its two children's means. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline import progress
from pipeline.errors import DataError, ParamsError
from pipeline.tables import clustering
from pipeline.tables.pixels import Pixels
from pipeline.tables.table import FitContext, Fitted, Stream, TableConfig

Array = NDArray[Any]

UNIT: str | None = None


class Config(TableConfig):
    """Settings.

    Attributes:
        neighbors: samples that the accuracy of a node is measured by.
        threshold: a node of less accuracy is kept whole; 0 keeps none, so that coarse labels are the labels.
    """

    neighbors: int = Field(default=20, ge=1, le=10_000)
    threshold: float = Field(default=0.2, ge=0, le=1)


def stand_in(config: Config, channels: int, num_classes: int) -> dict[str, Array]:
    """Return arrays of the most coarse labels that there can be: one a class."""
    return {"coarse": np.arange(num_classes), "sizes": np.ones(num_classes, np.int64)}


def fit(stream: Stream, config: Config, context: FitContext) -> Fitted:
    """Fit `coarse` int64 (K,), the coarse label of each class, to a stream of maps (N, C, H, W) or vectors (N, C).

    Beside it `sizes` int64 (M,), the classes of each coarse label; `linkage` float64 (K - 1, 4), the tree as scipy has
    it; and `accuracy` float64 (K - 1,) of its inner nodes. It is computed on the CPU.

    Raises:
        ParamsError: the feature is no map or vector of floats, or there are fewer samples than neighbors.
        DataError: a class has no training sample.
        DivergedError: it holds values that are not finite.
    """
    from scipy.cluster.hierarchy import linkage

    samples = Pixels.of(Pooled.of(stream, config.feature), config.feature)
    if len(samples) < config.neighbors:
        raise ParamsError(
            f"'neighbors: {config.neighbors}' is more than the {len(samples):,} training samples. Lower it in the "
            "table's settings in params.yaml, then: dvc repro"
        )

    sums, counts = _by_class(samples, context.num_classes)
    if not counts.all():
        raise DataError(
            f"Class {counts.argmin()} has no training sample, and coarse labels are made of the classes' means. Add "
            "images of it to the data set, then: dvc repro"
        )
    tree = linkage(sums / counts[:, None], "ward")
    classes = _classes(tree)
    means = classes @ sums / (classes @ counts)[:, None]  # (K - 1, C)
    accuracy = _accuracy(samples, means, classes, config.neighbors)
    coarse = _cut(tree, classes, accuracy < config.threshold)

    sizes = np.bincount(coarse)
    quality = {
        "samples": float(len(samples)),
        "classes": float(len(coarse)),
        "coarse_labels": float(len(sizes)),
        "largest": float(sizes.max()),
        "classes_alone": float((sizes == 1).sum()),
        "mean_accuracy": float(accuracy.mean()),
    }
    return Fitted({"coarse": coarse, "sizes": sizes, "linkage": tree, "accuracy": accuracy}, quality)


@dataclass
class Pooled:
    """A stream whose samples are averaged over height and width: maps of one pixel.

    Attributes:
        stream: maps (N, C, H, W) or vectors (N, C).
        feature: name of the feature, for messages.
        shape: (N, C, 1, 1).
    """

    stream: Stream
    feature: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, stream: Stream, feature: str) -> Pooled:
        """Return the pooled stream.

        Raises:
            ParamsError: the feature is neither a map nor a vector.
        """
        if len(stream.shape) not in (2, 4):
            raise ParamsError(
                f"Feature '{feature}' has shape {tuple(stream.shape[1:])}, and coarse labels are fitted to a map "
                "(C, H, W) or a vector (C,). Choose another 'feature' in the table's settings in params.yaml, then: "
                "dvc repro"
            )
        return cls(stream, feature, (*stream.shape[:2], 1, 1))

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """Give blocks: float32 (n, C, 1, 1) and labels int64 (n,)."""
        for values, label in self.stream:
            # Before the mean, which would make floats of integers.
            Pixels(self, self.feature).require_floats(values.dtype)
            with np.errstate(invalid="ignore"):  # of infinities, which are an error that names their sample
                pooled = values.reshape(*values.shape[:2], -1).mean(axis=2, dtype=np.float64)
            yield pooled.astype(np.float32)[:, :, None, None], label


def _by_class(samples: Pixels, num_classes: int) -> tuple[Array, Array]:
    """Return the sum of each class, float64 (K, C), and its samples, int64 (K,)."""
    sums, counts = np.zeros((num_classes, samples.channels)), np.zeros(num_classes, np.int64)
    with progress.bar(f"class means of {samples.feature}", len(samples)) as advance:
        for x, label, _ in samples:
            sums += clustering.grouped_sums(x, label, num_classes)
            counts += np.bincount(label, minlength=num_classes)
            advance(len(x))
    return sums, counts


def _classes(tree: Array) -> Array:
    """Return which classes stand below each inner node of a linkage (K - 1, 4): bool (K - 1, K)."""
    below = np.eye(len(tree) + 1, dtype=bool)
    for left, right in tree[:, :2].astype(int):
        below = np.concatenate([below, below[None, left] | below[None, right]])
    return below[len(tree) + 1 :]


def _accuracy(samples: Pixels, means: Array, classes: Array, neighbors: int) -> Array:
    """Return which share of the samples nearest to each mean (M, C) is of its classes, bool (M, K): float64 (M,)."""
    from sklearn.neighbors import NearestNeighbors

    distance: Array = np.zeros((len(means), 0))
    label: Array = np.zeros((len(means), 0), np.int64)
    with progress.bar(f"neighbors in {samples.feature}", len(samples)) as advance:
        for x, own, _ in samples:
            model = NearestNeighbors(n_neighbors=min(neighbors, len(x)), algorithm="brute")
            near, row = model.fit(x.astype(np.float64)).kneighbors(means)  # (M, n), (M, n)

            # The nearest so far and this block's compete; of equals the first stays.
            distance = np.concatenate([distance, near], axis=1)
            label = np.concatenate([label, own[row]], axis=1)
            order = np.argsort(distance, axis=1, kind="stable")[:, :neighbors]
            distance = np.take_along_axis(distance, order, axis=1)
            label = np.take_along_axis(label, order, axis=1)
            advance(len(x))
    share: Array = np.take_along_axis(classes, label, axis=1).mean(axis=1)
    return share


def _cut(tree: Array, classes: Array, whole: Array) -> Array:
    """Return the coarse label of each class, int64 (K,).

    Args:
        tree: the linkage (K - 1, 4).
        classes: those below each inner node, bool (K - 1, K).
        whole: whether an inner node is kept, bool (K - 1,).
    """
    num_classes = len(tree) + 1
    first, waiting = np.arange(num_classes), [num_classes + len(tree) - 1]
    while waiting:
        node = waiting.pop() - num_classes
        if node < 0:
            continue  # a class by itself
        if whole[node]:
            first[classes[node]] = classes[node].argmax()
        else:
            waiting += tree[node, :2].astype(int).tolist()
    coarse: Array = np.unique(first, return_inverse=True)[1]
    return coarse
