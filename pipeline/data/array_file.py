"""Npy files of prepared data, mapped: their header is compared with the one expected, and nobody parses it.

numpy's parser answers damage with errors of a dozen kinds, warnings and arrays of another shape.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import advice
from pipeline.errors import DamagedArtifactError, MissingArtifactError

_MAGIC = b"\x93NUMPY\x01\x00"  # of version 1.0, whose header has a length of two bytes
_SHOWN = 200  # letters of a header in an error


def open_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], hint: str) -> NDArray[Any]:
    """Map an array, read-only.

    Args:
        path: the npy file.
        dtype: that it must have.
        shape: that it must have.
        hint: the command that makes it.

    Raises:
        MissingArtifactError: there is no such file.
        DamagedArtifactError: it holds something else.
    """
    found, start = header(path, hint)
    # As numpy writes it; versions of numpy differ in the blanks behind it.
    expected = (
        f"{{'descr': {np.lib.format.dtype_to_descr(dtype)!r}, 'fortran_order': False, 'shape': {shape}, }}"
    )
    if found != expected:
        raise DamagedArtifactError(
            f"{path} begins with {found[:_SHOWN]}, expected {expected}. {advice.again(hint)}"
        )

    size, whole = path.stat().st_size, start + dtype.itemsize * math.prod(shape)
    if size != whole:
        raise DamagedArtifactError(f"{path} has {size:,} bytes, expected {whole:,}. {advice.again(hint)}")
    return np.memmap(path, dtype, "r", start, shape)


def header(path: Path, hint: str) -> tuple[str, int]:
    """Return the header of an npy file, without the blanks behind it, and where its array starts.

    Args:
        path: the npy file.
        hint: the command that makes it.

    Raises:
        MissingArtifactError: there is no such file.
        DamagedArtifactError: it does not begin as such a file does.
    """
    try:
        with path.open("rb") as file:
            magic, length = file.read(len(_MAGIC)), int.from_bytes(file.read(2), "little")
            text = file.read(length)
    except FileNotFoundError:
        raise MissingArtifactError(f"{path} does not exist. Make it with: {hint}") from None
    except IsADirectoryError:
        raise DamagedArtifactError(f"{path} is a folder, expected an array. {advice.again(hint)}") from None

    if magic != _MAGIC or len(text) != length:
        raise DamagedArtifactError(f"{path} does not begin as an npy file does. {advice.again(hint)}")
    return text.decode("latin-1").rstrip(), len(_MAGIC) + 2 + length
