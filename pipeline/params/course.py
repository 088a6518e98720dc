"""Checks of what a recipe's training comes to: its learning rate, and who teaches in it.

How many epochs a recipe in iterations has, only the number of images says. So the check of params.yaml asks without it,
and what knows it asks again.
"""

from __future__ import annotations

import itertools

from pipeline.errors import ParamsError
from pipeline.params.recipe import Recipe


def check_course(recipe: Recipe, where: str) -> None:
    """Refuse a recipe whose learning rate would take another course than it says.

    It is asked of whole recipes, not of a part that others change: so it is no part of the model.

    Args:
        recipe: all of its values.
        where: its place, for instance "teachers.resnet8.recipe".

    Raises:
        ParamsError: a rate or decay is no likely one, a setting is of another optimizer or schedule, milestones are
            not in their order, or the warm-up does not fit the epochs.
    """
    for setting, most in (("learning_rate", 1000), ("weight_decay", 10)):
        if (value := getattr(recipe, setting)) > most:
            raise ParamsError(
                f"params.yaml: '{where}': {setting} is {value}, expected {most:,} at most. Lower it."
            )

    _check_kind(recipe, where)
    milestones = recipe.milestones
    listed = ", ".join(map(str, milestones))
    if any(after <= before for before, after in itertools.pairwise(milestones)):
        raise ParamsError(
            f"params.yaml: '{where}': milestones are {listed}, expected each once, the earliest first. Put them so."
        )
    length, unit = (
        (recipe.epochs, "epochs") if recipe.iterations is None else (recipe.iterations, "iterations")
    )
    if not length:
        return  # nothing is trained
    if recipe.warmup > length:
        raise ParamsError(
            f"params.yaml: '{where}': warmup is {recipe.warmup} of {length} {unit}, so the learning rate would "
            "not be reached. Lower it."
        )


# Settings that one optimizer or schedule reads alone, by the other one.
_OF_OTHERS = {
    ("optimizer", "sgd"): ("betas", "eps"),
    ("optimizer", "adamw"): ("momentum", "nesterov"),
    ("schedule", "steps"): ("final",),
    ("schedule", "cosine"): ("decay",),
}


def _check_kind(recipe: Recipe, where: str) -> None:
    """Refuse settings that the recipe's optimizer or schedule would not read."""
    if recipe.schedule == "cosine" and recipe.milestones:
        listed = ", ".join(map(str, recipe.milestones))
        raise ParamsError(
            f"params.yaml: '{where}': schedule is cosine and milestones are {listed}, expected one of the two. Drop "
            "the milestones, or the schedule."
        )
    for (kind, chosen), settings in _OF_OTHERS.items():
        for setting in settings if getattr(recipe, kind) == chosen else ():
            value, default = getattr(recipe, setting), Recipe.model_fields[setting].default
            if value != default:
                raise ParamsError(
                    f"params.yaml: '{where}': {setting} is {value}, which {kind}: {chosen} does not read. Drop it, or "
                    f"change the {kind}."
                )


def check_shares(recipe: Recipe, checkpoints: int, where: str, steps: int | None = None) -> None:
    """Refuse a training in which some checkpoints would never teach: each has an even share of the epochs.

    Args:
        recipe: all of its values.
        checkpoints: number of those that teach.
        where: what learns from them, for instance "runs.rco".
        steps: of a whole epoch; None where only the prepared data know.

    Raises:
        ParamsError: there are fewer epochs than checkpoints.
    """
    # In iterations there are the most epochs where each is one step.
    epochs = recipe.num_epochs(steps or 1)
    if recipe.trains and epochs < checkpoints:
        raise ParamsError(
            f"params.yaml: {where} learns from {checkpoints} checkpoints in {epochs} epochs, so some would never "
            "teach. Name fewer, or raise the epochs or iterations."
        )
