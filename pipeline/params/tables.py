"""What is fitted to a teacher's store: the block of a table, and of the codes that it makes."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.params.base import Block, StageBlock
from pipeline.params.views import ViewParams


class FitBlock(StageBlock):
    """What `fit_table` depends on beside the store.

    Attributes:
        teacher: key of `teachers`.
        dataset: key of `datasets`.
        name: key of `tables`.
        table: a file of `pipeline/tables/fits`.
        config: its settings.
    """

    teacher: str
    dataset: str
    name: str
    table: str
    config: dict[str, Any]


class EncodeBlock(StageBlock):
    """What `encode_views` depends on beside teacher, data and table.

    Attributes:
        teacher: key of `teachers`.
        dataset: key of `datasets`.
        table: key of `tables`.
        codes: augmented view slots that are encoded, by the code's full name: "stage2:subclass@subclasses".
        views: the view space of the slots.
        compression: compression of the chunks.
    """

    teacher: str
    dataset: str
    table: str
    codes: dict[str, int]
    views: ViewParams
    compression: Literal["none", "zstd"]


class Matched(Block):
    """A stored feature whose channels are matched to a student's.

    Attributes:
        feature: teacher feature.
        checkpoint: checkpoint of the teacher.
    """

    feature: str
    checkpoint: str


class AskedBlock(Block):
    """What runs ask to be made of a teacher's store: what `teacher_inputs` depends on.

    Attributes:
        teacher: key of `teachers`.
        tables: by key of `tables`; None where nobody asks for one.
        codes: by key of the table that makes them; None where nobody asks for any.
        matched: the features that matchings read.
    """

    teacher: str
    tables: dict[str, FitBlock | None]
    codes: dict[str, EncodeBlock | None]
    matched: tuple[Matched, ...]


class Source(Block):
    """What a feature was when it was asked for: the same bytes give the same table.

    Attributes:
        weights: hash of the teacher's weights.
        digest: hash of the stored feature.
        data: fingerprint of the data, by split.
    """

    weights: str
    digest: str
    data: dict[str, str]


class FitInputs(FitBlock):
    """A table's settings, and what it is fitted to.

    Attributes:
        source: the stored feature.
    """

    source: Source


class EncodeInputs(EncodeBlock):
    """Settings of codes, and what the teacher's store says of itself.

    Attributes:
        weights: hash of the teacher's weights.
        data: fingerprint of the data, by split.
    """

    weights: str
    data: dict[str, str]
