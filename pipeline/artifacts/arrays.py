"""Arrays on disk with what they were made from: an npz without pickle, which numpy alone can open.

The same content gives the same bytes, so that DVC sees no change where there is none. Every array has the checksum of
its zip entry, and its name stands in the file twice, so no bit of it changes unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.artifacts import advice
from pipeline.artifacts.system import system_error
from pipeline.errors import DamagedArtifactError, MissingArtifactError

Array = NDArray[Any]

ABOUT = "origin"  # the key on disk of what the arrays say of themselves, json as text
_SUFFIX = ".npy"


def write(path: Path, arrays: Mapping[str, Array], about: Any = None) -> None:
    """Write arrays by name.

    Args:
        path: the npz; it is written in place, so give a scratch path.
        arrays: by name, none of them of Python objects.
        about: what they say of themselves, anything that json can hold; None is nothing.
    """
    extra = {} if about is None else {ABOUT: np.array(json.dumps(about, sort_keys=True))}
    with path.open("wb") as file:  # numpy would add a suffix to a path
        np.savez(file, allow_pickle=False, **arrays, **extra)


def read(path: Path, hint: str, names: Iterable[str] | None = None) -> dict[str, Array]:
    """Read arrays by name.

    Args:
        path: the npz.
        hint: the command that makes it, for instance "dvc repro fit_table@T-words".
        names: those to read, which must be there; None is all of them.

    Raises:
        MissingArtifactError: there is no such file.
        DamagedArtifactError: it cannot be read, or lacks a name.
        OSError: the system refuses to read it.
    """
    with _opened(path, hint) as archive:
        wanted = [name for name in _names(archive) if name != ABOUT] if names is None else list(names)
        return {name: _array(archive, name) for name in wanted}


def read_about(path: Path, hint: str) -> Any:
    """Read what arrays say of themselves, and none of the arrays.

    Args:
        path: the npz.
        hint: the command that makes it.

    Raises:
        MissingArtifactError: there is no such file.
        DamagedArtifactError: it cannot be read, or says nothing of itself.
        OSError: the system refuses to read it.
    """
    with _opened(path, hint) as archive:
        return json.loads(str(_array(archive, ABOUT)))


@contextmanager
def _opened(path: Path, hint: str) -> Iterator[ZipFile]:
    """Open an npz; whatever is wrong with its bytes is one line that ends with the command that makes it again."""
    try:
        with path.open("rb") as file, ZipFile(file) as archive:
            yield archive
    except FileNotFoundError:
        raise MissingArtifactError(f"{path} does not exist. Make it with: {hint}") from None
    except MemoryError:  # the file is no larger than it says, and there is no room for it
        raise
    except Exception as error:  # zipfile and numpy raise a dozen kinds at bytes that they did not write
        reason = " ".join(str(error).split()) or type(error).__name__
        raise system_error(error, path) or DamagedArtifactError(
            f"{path} cannot be read ({reason}). {advice.again(hint)}"
        ) from None


def _names(archive: ZipFile) -> list[str]:
    names = archive.namelist()
    if len(set(names)) < len(names) or not all(name.endswith(_SUFFIX) for name in names):
        raise ValueError("it holds other things than arrays")
    return [name.removesuffix(_SUFFIX) for name in names]


def _array(archive: ZipFile, name: str) -> Array:
    """Read one array, after its entry has passed its checksum and its header has been found to fit."""
    if name not in _names(archive):
        raise LookupError(f"it holds no '{name}'")
    entry = archive.getinfo(name + _SUFFIX)
    if entry.compress_type != ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(f"'{name}' is compressed")  # nothing larger than the file is ever made of it

    content = archive.read(entry)
    stream = BytesIO(content)
    header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
    shape, _, dtype = header(stream)
    if dtype.hasobject:
        raise ValueError(f"'{name}' holds Python objects")
    if prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"'{name}' has another size than its header says")
    return npy.read_array(BytesIO(content), allow_pickle=False)
