"""What a json keeps of settings whose order counts: it sorts the keys of a mapping."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.params.base import Block
from pipeline.params.datasets import DatasetParams
from pipeline.params.plug import OrderedPlugs
from pipeline.params.views import view_params
from pipeline.params.weights import FileSettings

CROP, JITTER = {"random_resized_crop": {"scale": [0.5, 1.0]}}, {"color_jitter": {}}


def read_back(block: Block) -> Any:
    """Return what a stage reads of a block that another has written."""
    return json.loads(json.dumps(block.model_dump(mode="json"), sort_keys=True))


def test_stacked_views_keep_their_order() -> None:
    dataset = DatasetParams.model_validate({"source": "digits", "views": CROP | JITTER})
    again = DatasetParams.model_validate(read_back(dataset))
    assert again == dataset
    assert [views.name for views in again.views] == ["random_resized_crop", "color_jitter"]
    assert view_params(again.views, "") == view_params(dataset.views, "")


def test_names_of_weights_are_tried_in_their_order() -> None:
    names = {"encoder\\.head\\.": None, "encoder\\.": "units."}
    settings = FileSettings(names=names)
    again = FileSettings.model_validate(read_back(settings))
    assert list(again.names.items()) == list(names.items())
    assert read_back(settings) != read_back(FileSettings(names=dict(reversed(names.items()))))


@pytest.mark.parametrize("views", [[CROP, CROP], [CROP | JITTER], ["plain"], []])
def test_a_list_is_of_one_name_each(views: list[Any]) -> None:
    class Holder(Block):
        views: OrderedPlugs

    with pytest.raises(ValueError, match="Expected"):
        Holder.model_validate({"views": views})
