"""Contract of `pipeline/tables/fits/`: things fitted offline from a teacher's store, one a file.

A plug-in file holds `Config` (a `TableConfig`) and `fit(stream, config, context) -> Fitted`, and `BASE`, the file of
another table, when it is fitted in the space of one. A fit streams: its memory does not grow with the number of
samples. On disk a table is an npz without pickle; beside its arrays it keeps what it was fitted from, so that a
table of another teacher or store is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamagedArtifactError, MissingArtifactError, ParamsError, StaleArtifactError
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
        base: arrays of the table in whose space it is fitted; None where it has no `BASE`.
    """

    num_classes: int
    seed: int = 0
    base: Mapping[str, Array] | None = None


@dataclass(frozen=True)
class Fitted:
    """A fitted table.

    Attributes:
        arrays: by name.
        quality: numbers that say how good it is; DVC shows them as metrics.
    """

    arrays: dict[str, Array]
    quality: dict[str, float]


def require_base(context: FitContext, table: str, base: str) -> Mapping[str, Array]:
    """Return the arrays of the base of a fit.

    Args:
        context: of the fit.
        table: the file of the table that is fitted.
        base: its `BASE`.

    Raises:
        ParamsError: there is none.
    """
    if context.base is None:
        raise ParamsError(
            f"Table '{table}' is fitted in the space of a table '{base}', and none was given: give 'base: NAME', a fit "
            f"of '{base}', in its entry of 'derived' in params.yaml (by hand: --base PATH), then: dvc repro"
        )
    return context.base


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


def open_base(
    path: Path | None, table: str, expected: str | None, origin: Mapping[str, Any]
) -> Mapping[str, Array] | None:
    """Read the base of a fit, and refuse one that is another table or was fitted to something else.

    Args:
        path: the base's npz; None is none.
        table: the file of the table that is fitted.
        expected: its `BASE`.
        origin: of the table that is fitted: the base must have the same `weights` and `digest`.

    Returns:
        The base's arrays; None where none was given.

    Raises:
        ParamsError: a base is not wanted, or is of another kind.
        StaleArtifactError: it was fitted from another teacher, other weights or another feature.
    """
    if expected is None and path is not None:
        raise ParamsError(
            f"Table '{table}' has no base, and {path} was given. Leave 'base' out, then: dvc repro"
        )
    if path is None:
        return None  # a fit that needs one says so
    arrays, found = load(path)
    block = found.get("table", {})
    if block.get("table") != expected:
        raise ParamsError(
            f"Table '{table}' is fitted in the space of a table '{expected}', and {path} is a table "
            f"'{block.get('table')}': give 'base: NAME', a fit of '{expected}', in params.yaml, then: dvc repro"
        )
    for key, what in (("teacher", "teacher"), ("weights", "weights of the teacher"), ("digest", "feature")):
        if found.get(key) != origin[key]:
            raise StaleArtifactError(
                f"{path} was fitted to another {what}: found {found.get(key)}, expected {origin[key]}. Fit both tables "
                "to one feature of one teacher, in params.yaml, then: dvc repro"
            )
    return arrays
