"""Weights of one's own: a file that another program wrote, read into one of our networks.

It is safetensors, or what `torch.save` wrote: a state dict, or a checkpoint that holds one. Nothing but tensors is ever
built from it. Names go through four steps: wrappers that all names begin with are dropped, `names` of params.yaml
is applied, what the network's library calls its tensors becomes ours, and then every name and shape must fit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.artifacts import advice
from pipeline.artifacts.system import system_error
from pipeline.errors import DataError, ParamsError, StaleArtifactError
from pipeline.params.weights import FileSettings, WeightsFile

if TYPE_CHECKING:
    from pipeline.networks.network import Network

WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")
PLACES = ("state_dict", "model_state_dict", "model", "ema", "state_dict_ema", "model_ema")
_COUNTER = "num_batches_tracked"  # counts steps and changes nothing here; old files have none
_SHOWN = 4  # names in an error

State = dict[str, Tensor]


class Fillable(Protocol):
    """What a file's tensors are fitted to: a network, or the part of one that the file has."""

    @property
    def library_names(self) -> Mapping[str, str]:
        """Our name of each tensor, by the one that the library has for it."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return tensors by our names."""


def sha256(path: str) -> str:
    """Return the sha256 of a file of weights, whose path starts from the project's folder.

    Raises:
        DataError: it is not there.
    """
    place = Path(path)
    if not place.is_file():
        raise DataError(
            f"The weights {path} do not exist. Put the file there (a relative path starts from {Path.cwd()}), or "
            "name another in params.yaml."
        )
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fill(network: Network, file: WeightsFile) -> None:
    """Fill a network with a file's weights, which must be those that params.yaml was checked with.

    Raises:
        StaleArtifactError: the file has changed since.
        DataError: it is not there, or does not hold tensors.
        ParamsError: names or shapes do not fit.
    """
    actual = sha256(file.path)
    if actual != file.sha256:
        raise StaleArtifactError(
            f"The weights {file.path} have changed: found sha256 {actual[:8]}, expected {file.sha256[:8]}. "
            f"{advice.again('dvc repro params')}"
        )
    network.load_state_dict(fitted(network, file, read(file.path, file)))


def read(path: str, settings: FileSettings) -> State:
    """Return a file's tensors, by the names that it has.

    Raises:
        DataError: it holds something else, or values that are not finite.
        ParamsError: several of its places hold tensors, or the one that is named does not.
    """
    state = _place(path, _opened(Path(path)), settings.key)
    broken = sorted(name for name, x in state.items() if x.is_floating_point() and not x.isfinite().all())
    if broken:
        raise DataError(f"The weights {path} are not finite in {_some(broken)}. Name another file.")
    return state


def fitted(network: Fillable, settings: FileSettings, state: Mapping[str, Tensor]) -> State:
    """Return a file's tensors by the network's names, complete and of its shapes.

    Args:
        network: the network that they are for.
        settings: how the names become ours; its path is for the error.
        state: tensors by the file's names.

    Raises:
        ParamsError: names are missing, unexpected, or of another shape, or the mapping of names is wrong.
    """
    own = dict(network.state_dict())
    known = {**network.library_names, **{name: name for name in own}}
    renamed = _renamed(_unwrapped(state, known), settings.names, known)

    if settings.classifier == "fresh":
        renamed = {name: x for name, x in renamed.items() if not name.startswith("classifier.")}
        renamed |= {name: x for name, x in own.items() if name.startswith("classifier.")}
    counters = {name: x for name, x in own.items() if name.endswith(_COUNTER)}
    renamed = counters | renamed

    missing, unexpected = own.keys() - renamed.keys(), renamed.keys() - own.keys()
    misshapen = [name for name in own if name in renamed and own[name].shape != renamed[name].shape]
    if not (missing or unexpected or misshapen):
        return renamed

    kinds = {
        "missing": [name for name in own if name in missing],
        "unexpected": [name for name in renamed if name in unexpected],
        "misshapen": [f"{name} {_size(renamed[name])} for {_size(own[name])}" for name in misshapen],
    }
    told = "; ".join(f"{kind} {_some(names)}" for kind, names in kinds.items() if names)
    if all(name.startswith("classifier.") for name in misshapen) and not (missing or unexpected):
        cure = "For other classes set its setting classifier: fresh."
    else:
        cure = "Choose the network that they are of, or write its setting names: {theirs: ours}."
    raise ParamsError(f"The weights do not fit the network: {told}. {cure}")


