"""What cannot be learned from mixed views, refused before anything is made.

Cross-entropy has a meaning for a sample of two labels, and so has all that compares student and teacher alone. What
asks for the class of a sample has none: its authors do not mix samples, and half of an answer would go unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from pipeline import plugin
from pipeline.errors import ParamsError
from pipeline.features.encoding import encodings_of, reads_label
from pipeline.params.matchings import MatchingParams
from pipeline.params.pairs import RunBlock
from pipeline.params.recipe import Recipe
from pipeline.params.views import ViewParams, mixing
from pipeline.runs.composition import Composition


def mixes(views: ViewParams) -> bool:
    """Return whether views mix samples."""
    return mixing(views) is not None


def check_recipe(recipe: Recipe, views: ViewParams, where: str) -> None:
    """Refuse a recipe that draws classes evenly from views whose partners are drawn from all samples.

    Args:
        recipe: how something is trained.
        views: what it sees.
        where: the recipe's place in params.yaml.

    Raises:
        ParamsError: it does.
    """
    mixes = mixing(views)
    if mixes is not None and recipe.sampling == "balanced":
        raise ParamsError(
            f"params.yaml: {where} has 'sampling: balanced', and its views have '{mixes.space}', whose partners are "
            "drawn from all images, so classes would not be even. Set 'class_weights: balanced' in its place."
        )


def check_run(
    composition: Composition,
    run: RunBlock,
    views: ViewParams,
    tables: Mapping[str, Mapping[str, NDArray[Any]]],
    matchings: Mapping[str, MatchingParams],
    where: str,
) -> None:
    """Refuse a run that asks for the class of a sample which is mixed of two.

    Args:
        composition: its plug-ins.
        run: the run.
        views: what it sees.
        tables: arrays of the sizes of the tables that it reads, by table and array name.
        matchings: recipes of matchings, by their keys.
        where: its place in params.yaml.

    Raises:
        ParamsError: it does.
    """
    mixes = mixing(views)
    if mixes is None or run.slots == 0:
        return
    check_recipe(run.recipe, views, f"{where}.recipe")
    for reader in _readers(composition, run, tables, matchings):
        raise ParamsError(
            f"params.yaml: {where} has {reader}, which reads one class a sample, and its views have '{mixes.space}', "
            "which mixes two. Drop either, or give the run views of its own and 'source: online'."
        )


def _readers(
    composition: Composition,
    run: RunBlock,
    tables: Mapping[str, Mapping[str, NDArray[Any]]],
    matchings: Mapping[str, MatchingParams],
) -> Iterator[str]:
    """Give what reads the class of a sample, in words."""
    for name, config in composition.methods.items():
        if plugin.load("methods", name).Method.needs(config).label:
            yield f"method '{name}'"
    if composition.schedule.needs(composition.schedule_config).label:
        yield f"schedule '{run.schedule.name}'"
    transform = composition.transform
    if (
        run.transform is not None
        and transform is not None
        and transform.needs(composition.transform_config).label
    ):
        yield f"transform '{run.transform.name}'"

    yield from (f"encoding '{name}'" for name in encodings_of(run.features) if reads_label(name))
    # Sub-classes are those of a class.
    yield from (f"table '{name}' of sub-classes" for name, arrays in tables.items() if "per_class" in arrays)
    for wanted in run.matchings:
        if matchings[wanted.matching].ranges > 1:
            yield f"matching '{wanted.matching}' by ranges of labels"
