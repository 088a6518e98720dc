"""A network on disk: its json, and its weights as safetensors with a hash of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from pipeline.artifacts.hashing import content_hash
from pipeline.artifacts.system import system_error
from pipeline.errors import DamagedArtifactError, MissingArtifactError
from pipeline.networks.network import Network, build
from pipeline.networks.spec import DIGEST, FILE, NetworkSpec, read_spec
from pipeline.params.base import Block


def save_spec(spec: Block, folder: Path) -> None:
    """Write `network.json`, from which `load` builds the network again."""
    content = spec.model_dump(mode="json")
    text = json.dumps(content | {DIGEST: content_hash(content)}, indent=2, sort_keys=True)
    (folder / FILE).write_text(text + "\n")


def save_weights(network: nn.Module, path: Path) -> None:
    """Write parameters and buffers as safetensors, with their hash: the format itself has no checksum."""
    # Copies, since safetensors refuses tensors that share memory.
    state = {name: x.detach().cpu().contiguous().clone() for name, x in network.state_dict().items()}
    path.write_bytes(to_bytes(state, metadata={DIGEST: state_digest(state)}))


def load(folder: Path, weights: str = "last") -> tuple[Network, NetworkSpec]:
    """Build the network of `folder/network.json` with the weights `folder/<weights>.safetensors`.

    Raises:
        MissingArtifactError: a file is not there.
        DamagedArtifactError: the weights cannot be read or are not this network's.
    """
    spec = read_spec(NetworkSpec, folder)
    # Nothing is fetched that is overwritten at once.
    network = build(spec.model_copy(update={"weights": "none"}), 0)
    load_weights(network, folder / f"{weights}.safetensors")
    return network.eval(), spec


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill `network` with the weights at `path`; every name and shape must fit.

    Raises:
        MissingArtifactError: there is no such file.
        DamagedArtifactError: the file cannot be read or belongs to another network.
    """
    state = read_weights(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise DamagedArtifactError(
            f"{path} does not hold this network's weights: {_reason(error)}. Delete it, then: dvc repro"
        ) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file, which must have the hash that they were written with.

    Raises:
        MissingArtifactError: there is no such file.
        DamagedArtifactError: it cannot be read, or its tensors are others.
        OSError: the system refuses to read it.
    """
    try:
        path.open("rb").close()  # what the system refuses is told by it, and not by safetensors
        state: dict[str, Tensor] = load_file(path)
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get(DIGEST)
    except FileNotFoundError:
        raise MissingArtifactError(f"{path} does not exist. Make it with: dvc repro") from None
    except MemoryError:
        raise
    except Exception as error:  # safetensors raises many kinds; the others mean that it is unusable
        raise system_error(error, path) or DamagedArtifactError(
            f"{path} does not hold this network's weights: {_reason(error)}. Delete it, then: dvc repro"
        ) from None

    if state_digest(state) != expected:
        raise DamagedArtifactError(
            f"{path} is damaged: its tensors do not have the hash that it was written with. "
            "Delete it, then: dvc repro"
        )
    return state


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return one hash of names, dtypes, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, x in sorted(state.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)};".encode())
        # As bytes: numpy has no bfloat16, and a NaN counts as it is.
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
