"""Check of the shares of a teacher's training after which its weights are kept.

Trainings ask it too, so it stands apart from the other checks of `pipeline.params.course`: these retrain nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import ParamsError
from pipeline.params.numbers import repeated
from pipeline.params.recipe import Recipe


def check_anchors(anchors: Sequence[float], recipe: Recipe, where: str, steps: int | None = None) -> None:
    """Refuse anchors that would be one checkpoint, or the last one.

    Args:
        anchors: shares of the training.
        recipe: how the teacher is trained.
        where: their place, for instance "teachers.resnet8.anchors".
        steps: of a whole epoch; None where only the prepared data know, and then a recipe in iterations passes.

    Raises:
        ParamsError: they are after one epoch, after the last one, or there is no training.
    """
    if anchors and not recipe.trains:
        raise ParamsError(
            f"params.yaml: {where} are kept in a training, and the recipe has epochs: 0. Drop them."
        )
    if not anchors or (steps is None and recipe.iterations is not None):
        return
    whole = recipe.num_epochs(steps or 1)  # of a recipe in epochs, whatever an epoch has
    epochs = [recipe.epochs_of(share, steps or 1) for share in anchors]
    if repeated([*epochs, whole]):
        kept = ", ".join(f"{share} after epoch {epoch}" for share, epoch in zip(anchors, epochs, strict=True))
        raise ParamsError(
            f"params.yaml: {where} are kept ({kept} of {whole}), expected each after another epoch, before the "
            "last. Name shares that are further apart."
        )
