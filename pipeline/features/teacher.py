"""A frozen teacher that turns normalized images into encoded features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.machine import Machine
from pipeline.features import top
from pipeline.features.encoding import Feature, Tables, taps_of
from pipeline.networks.network import Network, Taps
from pipeline.params.top import Top


class Teacher:
    """A network in evaluation mode, without gradients, seen through features.

    Args:
        network: the teacher.
        machine: where it runs.
        tables: arrays of the fitted tables that encodings read, by table name.
        largest: the largest logits that are given exactly, by feature name, as by a store that keeps no others.
    """

    def __init__(
        self,
        network: Network,
        machine: Machine,
        tables: Tables | None = None,
        largest: Mapping[str, Top] | None = None,
    ) -> None:
        self.network = network.to(machine.device).eval().requires_grad_(False)
        self.machine = machine
        self.tables = tables
        self.largest = largest or {}

    @torch.no_grad()
    def features(self, image: Tensor, names: Iterable[str], label: Tensor) -> Taps:
        """Return the features `names` of normalized images (B, C, H, W), floats as float32.

        Args:
            image: normalized views (B, C, H, W).
            names: the features' names.
            label: the samples' classes, int64 (B,), on the machine's device; some codes depend on it.

        Raises:
            UnknownNameError: a tap or encoding that does not exist.
        """
        names = list(names)  # gone through twice
        with self.machine.autocast():
            taps = self.network.record(image, taps_of(names))
        features = {name: Feature.parse(name) for name in names}
        # Outside autocast: encodings compare distances, which bfloat16 would round away.
        encoded = {
            name: feature.encode(as_float32(taps[feature.tap]), self.tables, label)
            for name, feature in features.items()
        }
        # What a store loses is lost here too: a student that learns online has the same teacher.
        return {
            name: top.kept(x, self.largest[name]) if name in self.largest else x
            for name, x in encoded.items()
        }


def on_device(tables: Mapping[str, Mapping[str, NDArray[Any]]], machine: Machine) -> Tables:
    """Return the arrays of fitted tables as tensors, floats as float32; whole numbers stay where they can be read."""
    return {
        name: {key: _placed(torch.as_tensor(array), machine) for key, array in arrays.items()}
        for name, arrays in tables.items()
    }


def _placed(array: Tensor, machine: Machine) -> Tensor:
    # A number is read as such: from a GPU it would make every step wait.
    return (
        array if array.ndim == 0 and not array.is_floating_point() else as_float32(array).to(machine.device)
    )


def as_float32(x: Tensor) -> Tensor:
    """Return floats as float32 and leave integer codes alone."""
    return x.float() if x.is_floating_point() else x
