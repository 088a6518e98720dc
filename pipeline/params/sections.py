"""All sections of params.yaml, each of which may be left out or be empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import unknown_name
from pipeline.params.assistants import AssistantParams
from pipeline.params.base import Block, validate
from pipeline.params.copies import CopyParams, TaughtParams
from pipeline.params.datasets import DatasetParams
from pipeline.params.exports import ExportParams
from pipeline.params.matchings import BorrowedParams, MatchingParams
from pipeline.params.numbers import Seed
from pipeline.params.pairs import PairParams
from pipeline.params.plug import Plug, plugs
from pipeline.params.recipe import Recipe
from pipeline.params.runs import RunParams
from pipeline.params.students import StudentParams
from pipeline.params.teachers import TeacherParams

ALONE = "student"  # what the report calls a student that is trained alone


class Sections(Block):
    """All of params.yaml.

    Attributes:
        seeds: seeds of the students, from 0 to below 2^32; for one seed all runs share init, order and, unless a run
            has its own, views.
        recipes: how networks are trained, by name.
        datasets: data sets by name.
        teachers: teachers by name.
        students: students by name.
        pairs: teacher-student pairs by name.
        tables: recipes of fitted tables by name: a file of `pipeline/tables/fits`, with its settings. A table is
            made for every teacher of which a run asks for it.
        matchings: recipes of channel matchings by name; made for every pair of which a run asks for one.
        runs: runs by name.
        distill: what to distill, as "pair/run".
        copies: self-taught copies of teachers by name (SLKD*).
        assistants: smaller networks between a teacher and its students, by name (TAKD, DGKD).
        borrowed: matchings of a pair's students with another teacher, by name (KCD's Table 3).
        exports: students that are made into files that ship, by an entry of `distill`.
    """

    seeds: tuple[Seed, ...] = ()
    recipes: dict[str, Recipe] = {}
    datasets: dict[str, DatasetParams] = {}
    teachers: dict[str, TeacherParams] = {}
    students: dict[str, StudentParams] = {}
    pairs: dict[str, PairParams] = {}
    tables: dict[str, Plug] = {}
    matchings: dict[str, MatchingParams] = {}
    runs: dict[str, RunParams] = {}
    distill: tuple[str, ...] = ()
    copies: dict[str, CopyParams] = {}
    assistants: dict[str, AssistantParams] = {}
    borrowed: dict[str, BorrowedParams] = {}
    exports: dict[str, ExportParams] = {}

    @property
    def taught(self) -> dict[str, TaughtParams]:
        """Copies and assistants by name: both lie in one folder, so no two have one name."""
        return {**self.copies, **self.assistants}

    def recipe(self, named: Plug | None, where: str) -> Recipe:
        """Return a recipe by its name, its changes merged.

        Args:
            named: key of `recipes`, with changes; None is the default recipe.
            where: the place that names it, for instance "students.resnet8.recipe".

        Raises:
            UnknownNameError: there is no such recipe.
            ParamsError: a change is wrong.
        """
        if named is None:
            return Recipe()
        if named.name not in self.recipes:
            raise unknown_name(f"recipe of {where}:", named.name, self.recipes)
        base = self.recipes[named.name].model_dump(mode="json")
        return validate(Recipe, changed(base, named.settings), f"{where}.{named.name}")

    def run(self, pair: str, run: str) -> RunParams:
        """Return a run as a pair has it: its overrides merged.

        Raises:
            ParamsError: an override is wrong.
        """
        where = f"pairs.{pair}.overrides.{run}"
        base, changes = self.runs[run].model_dump(mode="json"), dict(self.pairs[pair].overrides.get(run, {}))

        if changes.get("recipe", {}) is None:
            del changes["recipe"]  # an empty mapping, which changes nothing
        elif isinstance(changes.get("recipe"), Mapping):
            base["recipe"] = changed(self._with_length(base["recipe"], pair), changes["recipe"])
        # A plug-in of another name takes the place of the run's, one of the same name gets its settings.
        for key in ("methods", "schedule", "transform", "views", "strong_views"):
            if changes.get(key) is not None:
                try:
                    changes[key] = plugs(changes[key])
                except ValueError:
                    continue  # the validation below says what is wrong
                # Methods are merged instead: an override may add one to those of the run.
                if base[key] is not None and list(changes[key]) != list(base[key]) and key != "methods":
                    base[key] = {}
        return validate(RunParams, merged(base, changes), where)

    def _with_length(self, recipe: Mapping[str, Any], pair: str) -> Mapping[str, Any]:
        """Return a run's changes of a recipe with the student's length, if they have none: it says what they count."""
        if recipe.get("epochs") is not None or recipe.get("iterations") is not None:
            return recipe
        student = self.pairs[pair].student
        whole = self.recipe(self.students[student].recipe, f"students.{student}.recipe")
        length = {"epochs": whole.epochs} if whole.iterations is None else {"iterations": whole.iterations}
        return {**recipe, **length}

    def runs_of(self, pair: str) -> list[str]:
        """Return the runs that `distill` asks of a pair, in their order."""
        parted = (item.partition("/") for item in self.distill)
        return [run for name, _, run in parted if name == pair]


def merged(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `update` merged into it, mapping by mapping."""
    result = dict(base)
    for key, value in update.items():
        inner = result.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = merged(inner, value)
        result[key] = value
    return result


# What a setting leaves behind when it changes: settings that were of its last value.
_LEFT_BEHIND = {
    "optimizer": ("sgd", ("learning_rate", "momentum", "nesterov", "betas", "eps")),
    "schedule": ("steps", ("milestones", "decay", "final")),
}


def changed(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a recipe with changes, which may give iterations in the place of epochs, or epochs again.

    Milestones and warm-up of the recipe are left behind with what they counted in, and what belongs to an optimizer or
    a schedule with it.

    Args:
        recipe: all of its settings, or some.
        changes: settings that take their place.
    """
    kept = dict(recipe)
    for length, other in (("epochs", "iterations"), ("iterations", "epochs")):
        if changes.get(length) is not None and changes.get(other) is None and kept.get(other) is not None:
            kept = {key: x for key, x in kept.items() if key not in (other, "milestones", "warmup")}
    for kind, (default, settings) in _LEFT_BEHIND.items():
        if kind in changes and changes[kind] != kept.get(kind, default):
            kept = {key: x for key, x in kept.items() if key not in settings}
    return kept | dict(changes)
