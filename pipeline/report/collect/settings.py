"""From params.yaml to how the students of a run are trained."""

from __future__ import annotations

from pipeline.params.recipe import Recipe
from pipeline.params.runs import RunParams
from pipeline.report.results import Settings


def alone_settings(recipe: Recipe) -> Settings:
    """Return the settings of a student that is trained alone."""
    return Settings(recipe.model_dump(mode="json"))


def run_settings(run: RunParams, recipe: Recipe) -> Settings:
    """Return the settings of a run.

    Args:
        run: the run, with the pair's overrides merged in.
        recipe: the student's, which the run may change.
    """
    transform = {} if run.transform is None else {run.transform: run.transform_config}
    return Settings(
        recipe=recipe.model_dump(mode="json") | run.recipe,
        changed=tuple(run.recipe),
        methods={run.method: run.config},
        schedule={run.schedule: run.schedule_config},
        transform=transform,
        source=run.source,
        slots=run.slots,
    )
