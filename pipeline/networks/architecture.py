"""What a network looks like before it is trained: its units and the shape of every tap, without a single weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipeline.networks.network import Shape, build, probe
from pipeline.networks.spec import NetworkSpec

LAST = "last"  # in the place of a stage's name: the last stage
_STAGE = re.compile(r"stage\d+")


@dataclass(frozen=True)
class Architecture:
    """A network's units and taps.

    Attributes:
        units: taps at which units end, in their order: "stem", "stage1" and so on.
        taps: shape of every tap without the batch axis, from input to output.
    """

    units: tuple[str, ...]
    taps: Mapping[str, Shape]

    @property
    def stages(self) -> tuple[str, ...]:
        """The taps at which stages end, in their order; a network of another library may have them without units."""
        return tuple(tap for tap in self.taps if _STAGE.fullmatch(tap))

    def resolved(self, name: str) -> str:
        """Return a tap or feature whose "last" is replaced by the last stage: "last_block1" -> "stage3_block1".

        Encodings and tables that follow the tap stay as they are.
        """
        tap, colon, encodings = name.partition(":")
        first, underscore, place = tap.partition("_")
        if first != LAST or not self.stages:
            return name
        return f"{self.stages[-1]}{underscore}{place}{colon}{encodings}"


def architecture(spec: NetworkSpec) -> Architecture:
    """Return the architecture of `spec`, found on torch's meta device: nothing is drawn and nothing is computed.

    Raises:
        UnknownNameError: no such family or network.
        ShapeError: the network cannot read images of this size.
    """
    # Weights would be fetched, and meta tensors cannot hold them.
    plain = spec.model_copy(update={"weights": "none"})
    with torch.device("meta"):
        network = build(plain, 0)
        taps = probe(network, spec.size, spec.channels)
    return Architecture(tuple(network.units), taps)
