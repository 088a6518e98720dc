"""Arrays on disk with what they were made from: an npz without pickle, which numpy alone can open.

The same content gives the same bytes, so that DVC sees no change where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile
from zlib import error as ZlibError

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from pipeline.artifacts import advice
from pipeline.errors import DamagedArtifactError, MissingArtifactError

Array = NDArray[Any]

ABOUT = "origin"  # the key on disk of what the arrays say of themselves, json as text


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
    """
    with _opened(path, hint) as archive:
        wanted = [name for name in archive.files if name != ABOUT] if names is None else list(names)
        # np.array reads the bytes here, where a checksum that is wrong becomes one line.
        return {name: np.array(archive[name]) for name in wanted}


def read_about(path: Path, hint: str) -> Any:
    """Read what arrays say of themselves, and none of the arrays.

    Args:
        path: the npz.
        hint: the command that makes it.

    Raises:
        MissingArtifactError: there is no such file.
        DamagedArtifactError: it cannot be read, or says nothing of itself.
    """
    with _opened(path, hint) as archive:
        return json.loads(str(archive[ABOUT]))


@contextmanager
def _opened(path: Path, hint: str) -> Iterator[NpzFile]:
    """Open an npz; whatever is wrong with its bytes is one line that ends with the hint."""
    try:
        with path.open("rb") as file:
            if not is_zipfile(file):
                raise ValueError("it is no npz")  # before numpy advises to unpickle it

            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                yield archive
    except FileNotFoundError:
        raise MissingArtifactError(f"{path} does not exist. Make it with: {hint}") from None
    # What numpy and zipfile raise at bytes that they did not write.
    except (ValueError, LookupError, TypeError, EOFError, OSError, BadZipFile, ZlibError) as error:
        reason = " ".join(str(error).split())
        raise DamagedArtifactError(f"{path} cannot be read ({reason}). {advice.again(hint)}") from None
