"""From the blocks of params.yaml to how the students of a run are trained."""

from __future__ import annotations

from typing import Any

from pipeline.params.pairs import RunBlock
from pipeline.params.recipe import Recipe
from pipeline.params.wording import described
from pipeline.report.results import Settings


def alone_settings(recipe: Recipe) -> Settings:
    """Return the settings of a student that is trained alone."""
    return Settings(_whole(recipe))


def run_settings(run: RunBlock, recipe: Recipe) -> Settings:
    """Return the settings of a run.

    Args:
        run: the run, with the pair's overrides merged in.
        recipe: the student's, which the run may change.
    """
    own, plain = _whole(run.recipe), _whole(recipe)
    return Settings(
        recipe=own,
        changed=tuple(name for name, value in own.items() if value != plain[name]),
        methods={plug.name: plug.settings for plug in run.methods},
        schedule={run.schedule.name: run.schedule.settings},
        transform={} if run.transform is None else {run.transform.name: run.transform.settings},
        source=run.source,
        slots=run.slots,
        views="" if run.views is None else described(run.views),
    )


def _whole(recipe: Recipe) -> dict[str, Any]:
    """Return all settings of a recipe, those that its json leaves out too."""
    return {name: getattr(recipe, name) for name in Recipe.model_fields}
