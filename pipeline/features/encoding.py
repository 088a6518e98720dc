"""Contract of `pipeline/features/encodings/`: named, pure functions of a teacher tap.

A feature is a tap and what is done to it, from left to right: "stage3", "stage3:attention", "final:halved:nearest".
Where the last encoding reads a fitted table, its name follows: "final:nearest@words". An encoding runs wherever
the teacher runs, so cached and online give the same code.

A plug-in file holds `encode(x) -> Tensor`. It holds `AXES`, the number of axes with the batch, when it cannot
encode just any tensor, and `READS`, a tuple of "table" and "label", when `encode` takes these beside `x`; then
`ARRAYS` names the arrays that the table must have, and `stand_in(channels, classes) -> dict[str, Tensor]` gives the
smallest table of that kind, with which a code's shape is known before any table is fitted. Where codes are integers
that rounding changes, it holds `differing(stored, live)`, the share of each sample's codes (B,) that differ by more
than that.

Example:
    >>> AXES = 4
    >>> def encode(x: Tensor) -> Tensor:
    ...     return x.mean(dim=(2, 3))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline import plugin
from pipeline.errors import ParamsError, ShapeError, unknown_name

_NAME = re.compile(r"(?P<tap>\w+(\.\w+)*)(?P<encodings>(:\w+)*)(@(?P<table>[\w.+-]+))?")
Tables = Mapping[str, Mapping[str, Tensor]]  # arrays of fitted tables, by table and array name


@dataclass(frozen=True)
class Feature:
    """A teacher tap under encodings.

    Attributes:
        tap: the named place in the network.
        encodings: files of `pipeline/features/encodings`, the first one first.
        table: the fitted table that the last encoding reads, or None.
    """

    tap: str
    encodings: tuple[str, ...] = ()
    table: str | None = None

    @classmethod
    def parse(cls, name: str) -> Feature:
        """Read a feature's name.

        Raises:
            ParamsError: the name is not of that form, or a table is named where none is read, or none where
                one is.
            UnknownNameError: no such encoding.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ParamsError(
                f"'{name}' names no feature. Expected a tap, tap:encoding or tap:encoding@table."
            )
        feature = cls(match["tap"], tuple(match["encodings"].split(":")[1:]), match["table"])

        reads = [("table" in _reads(encoding)) for encoding in feature.encodings]
        if any(reads[:-1]):
            raise ParamsError(f"'{name}' names no feature: an encoding that reads a table comes last.")
        # A slice, because a plain tap has no last encoding.
        if (feature.table is not None) != any(reads[-1:]):
            last = f"its last encoding '{feature.encodings[-1]}'" if reads else "a plain tap"
            expected = "reads a table: add @table" if any(reads) else f"reads no table: drop @{feature.table}"
            raise ParamsError(f"'{name}' names no feature: {last} {expected}.")
        return feature

    def encode(self, x: Tensor, tables: Tables | None = None, label: Tensor | None = None) -> Tensor:
        """Encode the tap `x`, whose first axis is the batch.

        Args:
            x: what the teacher has at the tap, (B, ...).
            tables: arrays of the fitted tables, by table name.
            label: the samples' classes, int64 (B,); for encodings that read it.

        Raises:
            UnknownNameError: none of the tables has the name.
            ShapeError: the encoding cannot encode this tap.
            ParamsError: the table is of another kind than the encoding reads.
        """
        for encoding in self.encodings:
            x = self._apply(encoding, x, tables or {}, label)
        return x

    def _apply(self, encoding: str, x: Tensor, tables: Tables, label: Tensor | None) -> Tensor:
        module, given = plugin.load("encodings", encoding), dict[str, Any]()
        if x.ndim != getattr(module, "AXES", x.ndim):
            raise ShapeError(
                f"Encoding '{encoding}' reads {module.AXES - 1} axes, and tap '{self.tap}' has shape "
                f"{tuple(x.shape[1:])}. Choose another tap or encoding."
            )

        if "table" in _reads(encoding):
            if self.table is None or self.table not in tables:
                raise unknown_name("table", str(self.table), tables)
            given["table"] = tables[self.table]
            lacking = [array for array in module.ARRAYS if array not in given["table"]]
            if lacking:
                raise ParamsError(
                    f"Encoding '{encoding}' reads '{lacking[0]}', and table '{self.table}' holds "
                    f"{', '.join(sorted(given['table']))}. Name a table of another kind in params.yaml."
                )

        if "label" in _reads(encoding):
            assert label is not None, f"'{encoding}' reads labels"
            given["label"] = label
        code: Tensor = module.encode(x, **given)
        return code


def taps_of(names: Iterable[str]) -> set[str]:
    """Return the teacher taps that the features `names` are made from."""
    return {Feature.parse(name).tap for name in names}


def tables_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return the tables that the features `names` are encoded with, in the order of first mention."""
    tables = (Feature.parse(name).table for name in names)
    return tuple(dict.fromkeys(table for table in tables if table is not None))


def encodings_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return the encodings that the features `names` go through, in the order of first mention."""
    return tuple(dict.fromkeys(encoding for name in names for encoding in Feature.parse(name).encodings))


def reads_label(encoding: str) -> bool:
    """Return whether an encoding reads the class of a sample."""
    return "label" in _reads(encoding)


def _reads(encoding: str) -> tuple[str, ...]:
    reads: tuple[str, ...] = getattr(plugin.load("encodings", encoding), "READS", ())
    return reads
