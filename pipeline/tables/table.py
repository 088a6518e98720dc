"""Contract of `pipeline/tables/fits/`: things fitted offline from a teacher's store, one a file.

A plug-in file holds `Config` (a `TableConfig`), `fit(stream, config, context) -> Fitted`, and `UNIT`, what one of the
groups is called into which it parts the pixels ("word"), or None where it parts none. It may hold
`stand_in(config, channels, num_classes)`, arrays of the sizes that methods read: with it, what cannot learn from such
a table is an error before anything is made. A fit streams: its memory does not grow with the number of samples. On
disk a table is an npz without pickle; beside its arrays it keeps what it was fitted from, so that a table of another
teacher or store is refused.

Example:
    >>> class Config(TableConfig):
    ...     scale: float = 1.0
    >>> def fit(stream: Stream, config: Config, context: FitContext) -> Fitted:
    ...     total = sum(config.scale * values.sum(axis=0) for values, _ in stream)
    ...     return Fitted({"total": total}, {"channels": float(len(total))})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from pipeline.artifacts import advice, arrays
from pipeline.errors import DamagedArtifactError
from pipeline.params.base import Block

Array = NDArray[Any]


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
        device: name of the device on which torch computes the fit, or None for numpy and scikit-learn on the CPU;
            a fit may leave it unused. Both compute the same but for rounding.
    """

    num_classes: int
    device: str | None = None


@dataclass(frozen=True)
class Fitted:
    """A fitted table.

    Attributes:
        arrays: by name.
        quality: numbers that say how good it is; DVC shows them as metrics.
    """

    arrays: dict[str, Array]
    quality: dict[str, float]


def save(path: Path, fitted: Fitted, origin: Mapping[str, Any]) -> None:
    """Write a table's arrays and what it was fitted from.

    Args:
        path: a scratch path for the npz.
        fitted: the table.
        origin: what it was fitted from, anything that json can hold; `made_by` is the stage that made it.
    """
    arrays.write(path, fitted.arrays, dict(origin))


def load(path: Path, hint: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read a table: its arrays by name, and what it was fitted from.

    Args:
        path: the npz.
        hint: the command that makes it, for instance "dvc repro fit_table@T-words".

    Raises:
        MissingArtifactError: there is no such file.
        DamagedArtifactError: it is not a table.
    """
    return arrays.read(path, hint), read_origin(path, hint)


def read_origin(path: Path, hint: str) -> dict[str, Any]:
    """Read what a table was fitted from, and none of its arrays; see `load`."""
    about = arrays.read_about(path, hint)
    if not isinstance(about, dict):
        raise DamagedArtifactError(f"{path} is not a table. {advice.again(hint)}")
    return about
