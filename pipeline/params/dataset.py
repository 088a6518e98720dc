"""The `datasets` section of params.yaml."""

from __future__ import annotations

from typing import Any

from pipeline.params.base import Block, StageBlock
from pipeline.params.views import ViewParams


class DatasetParams(Block):
    """A data set.

    Attributes:
        source: a file of `pipeline/data/datasets`.
        prepare: that source's own settings.
        views: the augmented views that training may show.
    """

    source: str
    prepare: dict[str, Any] = {}
    views: ViewParams


class PrepareBlock(StageBlock):
    """What `prepare_data` depends on: `source` and `prepare` of a data set."""

    source: str
    prepare: dict[str, Any] = {}
