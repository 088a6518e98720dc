"""Contract of `pipeline/encodings/`: named, pure functions of a teacher tap.

A feature is a tap and an encoding, written "stage3" (identity), "stage3:attention", or with a fitted table
"stage3:nearest@words". An encoding runs wherever the teacher runs, so cached and online give the same code.
A plug-in file holds `encode(x) -> Tensor`, or `encode(x, table) -> Tensor` when it reads a table; and `AXES`,
the number of axes with the batch, when it cannot encode just any tap.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pipeline import plugin
from pipeline.errors import ParamsError, ShapeError, unknown_name

_NAME = re.compile(r"(?P<tap>\w+)(:(?P<encoding>\w+)(@(?P<table>[\w-]+))?)?")


@dataclass(frozen=True)
class Feature:
    """A teacher tap under an encoding.

    Attributes:
        tap: the named place in the network.
        encoding: a file of `pipeline/encodings`.
        table: the fitted table that the encoding reads, or None.
    """

    tap: str
    encoding: str = "identity"
    table: str | None = None

    @classmethod
    def parse(cls, name: str) -> Feature:
        """Read a feature's name.

        Raises:
            ParamsError: the name is not of the form tap, tap:encoding or tap:encoding@table.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ParamsError(
                f"'{name}' names no feature. Expected a tap, tap:encoding or tap:encoding@table."
            )
        return cls(match["tap"], match["encoding"] or "identity", match["table"])

    def encode(self, x: Tensor, tables: Mapping[str, Mapping[str, Tensor]] | None = None) -> Tensor:
        """Encode the tap `x`, whose first axis is the batch.

        Args:
            x: what the teacher has at the tap, (B, ...).
            tables: arrays of the fitted tables, by table name.

        Raises:
            UnknownNameError: no such encoding, or none of the tables has that name.
            ShapeError: the encoding cannot encode this tap.
        """
        module, tables = plugin.load("encodings", self.encoding), tables or {}
        if x.ndim != getattr(module, "AXES", x.ndim):
            raise ShapeError(
                f"Encoding '{self.encoding}' reads {module.AXES - 1} axes, and tap '{self.tap}' has shape "
                f"{tuple(x.shape[1:])}. Choose another tap or encoding."
            )
        if self.table is not None and self.table not in tables:
            raise unknown_name("table", self.table, tables)
        code: Tensor = module.encode(x) if self.table is None else module.encode(x, tables[self.table])
        return code


def taps_of(names: Iterable[str]) -> set[str]:
    """Return the teacher taps that the features `names` are made from."""
    return {Feature.parse(name).tap for name in names}
