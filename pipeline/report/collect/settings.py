"""From the blocks of params.yaml to how the students of a run are trained, and how detectors are built."""

from __future__ import annotations

from typing import Any

from pipeline.detection.blocks import DetectorRunBlock
from pipeline.detection.spec import DetectorSpec, LearnerBlock
from pipeline.params.pairs import RunBlock
from pipeline.params.recipe import Recipe
from pipeline.params.wording import described
from pipeline.report.trainings import Settings


def alone_settings(recipe: Recipe) -> Settings:
    """Return the settings of a student that is trained alone."""
    return Settings(_whole(recipe))


def run_settings(run: RunBlock, recipe: Recipe) -> Settings:
    """Return the settings of a run.

    Args:
        run: the run, with the pair's overrides merged in.
        recipe: the student's, which the run may change.
    """
    return Settings(
        recipe=_whole(run.recipe),
        changed=_changed(run.recipe, recipe),
        methods={plug.name: plug.settings for plug in run.methods},
        schedule={run.schedule.name: run.schedule.settings},
        transform={} if run.transform is None else {run.transform.name: run.transform.settings},
        source=run.source,
        slots=run.slots,
        views="" if run.views is None else described(run.views),
    )


def detector_settings(run: DetectorRunBlock, recipe: Recipe) -> Settings:
    """Return the settings of a run of detectors, whose teacher always runs beside the student; see `run_settings`."""
    return Settings(
        recipe=_whole(run.recipe),
        changed=_changed(run.recipe, recipe),
        methods={plug.name: plug.settings for plug in run.methods},
        schedule={"final": {}},
        transform={} if run.transform is None else {run.transform.name: run.transform.settings},
        source="online",
    )


def built(block: LearnerBlock, spec: DetectorSpec) -> dict[str, Any]:
    """Return how a detector is built, and where its first weights come from."""
    content = block.model_dump(mode="json")
    return {"network": spec.network, "weights": content["weights"], **spec.settings.model_dump(mode="json")}


def _changed(own: Recipe, plain: Recipe) -> tuple[str, ...]:
    """Return which settings of a recipe are a run's own."""
    return tuple(name for name, value in _whole(own).items() if value != _whole(plain)[name])


def _whole(recipe: Recipe) -> dict[str, Any]:
    """Return all settings of a recipe, those that its json leaves out too."""
    return {name: getattr(recipe, name) for name in Recipe.model_fields}
