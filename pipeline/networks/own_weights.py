"""Weights of one's own: a file that another program wrote, read into one of our networks.

`weight_file.py` reads it. Then names go through four steps: wrappers that all names begin with are dropped, `names` of
params.yaml is applied, what the network's library calls its tensors becomes ours, and every name and shape must fit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from pipeline.artifacts import advice
from pipeline.errors import DataError, ParamsError, StaleArtifactError
from pipeline.networks.weight_file import State, read, some
from pipeline.params.weights import FileSettings, WeightsFile

if TYPE_CHECKING:
    from pipeline.networks.network import Network

WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")
_COUNTER = "num_batches_tracked"  # counts steps and changes nothing here; old files have none
_AVERAGED = "n_averaged"  # beside what torch's AveragedModel wraps


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
    # What is left out need not begin as the others do.
    kept = {name: x for name, x in state.items() if _mapped(name, settings.names) is not None}
    renamed = _renamed(_unwrapped(kept, known), settings.names, known)

    if settings.classifier == "fresh":
        renamed = {name: x for name, x in renamed.items() if not name.startswith("classifier.")}
        renamed |= {name: x for name, x in own.items() if name.startswith("classifier.")}
    counters = {name: x for name, x in own.items() if name.endswith(_COUNTER)}
    renamed = counters | renamed

    missing, unexpected = own.keys() - renamed.keys(), renamed.keys() - own.keys()
    misshapen = [name for name in own if name in renamed and own[name].shape != renamed[name].shape]
    mistyped = [
        name for name in own.keys() & renamed.keys()
        if own[name].is_floating_point() and not renamed[name].is_floating_point()
    ]  # fmt: skip
    if not (missing or unexpected or misshapen or mistyped):
        return renamed

    kinds = {
        "missing": [name for name in own if name in missing],
        "unexpected": [name for name in renamed if name in unexpected],
        "misshapen": [f"{name} {_size(renamed[name])} for {_size(own[name])}" for name in misshapen],
        "of whole numbers": [name for name in own if name in mistyped],
    }
    told = "; ".join(f"{kind} {some(names)}" for kind, names in kinds.items() if names)
    if not (missing or unexpected or misshapen):
        cure = "Save them as floating-point numbers."
    elif all(name.startswith("classifier.") for name in (*misshapen, *missing)) and not (
        unexpected or mistyped
    ):
        cure = "For other classes, or none, set its setting classifier: fresh; a teacher may have head: linear instead."
    else:
        cure = "Choose the network that they are of, or write its setting names: {theirs: ours}."
    raise ParamsError(f"The weights do not fit the network: {told}. {cure}")


def _unwrapped(state: Mapping[str, Tensor], own: Iterable[str]) -> State:
    """Return tensors without the wrappers that all names begin with, unless they are the network's own names."""
    own, unwrapped = set(own), {name: x for name, x in state.items() if name != _AVERAGED}
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
