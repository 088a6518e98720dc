"""The `students` section of params.yaml."""

from __future__ import annotations

from typing import Any

from pipeline.params.base import Block, OrEmpty, StageBlock
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe
from pipeline.params.views import ViewParams
from pipeline.params.weights import Weights, WeightsPlug


class StudentParams(Block):
    """A student network and how it is trained.

    Attributes:
        dataset: a key of `datasets`.
        network: a network by name, "family/name", or an import path.
        weights: where its first weights come from, alone and in every run, as of a teacher.
        recipe: a key of `recipes`, with changes if there are any: how it is trained, alone and distilled; left
            out, it is CRD's recipe for CIFAR-100.
        detector: of a data set with boxes, how the detector is built.
    """

    dataset: str
    network: str
    weights: WeightsPlug = Plug.of("none")
    recipe: Plug | None = None
    detector: OrEmpty[dict[str, Any]] = {}


class StudentBlock(StageBlock):
    """What `student_inputs` depends on: a student, and its data set's views.

    Attributes:
        student: key of `students`.
        dataset: key of `datasets`.
        family: a file of `pipeline/networks/families`.
        network: a network of that family.
        source: hash of the network's code where that is not its family's.
        weights: where its first weights come from.
        recipe: how it is trained.
        views: what it sees.
    """

    student: str
    dataset: str
    family: str
    network: str
    source: str = ""
    weights: Weights
    recipe: Recipe
    views: ViewParams
