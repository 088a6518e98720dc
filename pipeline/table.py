"""Contract of `pipeline/tables/`: things fitted offline from a teacher's store, one a file.

A plug-in file holds `Config` (a `TableConfig`) and `fit(stream, config, context) -> Fitted`. A fit streams: its
memory does not grow with the number of samples. On disk a table is an npz without pickle; beside its arrays it
keeps what it was fitted from, so that a table of another teacher or store is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamagedArtifactError, MissingArtifactError
from pipeline.params.base import Block

Array = NDArray[Any]
_ORIGIN = "origin"


class TableConfig(Block):
    """Settings that every table has.

    Attributes:
        feature: the stored teacher feature that it is fitted to; all plain training samples, all pixels.
    """

    feature: str


class Stream(Protocol):
    """The plain training samples of one stored feature; it can be gone through again and again."""

    shape: tuple[int, ...]  # (N, ...)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """Give blocks: float32 (n, ...) and labels int64 (n,)."""
        ...


@dataclass(frozen=True)
class FitContext:
    """What a fit may know beside the stream.

    Attributes:
        num_classes: number of classes.
        seed: for `pipeline.seeding`.
    """

    num_classes: int
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """A fitted table.

    Attributes:
        arrays: by name.
        quality: numbers that say how good it is; DVC shows them as metrics.
    """

    arrays: dict[str, Array]
    quality: dict[str, float]


def save(path: Path, fitted: Fitted, origin: dict[str, Any]) -> None:
    """Write a table's arrays, and what it was fitted from."""
    text = json.dumps(origin, sort_keys=True)
    with path.open("wb") as file:  # numpy would add a suffix to a path
        np.savez(file, allow_pickle=False, **fitted.arrays, **{_ORIGIN: np.array(text)})


def load(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read a table: its arrays by name, and what it was fitted from.

    Raises:
        MissingArtifactError: there is no such file.
        DamagedArtifactError: it is not a table.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return arrays, json.loads(str(arrays.pop(_ORIGIN)))
    except FileNotFoundError:
        raise MissingArtifactError(
            f"{path} does not exist. Add it to 'fits' in params.yaml, then: dvc repro"
        ) from None
    except (ValueError, KeyError, TypeError, EOFError, OSError, BadZipFile) as error:
        raise DamagedArtifactError(f"{path} is not a table ({error}). Delete it, then: dvc repro") from None
