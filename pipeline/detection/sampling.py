"""The boxes that Faster R-CNN learns from are drawn: as a function of what they are for, as every draw here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline import seeding

if TYPE_CHECKING:
    import torch


@contextmanager
def keyed(device: torch.device | str, *key: int | str) -> Iterator[None]:
    """Seed the global generators of the CPU and of `device` by `key` inside the block and restore them afterwards.

    torchvision's samplers draw from the generator of the device that their boxes are on, and take no other. Wrap
    `Detector.losses` in it, with the seed, the epoch and the step: then a training that resumes draws what one that
    was never interrupted does.
    """
    import torch

    device = torch.device(device)
    with seeding.scope(*key):
        if device.type != "cuda":
            yield
            return
        with torch.random.fork_rng(devices=[device], device_type="cuda"), torch.cuda.device(device):
            torch.cuda.manual_seed(seeding.derive(*key))
            yield
