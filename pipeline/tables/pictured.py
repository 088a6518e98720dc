"""The sub-class of every pixel of a few images, for pictures in the report (letKD's figure S2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.tables import clustering
from pipeline.tables import subclasses as engine
from pipeline.tables.discriminants import Discriminants
from pipeline.tables.pixels import Pixels
from pipeline.tables.subclasses import Subclasses

Array = NDArray[Any]

IMAGES = 6


def pictured(pixels: Pixels, space: Discriminants, subclasses: Subclasses) -> dict[str, Array]:
    """Find the nearest sub-class of the own class (h1) for each pixel of a few images.

    They are the first images of six classes, which lie evenly among all.

    Args:
        pixels: of all images, not in LDA space.
        space: the LDA.
        subclasses: the sub-classes.

    Returns:
        `pictured`, the samples, int64 (n,), and `pictured_subclass`, int64 (n, H, W).
    """
    num_classes = len(subclasses.centers) // subclasses.per_class
    classes = np.unique(np.linspace(0, num_classes - 1, IMAGES).round().astype(np.int64))
    first = _first_of(classes, pixels)
    samples = np.array([first[label] for label in classes.tolist()], np.int64)

    used = np.zeros(pixels.stream.shape[0], bool)
    used[samples] = True
    height, width = pixels.stream.shape[2:]
    assigned = np.zeros(len(used) * height * width, np.int64)
    for block in engine.projected(replace(pixels, samples=used), space):
        for label in np.unique(block.label).tolist():
            mine, own = block.label == label, subclasses.of_class(label)
            nearest = clustering.Nearest(subclasses.centers[own])(block.x[mine])
            assigned[block.pixel[mine]] = own.start + nearest
    return {"pictured": samples, "pictured_subclass": assigned.reshape(-1, height, width)[samples]}


def _first_of(classes: Array, pixels: Pixels) -> dict[int, int]:
    """Return the first sample of each of some classes; the stream is read no further than the last of them."""
    first: dict[int, int] = {}
    start = 0
    for _, labels in pixels.stream:
        for label in classes.tolist():
            if label not in first and (labels == label).any():
                first[label] = start + int((labels == label).argmax())
        start += len(labels)
        if len(first) == len(classes):
            break
    return first
