"""What a network looks like before it is trained: its units and the shape of every tap, without a single weight."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pipeline.errors import ParamsError, ShapeError, StillhouseError
from pipeline.networks.catalogue import IMPORTED
from pipeline.networks.network import Network, Shape, build, insert, probe
from pipeline.networks.spec import NetworkSpec
from pipeline.params.size import shown, sides

LAST = "last"  # in the place of a stage's name: the last stage
_STAGE = re.compile(r"stage\d+")


@dataclass(frozen=True)
class Architecture:
    """A network's units and taps.

    Attributes:
        units: taps at which units end, in their order: "stem", "stage1" and so on.
        taps: shape of every tap without the batch axis, from input to output.
        norms: the taps that a BN stands before; see `Network.norms`.
        averages: whether the classifier reads the mean of `final`, and nothing else.
    """

    units: tuple[str, ...]
    taps: Mapping[str, Shape]
    norms: tuple[str, ...] = ()
    averages: bool = True

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


class _Undrawn(TorchFunctionMode):
    """Leaves random draws out: on the meta device torch imports its compiler for them, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`; of a draw, return the tensor as it is."""
        return args[0] if func in _DRAWS else func(*args, **(kwargs or {}))


_DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_)


def undrawn() -> AbstractContextManager[object]:
    """Return a context in which parameters keep what their memory holds: where shapes alone count, draws are slow."""
    return _Undrawn()


def architecture(spec: NetworkSpec) -> Architecture:
    """Return the architecture of `spec`: nothing is drawn, and one image of zeros is computed.

    Raises:
        UnknownNameError: no such family or network.
        ShapeError: the network cannot read images of this size.
    """
    network = blank(spec)
    taps = probe(network, spec.size, spec.channels)
    return Architecture(tuple(network.units), taps, tuple(network.norms()), network.averages())


def check_training(spec: NetworkSpec) -> None:
    """Refuse a network that gives something else in training than in evaluation, by which it was probed.

    Two images of zeros are computed, since a batch norm refuses a single value a channel. Those who train our own
    families need not ask: they compute alike in both.

    Raises:
        ParamsError: its outputs in training are not logits alone.
        ShapeError: it cannot read images of this size in training.
    """
    network = blank(spec).train()
    images = torch.zeros(2, spec.channels, *sides(spec.size))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = network(images)
    except StillhouseError:
        raise
    except network.refusals as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ShapeError(
            f"Network '{spec.network}' cannot read {spec.channels}x{shown(spec.size)} images in training: "
            f"{reason or type(error).__name__}. Choose another network, or images of another size."
        ) from None

    if logits.shape != (2, spec.classes):
        raise ParamsError(
            f"Network '{spec.network}' returns shape {tuple(logits.shape)} for two images in training, expected logits "
            f"of shape (2, {spec.classes}). Choose another network."
        )


def blank(spec: NetworkSpec) -> Network:
    """Build a network whose parameters are all zero, on the CPU: its shapes can be probed.

    Raises:
        UnknownNameError: no such family, network, layer or tap.
    """
    # Weights would be fetched, and meta tensors cannot hold them.
    plain = spec.model_copy(update={"weights": "none", "inserted": {}, "classifier_width": None})
    # Code of an import path is run when it is built, and may be slow with what the memory held.
    with torch.device("meta"), nullcontext() if spec.family == IMPORTED else undrawn():
        network = build(plain, 0)

    # Not probed on the meta device, where a batch norm would import torch's compiler, too.
    network = network.to_empty(device="cpu")
    for x in (*network.parameters(), *network.buffers()):
        x.data.zero_()  # what the memory held may be slow to compute with, or no index
    insert(network, spec, 0)
    if spec.classifier_width is not None:  # of what is inserted, so not before it
        network.classifier = nn.Linear(spec.classifier_width, spec.classes)
    return network
