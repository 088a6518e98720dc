"""How a teacher is made: what its training depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.params.base import StageBlock
from pipeline.params.recipe import Recipe
from pipeline.params.views import ViewParams
from pipeline.params.weights import Head, Weights


class TrainBlock(StageBlock):
    """What `train_teacher` depends on: a teacher without what is extracted from it, and its data set's views.

    Attributes:
        teacher: key of `teachers`.
        dataset: key of `datasets`.
        family: a file of `pipeline/networks/families`.
        network: a network of that family.
        source: hash of the network's code where that is not its family's.
        weights: where its first weights come from.
        head: where its classifier comes from.
        seed: seed of init, order and views.
        recipe: how it is trained.
        anchors: shares of its training after which a checkpoint is kept.
        views: what it sees.
    """

    teacher: str
    dataset: str
    family: str
    network: str
    source: str = ""
    weights: Weights
    head: Head = "own"
    seed: int
    recipe: Recipe
    anchors: tuple[float, ...]
    views: ViewParams

    def trained_from(
        self, fingerprint: Mapping[str, str], mean: Sequence[float], std: Sequence[float]
    ) -> dict[str, Any]:
        """Return all that a training by this block depends on, as json holds it.

        Args:
            fingerprint: of the data, by split.
            mean: normalization of the images.
            std: as `mean`.
        """
        data = {"fingerprint": dict(fingerprint), "mean": list(mean), "std": list(std)}
        return {"teacher": self.model_dump(mode="json"), "data": data}


def anchor_name(share: float) -> str:
    """Return the checkpoint name of an anchor: after 0.25 of the training it is anchor_025."""
    return f"anchor_{round(100 * share):03d}"
