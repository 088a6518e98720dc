"""The whole check of params.yaml: what `dvc repro params` says before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import plugin
from pipeline.params import checks
from pipeline.params.base import placed, validate
from pipeline.params.recipe import Recipe
from pipeline.params.runs import RunParams
from pipeline.params.sections import Sections, changed
from pipeline.params.views import view_params
from pipeline.runs.blocks import blocks
from pipeline.runs.composition import check_settings
from pipeline.runs.project import Project


def check(content: Mapping[str, Any]) -> Sections:
    """Check all of params.yaml: names, settings of plug-ins, taps, features, tables, matchings, copies, slots.

    Args:
        content: what the yaml holds.

    Raises:
        StillhouseError: the first thing that is wrong, and what to write.
    """
    return project(content).params


def project(content: Mapping[str, Any]) -> Project:
    """Check all of params.yaml and return it brought to life; see `check`."""
    checked = Project(checks.check(content))
    params = checked.params

    # Also of what nobody asks for yet: it will be asked for by a line of 'distill'.
    for name, run in params.runs.items():
        _check_run(run, f"runs.{name}")
        # Which student's recipe it changes is not known: one in the same unit.
        counted = Recipe() if run.recipe.get("iterations") is None else Recipe(iterations=1, milestones=())
        validate(Recipe, changed(counted.model_dump(mode="json"), run.recipe), f"runs.{name}.recipe")
    for pair, entry in params.pairs.items():
        for name in entry.overrides:
            _check_run(params.run(pair, name), f"pairs.{pair}.overrides.{name}")
    for name, table in params.tables.items():
        with placed(f"tables.{name}"):
            config = plugin.load("tables", table.name).Config
        validate(config, table.settings, f"tables.{name}.{table.name}")

    # This builds every network and rehearses every run of 'distill': settings may be right and not fit together.
    checked.hashed = False
    blocks(checked)
    checked.hashed = True
    return checked


def _check_run(run: RunParams, where: str) -> None:
    check_settings(run, where)
    if run.views is not None:
        view_params(run.views, f"{where}.views")
    if run.strong_views is not None:
        view_params(run.strong_views, f"{where}.strong_views")
