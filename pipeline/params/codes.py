"""The `codes` section of params.yaml: which views are encoded with which tables."""

from __future__ import annotations

from typing import Literal

from pipeline.params.base import StageBlock
from pipeline.params.tables import FitParams
from pipeline.params.views import Slots, ViewParams


class CodeParams(FitParams):
    """Asks for the codes that a table makes of a teacher's views.

    Attributes:
        feature: tap and encodings, for instance "final:nearest"; the last encoding reads the table.
        slots: augmented view slots; "all" is every view of a finite space.
    """

    feature: str
    slots: Slots = "all"

    @property
    def code(self) -> str:
        """The feature's full name, for instance "final:nearest@words"."""
        return f"{self.feature}@{self.table}"


class CodeBlock(StageBlock):
    """What `encode_views` depends on beside teacher, data and table.

    Attributes:
        dataset: of the teacher.
        table: key of `tables`.
        code: the feature's full name.
        slots: augmented view slots.
        views: of the data set.
        compression: of the chunks.
    """

    dataset: str
    table: str
    code: str
    slots: Slots
    views: ViewParams
    compression: Literal["none", "zstd"]
