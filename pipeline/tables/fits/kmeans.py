"""Words: K-means of the pixels of a teacher's map (letKD, Gorgun et al. 2023, 4.2.1; QuEST, Jain et al. 2020).

For centers rho_k a pixel x has the distribution p_T = softmax_k(-t ||x - rho_k||^2). letKD's text omits the
minus sign and t; its code has t = 1 and QuEST's t = 5. The paper's code clusters with faiss: 20 iterations from
random pixels. Here the first centers are k-means++'s, and every pixel counts unless `max_samples` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline import progress, seeding
from pipeline.errors import ParamsError
from pipeline.params.numbers import Factor, Seed, Width
from pipeline.tables import clustering, exemplars
from pipeline.tables.clustering import Words
from pipeline.tables.pixels import Block, Pixels, Points, in_memory
from pipeline.tables.softness import Softness, pieces
from pipeline.tables.table import FitContext, Fitted, Stream, TableConfig

Array = NDArray[Any]

UNIT: str | None = "word"


class Config(TableConfig):
    """Settings.

    Attributes:
        clusters: number of words.
        iterations: Lloyd's, at most; it ends earlier when no center moves.
        seed: decides the draws.
        max_samples: number of images, drawn at random, whose pixels are clustered; None is all.
        temperature: t of p_T, a factor.
    """

    clusters: Width = 4096
    iterations: int = Field(default=20, ge=1, le=10_000)
    seed: Seed = 0
    max_samples: int | None = Field(default=None, ge=1, le=1_000_000_000)
    temperature: Factor = 1.0


def stand_in(config: Config, channels: int, num_classes: int) -> dict[str, Array]:
    """Return arrays of the table's sizes."""
    return {
        "centers": np.zeros((config.clusters, channels), np.float32),
        "counts": np.zeros(config.clusters, np.int64),
        "temperature": np.array(config.temperature, np.float32),
    }


def fit(stream: Stream, config: Config, context: FitContext) -> Fitted:
    """Fit `centers` float32 (K, C) to a stream of maps (N, C, H, W).

    Beside them `counts` int64 (K,), `temperature` float32 (), and the exemplars of `pipeline.tables.exemplars`.

    Raises:
        ParamsError: the feature is no map of floats, or has fewer images or pixels than the settings say.
        DivergedError: it holds values that are not finite.
    """
    pixels = _sampled(Pixels.of(stream, config.feature), config)
    count = len(pixels)
    if count < config.clusters:
        raise ParamsError(
            f"Feature '{config.feature}' has {count:,} pixels, fewer than 'clusters: {config.clusters}'. Lower it in "
            "the table's settings in params.yaml, then: dvc repro"
        )

    if context.device is None:
        words = _on_cpu(pixels, config)
    else:
        from pipeline.tables.device import words as device

        words = device.words(
            pixels, config.clusters, config.iterations, config.seed, config.temperature, context.device
        )

    counts, clusters = words.counts, words.clusters
    arrays = {
        # In the feature's own coordinates, where encodings and methods compare.
        "centers": (clusters.centers + words.mean).astype(np.float32),
        "counts": counts,
        "temperature": np.array(config.temperature, np.float32),
    }

    sizes = {
        "clusters": float(config.clusters),
        "samples": float(pixels.num_samples),
        "pixels": float(count),
        "empty_clusters": float((counts == 0).sum()),
        "relocated": float(clusters.relocated),
        "largest_share": float(counts.max() / count),
        "smallest_share": float(counts.min() / count),
        "iterations": float(clusters.iterations),
    }
    return Fitted(arrays | words.shown, sizes | words.quality)


def _on_cpu(pixels: Pixels, config: Config) -> Words:
    count = len(pixels)
    mean = _mean(pixels)  # taken away, because the rounding of distances grows with x
    points = in_memory(pixels.map(lambda x: x - mean, pixels.channels), count, pixels.channels)
    clusters = clustering.fit(
        points, count, config.clusters, config.iterations, config.seed, f"k-means of {config.feature}"
    )

    counts, quality = _quality(points, count, clusters.centers, config.temperature)
    groups, (height, width) = exemplars.chosen(counts), pixels.stream.shape[2:]
    shown = exemplars.exemplars(points, groups, _nearness(clusters.centers[groups]), height, width)
    return Words(mean, clusters, counts, quality, shown)


def _sampled(pixels: Pixels, config: Config) -> Pixels:
    """Keep the pixels of `max_samples` images."""
    num, wanted = pixels.num_samples, config.max_samples
    if wanted is None:
        return pixels
    if wanted > num:
        raise ParamsError(
            f"'max_samples: {wanted}' is more than the {num:,} training samples. Lower it, or drop it to use all "
            "of them, in the table's settings in params.yaml, then: dvc repro"
        )
    draw = np.random.default_rng(seeding.derive(config.seed, "samples"))
    samples = np.zeros(num, bool)
    samples[draw.permutation(num)[:wanted]] = True
    return Pixels(pixels.stream, pixels.feature, samples)


def _mean(pixels: Pixels) -> Array:
    """Return the mean pixel, float32 (C,)."""
    total = np.zeros(pixels.channels)
    for x, _, _ in pixels:
        total += x.sum(axis=0, dtype=np.float64)
    mean: Array = (total / len(pixels)).astype(np.float32)
    return mean


def _quality(points: Points, count: int, centers: Array, t: float) -> tuple[Array, dict[str, float]]:
    """Return the members of each cluster, int64 (K,), and how well and how softly the clusters serve."""
    import torch

    nearest, softness, inertia = clustering.Nearest(centers), Softness(), 0.0
    counts, center = np.zeros(len(centers), np.int64), torch.from_numpy(centers)
    square = (center**2).sum(dim=1)
    with progress.bar("quality of the clusters", count) as advance:
        for x, _, _ in points:
            label = nearest(x)
            counts += np.bincount(label, minlength=len(centers))
            inertia += float(clustering.squared_distances(x, centers[label]).sum(dtype=np.float64))
            for piece in pieces(x):  # -t ||x - rho||^2, without the ||x||^2 that softmax cancels
                softness.add(torch.addmm(square, piece, center.T, beta=-t, alpha=2 * t))
            advance(len(x))

    return counts, {
        "inertia": inertia,
        "inertia_per_pixel": inertia / count,
        **softness.quality(),
    }


def _nearness(centers: Array) -> Callable[[Block], Array]:
    """Return the score of pixels: minus the squared distance to each of centers (G, C)."""

    def score(block: Block) -> Array:
        # One center at a time: differences to all of them, (n, G, C), would take G times the memory.
        distances = [clustering.squared_distances(block.x, center) for center in centers]
        return -np.stack(distances, axis=1)

    return score
