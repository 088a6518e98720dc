"""Checkpoints of a running training: one safetensors file in the scratch folder, read back bit for bit.

The format has no checksum, and a bit that changes between a kill and the resume would give other weights. So a
checkpoint has the hash of all its tensors and of its state, and one that is damaged is not resumed from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.artifacts import publish
from pipeline.artifacts.hashing import content_hash
from pipeline.artifacts.system import system_error
from pipeline.errors import DamagedArtifactError
from pipeline.networks.weights import state_digest

_STATE, _DIGEST = "state", "digest"  # of the file's metadata
MOMENTUM = "momentum_buffer"  # torch's name of it


def save(path: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Write modules, the optimizer's moments and `state` (json) in one step.

    Args:
        path: the file.
        modules: by name.
        optimizer: its tensors are kept in the order of its parameters.
        state: everything else, for instance the epoch and the history.
    """
    tensors = _tensors(modules)
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, x in optimizer.state.get(parameter, {}).items():
            if x is not None:
                tensors[f"{name}/{number}"] = x
    # Copies: safetensors refuses tensors that share memory.
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    text = json.dumps(state)
    # All in one file, so that weights and state cannot be of two different epochs.
    with publish.writing(path) as part:
        part.write_bytes(to_bytes(tensors, metadata={_STATE: text, _DIGEST: _digest(tensors, text)}))


def state(path: Path) -> dict[str, Any] | None:
    """Return the `state` of a checkpoint, or None when there is none.

    Raises:
        DamagedArtifactError: what is there is not what was written.
    """
    if not path.exists():
        return None
    _, text = _read(path)
    content: dict[str, Any] = json.loads(text)
    return content


def restore(path: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> None:
    """Fill modules and the optimizer's moments from a checkpoint.

    Raises:
        DamagedArtifactError: it is not what was written.
    """
    saved, _ = _read(path)
    for name, x in _tensors(modules).items():
        # In place: the optimizer holds these very tensors.
        x.detach().copy_(saved[name])
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, x in optimizer.state.get(parameter, {}).items():
            if x is not None:
                x.copy_(saved[f"{name}/{number}"])
        # SGD makes its momentum with a parameter's first gradient: one that has had none yet has no momentum.
        name = f"{MOMENTUM}/{number}"
        if name in saved and MOMENTUM not in optimizer.state[parameter]:
            # In the parameter's memory format, which one kernel for all parameters takes for granted.
            buffer = torch.empty_like(parameter, requires_grad=False)
            optimizer.state[parameter][MOMENTUM] = buffer.copy_(saved[name])


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return a checkpoint's tensors by name and its state as text, which have the hash that they were written with."""
    try:
        path.open("rb").close()  # what the system refuses is told by it, and not by safetensors
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        whole = _digest(tensors, about[_STATE]) == about[_DIGEST]
    except MemoryError:
        raise
    except Exception as error:  # safetensors raises many kinds
        refused = system_error(error, path)
        if refused is not None:
            raise refused from None
        whole = False

    if not whole:
        raise DamagedArtifactError(f"{path} is damaged. Run the same command again: training starts anew.")
    return tensors, about[_STATE]


def _digest(tensors: Mapping[str, Tensor], state: str) -> str:
    return content_hash([state_digest(tensors), state])


def _tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{key}/{name}": x for key, module in modules.items() for name, x in module.state_dict().items()}


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
