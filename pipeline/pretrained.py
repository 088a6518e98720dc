"""ImageNet weights: refused where a family has none, fetched and filled in where torchvision has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.errors import MachineError, ParamsError
from pipeline.network import Network

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


def refuse(family: str, weights: str) -> None:
    """Accept no weights but "none".

    Raises:
        ParamsError: other weights were asked for.
    """
    if weights != "none":
        raise ParamsError(f"Networks of family '{family}' have no '{weights}' weights. Set weights: none.")


def fetch(weights: WeightsEnum, channels: int) -> dict[str, Tensor]:
    """Return torchvision's own state dict, from its local cache or downloaded into it.

    Raises:
        ParamsError: the images do not have the three channels that these weights were trained on.
        MachineError: the weights are not on this machine and cannot be downloaded.
    """
    if channels != 3:
        raise ParamsError(f"ImageNet weights read 3 channels, the images have {channels}. Set weights: none.")
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no connection, or a file whose hash is wrong
        raise MachineError(
            f"{weights} cannot be fetched ({error}). "
            f"Put {weights.url} into {torch.hub.get_dir()}/checkpoints."
        ) from None
    return state


def fill(network: Network, body: nn.Module, state: dict[str, Tensor], head: str) -> None:
    """Fill a network with pretrained weights; the classifier stays fresh where its classes differ.

    Args:
        network: the network, made of the modules of `body`.
        body: the library's model without its classifier.
        state: the library's state dict.
        head: what the classifier's names start with in `state`, for instance "fc.".
    """
    classifier = {name.removeprefix(head): x for name, x in state.items() if name.startswith(head)}
    body.load_state_dict({name: x for name, x in state.items() if not name.startswith(head)})
    if classifier["weight"].shape == network.classifier.weight.shape:
        network.classifier.load_state_dict(classifier)
