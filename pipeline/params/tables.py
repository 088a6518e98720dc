"""The sections of params.yaml that say which tables are fitted: `tables`, `fits` and `derived`."""

from __future__ import annotations

from typing import Any

from pipeline.params.base import Block, StageBlock


class TableParams(Block):
    """A table: a thing that is fitted offline from a teacher's store.

    Attributes:
        table: a file of `pipeline/tables/fits`.
        config: that table's own settings.
    """

    table: str
    config: dict[str, Any] = {}


class FitParams(Block):
    """Asks for one table of one teacher.

    Attributes:
        teacher: a key of `teachers`.
        table: a key of `tables`.
    """

    teacher: str
    table: str


class DerivedParams(FitParams):
    """Asks for a table of one teacher that is fitted in the space of another one.

    Attributes:
        base: that other table, a key of `tables`; `fits` asks for it.
    """

    base: str


class FitBlock(StageBlock):
    """What `fit_table` depends on beside the store.

    Attributes:
        dataset: of the teacher.
        table: a file of `pipeline/tables/fits`.
        config: its settings.
    """

    dataset: str
    table: str
    config: dict[str, Any]
