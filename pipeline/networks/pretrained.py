"""ImageNet weights: refused where a family has none, fetched and filled in where torchvision has them.

They lie in a cache that other programs write too, and their format can hold code. So a file is used only with the
hash that its publisher put into its name, and only tensors are ever built from one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from pipeline import plugin
from pipeline.errors import DataError, MachineError, ParamsError
from pipeline.networks.network import Network

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

_PUBLISHED_HASH = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")  # resnet18-f37072fd.pth: how its sha256 begins
_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def refuse(family: str, weights: str, network: str | None = None) -> None:
    """Accept no weights but "none".

    Args:
        family: it has no weights.
        weights: what was asked for.
        network: the one that has none, where others of its family do.

    Raises:
        ParamsError: other weights were asked for.
    """
    if weights != "none":
        lacks = f"Networks of family '{family}' have" if network is None else f"Network '{network}' has"
        raise ParamsError(f"{lacks} no '{weights}' weights. Set weights: none.")


def check(family: str, network: str, weights: str, channels: int) -> None:
    """Refuse weights that a network does not have, or that read other images; nothing is fetched for it.

    A family says in `PRETRAINED` of which channels its weights read images, and in `FRESH` which of its networks have
    no weights.

    Raises:
        ParamsError: as it says.
    """
    module = plugin.load("networks", family)
    readable = getattr(module, "PRETRAINED", ())
    if not readable:
        refuse(family, weights)
    elif network in getattr(module, "FRESH", ()):
        refuse(family, weights, network)
    elif weights != "none":
        _check_channels(channels, readable)


def _check_channels(channels: int, readable: tuple[int, ...] = (3,)) -> None:
    if channels not in readable:
        raise ParamsError(
            f"ImageNet weights read {' or '.join(map(str, readable))} channels, the images have {channels}. "
            "Set weights: none."
        )


def fetch(weights: WeightsEnum, channels: int) -> dict[str, Tensor]:
    """Return torchvision's own state dict, from its local cache or downloaded into it.

    Raises:
        ParamsError: the images do not have the three channels that these weights were trained on.
        MachineError: the weights are not on this machine and cannot be downloaded.
        DataError: the file in the cache is not the published one, or holds more than tensors.
    """
    _check_channels(channels)
    url: str = weights.url
    path = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlparse(url).path).name)
    published = _PUBLISHED_HASH.search(path.name)

    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), published and published[1], progress=False)
        except (OSError, RuntimeError) as error:  # no connection, or a download with another hash
            reason = " ".join(str(error).split())
            raise MachineError(
                f"{weights} cannot be fetched ({reason}). Put {url} into {path.parent}."
            ) from None

    # Also what was in the cache before: other programs write there too.
    if published:
        _check(path, published[1], url)
    return _read(path, url)


@contextmanager
def tensors_only() -> Iterator[None]:
    """Let torch build nothing but tensors in this block, whatever a library asks of it.

    A library that fetches weights itself may open them as any pickle, or do so when the careful way has failed.
    """
    before = {name: os.environ.get(name) for name in (_FORCE, _FORCE_NOT)}
    os.environ.pop(_FORCE_NOT, None)  # torch takes one of the two
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


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


def called(network: Network, body: nn.Module, head: str) -> None:
    """Tell a network what its library calls its tensors, so that files of the library's names fit it.

    Args:
        network: the network, made of the modules of `body`.
        body: the library's model without its classifier.
        head: what the classifier's names start with in the library.
    """
    ours = {id(x): name for name, x in network.state_dict(keep_vars=True).items()}
    network.library_names = {
        **{name: ours[id(x)] for name, x in body.state_dict(keep_vars=True).items()},
        **{f"{head}{name}": f"classifier.{name}" for name in network.classifier.state_dict()},
    }


def _check(path: Path, published: str, url: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(published):
        raise DataError(
            f"{path} has sha256 {actual}, expected one that begins with {published}, as its name says. "
            f"Delete it and put {url} there, then: dvc repro"
        )


def _read(path: Path, url: str) -> dict[str, Tensor]:
    content: object = None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise  # of the disk
    except Exception as error:
        # What is no archive of tensors fails in many ways, and torch's own message advises to trust it.
        kind = type(error).__name__
    else:
        kind = type(content).__name__

    if isinstance(content, dict) and all(isinstance(x, Tensor) for x in content.values()):
        return content
    raise DataError(
        f"{path} holds something else than tensors by name ({kind}). Delete it and put {url} there, then: dvc repro"
    )
