"""A frozen teacher that turns normalised images into encoded features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pipeline.encoding import Feature, taps_of
from pipeline.machine import Machine
from pipeline.network import Network, Taps


class Teacher:
    """A network in evaluation mode, without gradients, seen through features.

    Args:
        network: the teacher.
        machine: where it runs.
        tables: arrays of the fitted tables that encodings read, by table name.
    """

    def __init__(
        self,
        network: Network,
        machine: Machine,
        tables: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.network = network.to(machine.device).eval().requires_grad_(False)
        self.machine = machine
        self.tables = tables

    @torch.no_grad()
    def features(self, image: Tensor, names: Iterable[str]) -> Taps:
        """Return the features `names` of normalised images (B, C, H, W), floats as float32.

        Raises:
            UnknownNameError: a tap or encoding that does not exist.
        """
        names = list(names)
        with self.machine.autocast():
            taps = self.network.record(image, taps_of(names))
        found = {name: Feature.parse(name) for name in names}
        return {
            name: feature.encode(as_float32(taps[feature.tap]), self.tables)
            for name, feature in found.items()
        }


def as_float32(x: Tensor) -> Tensor:
    """Return floats as float32 and leave integer codes alone."""
    return x.float() if x.is_floating_point() else x