def _opened(path: Path) -> object:
    """Return what a file holds, built of nothing but tensors and plain values."""
    try:
        path.open("rb").close()  # what the system refuses is told by it, and not by a library
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        # What is no file of tensors fails in many ways, and torch's own message advises to trust it.
        raise system_error(error, path) or DataError(
            f"The weights {path} cannot be read as tensors ({type(error).__name__}). Save them as a state dict alone: "
            "torch.save(model.state_dict(), path), or as safetensors."
        ) from None
    return content


def _place(path: str, content: object, key: str | None) -> State:
    """Return the tensors of a state dict, or of the place in a checkpoint that holds them."""
    if key is not None:
        inner = content.get(key) if isinstance(content, Mapping) else None
        state = _state(inner)
        if state is None:
            raise ParamsError(f"The weights {path} hold no tensors under key '{key}'. {_places(content)}")
        return state

    if (state := _state(content)) is not None:
        return state
    inner = {place: _state(content.get(place)) for place in PLACES} if isinstance(content, Mapping) else {}
    places = {place: state for place, state in inner.items() if state is not None}
    if len(places) > 1:
        raise ParamsError(
            f"The weights {path} hold tensors under {' and '.join(places)}. Name one of them by the setting key."
        )
    if not places:
        raise DataError(f"The weights {path} hold no tensors by name. {_places(content)}")
    return next(iter(places.values()))


def _state(content: object) -> State | None:
    """Return what is a state dict, None for anything else."""
    if not isinstance(content, Mapping) or not content:
        return None
    if not all(isinstance(name, str) and isinstance(x, Tensor) for name, x in content.items()):
        return None
    return dict(content)


def _places(content: object) -> str:
    """Return a sentence on where tensors are in what a file holds."""
    keys = (
        [str(key) for key, inner in content.items() if _state(inner)] if isinstance(content, Mapping) else []
    )
    if keys:
        return f"There are some under {_some(keys)}: name one by the setting key."
    return "Expected a state dict, or a checkpoint that holds one."


def _unwrapped(state: Mapping[str, Tensor], own: Iterable[str]) -> State:
    """Return tensors without the wrappers that all names begin with, unless they are the network's own names."""
    own, unwrapped = set(own), dict(state)
    while not own.issuperset(unwrapped):
        wrapper = next((each for each in WRAPPERS if all(name.startswith(each) for name in unwrapped)), None)
        if wrapper is None:
            break
        unwrapped = {name.removeprefix(wrapper): x for name, x in unwrapped.items()}
    return unwrapped


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str | None], known: Mapping[str, str]) -> State:
    """Return tensors by our names, as far as there are any.

    Args:
        state: tensors by the file's names.
        names: ours by the beginning of theirs, as a regular expression; None leaves out.
        known: ours by a name that the network's library has.
    """
    renamed, sources = State(), dict[str, str]()
    for name, x in state.items():
        mapped = _mapped(name, names)
        if mapped is None:
            continue
        ours = known.get(mapped, mapped)
        if ours in renamed:
            raise ParamsError(
                f"The setting names makes '{ours}' of both {sources[ours]} and {name}. Mend it."
            )
        renamed[ours], sources[ours] = x, name
    return renamed


def _mapped(name: str, names: Mapping[str, str | None]) -> str | None:
    for theirs, ours in names.items():
        try:
            match = re.match(theirs, name)
            if match is not None:
                return None if ours is None else match.expand(ours) + name[match.end() :]
        except (re.error, IndexError, RecursionError, OverflowError) as error:
            raise ParamsError(
                f"The setting names has '{theirs}: {ours}', which is no regular expression with its replacement "
                f"({error}). Mend it."
            ) from None
    return name


def _size(x: Tensor) -> str:
    return "x".join(map(str, x.shape)) or "one number"


def _some(names: Iterable[str]) -> str:
    """Return the first few names, and how many there are beside them."""
    names = [*names]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
