"""Words without clustering: the kernels of the teacher's last 3x3 convolution (letKD, 4.2.1 and its Table 3).

A pixel whose activations before the batch norm are a_k has p_T = softmax_k(scale * a_k): kernel k is a template,
as a cluster's center is. The paper states no scale; 1 is taken. Nothing is fitted but what shows how the kernels
are used. The feature is a stored map of those activations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import progress
from pipeline.params.numbers import Factor
from pipeline.tables import exemplars
from pipeline.tables.pixels import Block, Pixels
from pipeline.tables.softness import Softness, pieces
from pipeline.tables.table import FitContext, Fitted, Stream, TableConfig

Array = NDArray[Any]

UNIT: str | None = "kernel"


class Config(TableConfig):
    """Settings.

    Attributes:
        scale: the activations' factor.
    """

    scale: Factor = 1.0


def stand_in(config: Config, channels: int, num_classes: int) -> dict[str, Array]:
    """Return arrays of the table's sizes."""
    return {"scale": np.array(config.scale, np.float32), "counts": np.zeros(channels, np.int64)}


def fit(stream: Stream, config: Config, context: FitContext) -> Fitted:
    """Look at a stream of maps (N, K, H, W).

    Arrays: `scale` float32 (), `counts` int64 (K,), how often each kernel is the strongest, and the exemplars of
    `pipeline.tables.exemplars`.

    Raises:
        ParamsError: the feature is no map of floats.
        DivergedError: it holds values that are not finite.
    """
    pixels = Pixels.of(stream, config.feature)
    if context.device is None:
        counts, softness, shown = _on_cpu(pixels, config.scale)
    else:
        from pipeline.tables.device.kernels import kernels

        counts, softness, shown = kernels(pixels, config.scale, context.device)

    arrays: dict[str, Array] = {"scale": np.array(config.scale, np.float32), "counts": counts}
    quality = {
        "kernels": float(pixels.channels),
        "pixels": float(len(pixels)),
        "unused_kernels": float((counts == 0).sum()),
        **softness.quality(),
    }
    return Fitted(arrays | shown, quality)


def _on_cpu(pixels: Pixels, scale: float) -> tuple[Array, Softness, dict[str, Array]]:
    import torch

    counts, softness = np.zeros(pixels.channels, np.int64), Softness()
    with progress.bar(f"kernels of {pixels.feature}", len(pixels)) as advance:
        for x, _, _ in pixels:
            counts += np.bincount(x.argmax(axis=1), minlength=pixels.channels)
            for piece in pieces(x):
                softness.add(scale * piece)
            advance(len(x))

    groups, (height, width) = exemplars.chosen(counts), pixels.stream.shape[2:]

    def score(block: Block) -> Array:
        # The softmax is over all kernels; only then are the shown ones taken, (n, G).
        log = [(scale * piece).log_softmax(dim=1)[:, torch.from_numpy(groups)] for piece in pieces(block.x)]
        scores: Array = torch.cat(log).numpy()
        return scores

    return counts, softness, exemplars.exemplars(pixels, groups, score, height, width)
