"""The `datasets` section of params.yaml."""

from __future__ import annotations

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from pipeline.params.base import Block, StageBlock
from pipeline.params.plug import OrderedPlugs, Plug
from pipeline.params.tasks import CLASSIFICATION, Task


class DatasetParams(Block):
    """A data set.

    Attributes:
        source: a file of `pipeline/data/datasets`, with its settings.
        views: the augmented views that training may show, by the name of their space; of several, each space changes
            what the one before shows.
        strong_views: those of a second view of each sample, for methods that ask for a weak and a strong one; `views`
            are then the weak ones.
    """

    source: Plug
    views: OrderedPlugs = (Plug.of("plain"),)
    strong_views: OrderedPlugs | None = None


class PrepareBlock(StageBlock):
    """What `prepare_data` depends on.

    Attributes:
        dataset: key of `datasets`.
        source: a file of `pipeline/data/datasets`.
        settings: the settings of the source.
        task: what networks learn of the data.
    """

    dataset: str
    source: str
    settings: dict[str, Any]
    task: Task = CLASSIFICATION

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Classification is what there was before there was anything else.
        content: dict[str, Any] = write(self)
        return {key: x for key, x in content.items() if key != "task" or x != CLASSIFICATION}
