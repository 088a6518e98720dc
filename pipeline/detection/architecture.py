"""What a detector looks like before it is trained: the shape of every tap, without a single weight."""

from __future__ import annotations

from functools import cache

import torch

from pipeline.detection.detector_settings import DetectorSettings
from pipeline.networks.architecture import Architecture, undrawn

SIDE = 128  # of the image that is looked at, in pixels; what is learned from has any size


@cache
def architecture(network: str, settings: DetectorSettings, height: int = SIDE) -> Architecture:
    """Return the taps of a detector and their shapes for an image `SIDE` pixels wide.

    Args:
        network: its name.
        settings: how it is built.
        height: of the image, in pixels.

    Raises:
        UnknownNameError: there is no such network.
    """
    # Only now: torchvision takes a second to import, which those pay who name a detector.
    from pipeline.detection.backbone import STAGES
    from pipeline.detection.detector import build

    with torch.device("meta"), undrawn():
        detector = build(network, 1, 0, settings)
    detector = detector.to_empty(device="cpu").eval()
    for x in (*detector.parameters(), *detector.buffers()):
        x.data.zero_()  # what the memory held may be slow to compute with
    with torch.no_grad():
        maps = detector.maps([torch.zeros(3, height, SIDE)], detector.strides)
    units = ("stem", *(f"stage{k}" for k in range(1, STAGES + 1)))
    return Architecture(units, {name: tuple(maps[name].shape[1:]) for name in detector.strides})
