"""Linear discriminant analysis of pixels, each labeled with its image's class (letKD, 4.2.2, step 1).

`pipeline.tables.discriminants` computes it. The table `subclasses` fits the same space for itself; this one is for
looking at it.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from pipeline.params.numbers import Width
from pipeline.tables import discriminants
from pipeline.tables.discriminants import Discriminants
from pipeline.tables.pixels import Pixels
from pipeline.tables.table import Array, FitContext, Fitted, Stream, TableConfig

UNIT: str | None = None


class Config(TableConfig):
    """Settings.

    Attributes:
        components: directions that are kept, the most discriminating first.
    """

    components: Width = 60


def stand_in(config: Config, channels: int, num_classes: int) -> dict[str, Array]:
    """Return arrays of the table's sizes."""
    return {"mean": np.zeros(channels), "scalings": np.zeros((channels, config.components))}


def fit(stream: Stream, config: Config, context: FitContext) -> Fitted:
    """Fit `mean` (C,) and `scalings` (C, components) to a stream of maps (N, C, H, W); all arrays float64.

    Beside them `explained` (components,), each direction's share of the variance between classes, `class_means`
    (K, C), zero for a class without pixels, and `priors` (K,).

    Raises:
        ParamsError: the feature is no map of floats, or there are fewer directions than components.
        DivergedError: it holds values that are not finite.
    """
    pixels = Pixels.of(stream, config.feature)
    space = _space(pixels, config, context)
    arrays = {
        "mean": space.mean,
        "scalings": space.scalings,
        "explained": space.explained,
        "class_means": space.class_means,
        "priors": space.priors,
    }

    quality = {
        "components": float(config.components),
        "classes": float(space.classes),
        "pixels": float(len(pixels)),
        "explained": float(space.explained.sum()),
        "explained_first": float(space.explained[0]),
        "rank": float(space.rank),
        "dropped_directions": float(space.dropped),
    }
    return Fitted(arrays, quality)


def _space(pixels: Pixels, config: Config, context: FitContext) -> Discriminants:
    if context.device is None:
        return discriminants.fit(pixels, config.components, context.num_classes)
    import torch

    from pipeline.tables.device.rows import DeviceRows
    from pipeline.tables.device.scatter import scatter

    # They are gone through once, so none needs to stay.
    rows = DeviceRows.of(pixels, torch.device(context.device), budget=0)
    seen = partial(scatter, rows, context.num_classes)
    return discriminants.fit(pixels, config.components, context.num_classes, seen)
