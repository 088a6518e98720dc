"""A file of weights that another program wrote: which tensors it holds, by the names that it has.

It is safetensors, or what `torch.save` wrote. Nothing but tensors and plain values is ever built from it; of classes
`argparse.Namespace` alone, in which many checkpoints keep their options.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.artifacts.system import system_error
from pipeline.errors import DataError, ParamsError
from pipeline.params.weights import FileSettings

PLACES = ("state_dict", "model_state_dict", "model", "ema", "state_dict_ema", "model_ema")
_OBJECT = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")
_DEPTH = 2  # of a place in a checkpoint; an optimizer's tensors lie deeper
_SHOWN = 4  # names in an error

State = dict[str, Tensor]


def read(path: str, settings: FileSettings) -> State:
    """Return a file's tensors, by the names that it has.

    Raises:
        DataError: it holds something else, or values that are not finite.
        ParamsError: several of its places hold tensors, or the one that is named does not.
    """
    state = _place(path, _opened(Path(path)), settings.key)
    odd = [name for name, x in state.items() if not _is_plain(x)]
    if odd:
        raise DataError(
            f"The weights {path} are sparse, nested, quantized, complex or without values in {some(odd)}. Save plain "
            "tensors of real numbers."
        )
    # As the network will hold them: what float64 has may be infinite there, and few functions know 8 bits.
    broken = [name for name, x in state.items() if x.is_floating_point() and not x.float().isfinite().all()]
    if broken:
        raise DataError(f"The weights {path} are not finite in {some(broken)}. Name another file.")
    return state


def some(names: list[str]) -> str:
    """Return the first few names, and how many there are beside them."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _is_plain(x: Tensor) -> bool:
    return x.layout == torch.strided and not (x.is_quantized or x.is_nested or x.is_complex() or x.is_meta)


def _opened(path: Path) -> object:
    """Return what a file holds, built of nothing but tensors and plain values."""
    try:
        path.open("rb").close()  # what the system refuses is told by it, and not by a library
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        # What is no file of tensors fails in many ways, and torch's own message advises to trust it.
        found = _OBJECT.search(str(error))
        kind = f"it holds an object, {found[1]:.80}" if found else type(error).__name__
        raise system_error(error, path) or DataError(
            f"The weights {path} cannot be read as tensors ({kind}). Save them as a state dict alone: "
            "torch.save(model.state_dict(), path), or as safetensors."
        ) from None
    return content


def _place(path: str, content: object, key: str | None) -> State:
    """Return the tensors of a state dict, or of the place in a checkpoint that holds them."""
    places = dict(_places(content))
    if key is not None:
        if key not in places:
            raise ParamsError(f"The weights {path} hold no tensors under key '{key}'. {_told(places)}")
        return places[key]

    if (state := _state(content)) is not None:
        return state
    known = [place for place in PLACES if place in places]
    if len(known) > 1:
        raise ParamsError(
            f"The weights {path} hold tensors under {' and '.join(known)}. Name one of them by the setting key."
        )
    if not known:
        raise DataError(f"The weights {path} hold no tensors by name. {_told(places)}")
    return places[known[0]]


def _state(content: object) -> State | None:
    """Return what is a state dict, None for anything else."""
    if not isinstance(content, Mapping) or not content:
        return None
    if not all(isinstance(name, str) and isinstance(x, Tensor) for name, x in content.items()):
        return None
    return dict(content)


def _places(content: object, above: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, State]]:
    """Give the state dicts in what a file holds, by their place: "ema", "ema.module"."""
    if not isinstance(content, Mapping) or not depth:
        return
    for key, inner in content.items():
        if (state := _state(inner)) is not None:
            yield f"{above}{key}", state
        else:
            yield from _places(inner, f"{above}{key}.", depth - 1)


def _told(places: Mapping[str, State]) -> str:
    """Return a sentence on where tensors are in what a file holds."""
    if places:
        return f"There are some under {some([*places])}: name one by the setting key."
    return "Expected a state dict, or a checkpoint that holds one."
