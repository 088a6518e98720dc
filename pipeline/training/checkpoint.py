"""Checkpoints of a running training: one safetensors file in the scratch folder, read back bit for bit."""

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


def save(path: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Write modules, the optimizer's momentum and `state` (json) in one step.

    Args:
        path: the file.
        modules: by name.
        optimizer: SGD; its buffers are kept in the order of its parameters.
        state: everything else, for instance the epoch and the history.
    """
    tensors = _tensors(modules)
    for number, buffer in enumerate(_momentum(optimizer)):
        if buffer is not None:
            tensors[f"momentum/{number}"] = buffer
    # Copies: safetensors refuses tensors that share memory.
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    # All in one file, so that weights and state cannot be of two different epochs.
    with publish.writing(path) as part:
        part.write_bytes(to_bytes(tensors, metadata={"state": json.dumps(state)}))


def state(path: Path) -> dict[str, Any] | None:
    """Return the `state` of a checkpoint, or None when there is none that can be read."""
    try:
        with safe_open(path, "pt") as file:
            content: dict[str, Any] = json.loads(file.metadata()["state"])
            return content
    except Exception:  # a checkpoint is only worth having: without it, training starts at the beginning
        return None


def restore(path: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> None:
    """Fill modules and the optimizer's momentum from a checkpoint."""
    with safe_open(path, "pt") as file:
        for name, x in _tensors(modules).items():
            # In place: the optimizer holds these very tensors.
            x.detach().copy_(file.get_tensor(name))
        saved = set(file.keys())
        for number, parameter in enumerate(_parameters(optimizer)):
            # A parameter that has had no gradient yet has no momentum.
            name = f"momentum/{number}"
            if name in saved:
                # In the parameter's memory format, which one kernel for all parameters takes for granted.
                buffer = torch.empty_like(parameter, requires_grad=False)
                optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(file.get_tensor(name))


def _tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{key}/{name}": x for key, module in modules.items() for name, x in module.state_dict().items()}


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _momentum(optimizer: Optimizer) -> list[Tensor | None]:
    return [optimizer.state.get(parameter, {}).get("momentum_buffer") for parameter in _parameters(optimizer)]
