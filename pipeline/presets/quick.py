"""The quick form of a preset: the same runs of one pair, small enough for two cores and a few minutes.

It tries out that everything fits together; what it measures means nothing. Nothing is written down for it: it follows
from the preset.

* The data are 360 of scikit-learn's digits, in color and of 32x32 pixels: half to train on, half to test.
* Trainings have 4 epochs, teachers that would be downloaded too. Batches have 32 samples at most, and the learning rate
  is lowered with them, and to a tenth of that: with so few steps a method whose weight is large would diverge.
* Tables, warm-ups and the phases and trainings of methods and matchings are cut to the numbers of `MOST`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import plugin
from pipeline.params.matchings import MatchingParams
from pipeline.params.plug import plugs
from pipeline.params.recipe import Recipe
from pipeline.presets import selection
from pipeline.presets.selection import Params

SIZE = 32  # pixels: enough for every network here
SOURCE = {"digits": {"samples": 360, "test_share": 0.5, "size": SIZE, "channels": 3}}
EPOCHS, MILESTONES, BATCH = 4, [3], 32
SLOTS = 2
SLOWER = 0.1  # the learning rate

# The largest value that a setting of this name keeps.
MOST = {
    "clusters": 16,
    "words": 16,
    "components": 8,
    "per_class": 4,
    "max_samples": 100,
    "ranges": 10,
    "epochs": 1,
    "warmup": 1,
    "ramp": 1,
    "dynamic": 1,
    "negatives": 64,
}
LENGTHS = ("epochs", "iterations", "milestones", "warmup")  # of a recipe


def quick(content: Params, pair: str) -> dict[str, Any]:
    """Return the quick form of a preset's block.

    Args:
        content: the block.
        pair: the pair that stays.
    """
    students = [item for item in content["distill"] if item.startswith(f"{pair}/")]
    params = selection.selected(content, students)
    params["seeds"] = _seeds(params)
    params["recipes"] = {name: _recipe(recipe or {}) for name, recipe in params["recipes"].items()}
    params["datasets"] = {name: {**entry, "source": SOURCE} for name, entry in params["datasets"].items()}

    _replace(params, "teachers", _teacher)
    _replace(params, "students", _network)
    _replace(params, "copies", _taught)
    _replace(params, "assistants", lambda entry: _taught(_network(entry)))
    _replace(params, "tables", lambda entry: _plugins("tables", entry))
    _replace(params, "matchings", lambda entry: _small(entry, MatchingParams))
    _replace(params, "runs", lambda entry: _run(entry, entry))
    _replace(params, "pairs", lambda entry: _overridden(entry, params["runs"]))
    return params


def _replace(params: dict[str, Any], section: str, small: Any) -> None:
    if section in params:
        params[section] = {name: small(entry or {}) for name, entry in params[section].items()}


def _seeds(params: Params) -> list[int]:
    """Return one seed, and those whose students are named by runs."""
    transforms = [plugs(run["transform"]) for run in params["runs"].values() if "transform" in run]
    named = {settings["seed"] for plug in transforms for settings in plug.values() if "seed" in settings}
    return sorted({params["seeds"][0]} | named)


def _recipe(recipe: Params) -> dict[str, Any]:
    default = Recipe()
    batch = recipe.get("batch_size", default.batch_size)
    rate = recipe.get("learning_rate", default.learning_rate)
    kept = {key: value for key, value in recipe.items() if key not in LENGTHS}
    size = min(batch, BATCH)
    return kept | {
        "epochs": EPOCHS,
        "milestones": MILESTONES,
        "batch_size": size,
        "learning_rate": SLOWER * rate * size / batch,
    }


def _network(entry: Params) -> dict[str, Any]:
    """Return a teacher, student or assistant without changes of its recipe's length."""
    if isinstance(entry["recipe"], str):
        return dict(entry)
    recipe = {
        name: {key: value for key, value in changes.items() if key not in LENGTHS}
        for name, changes in plugs(entry["recipe"]).items()
    }
    return {**entry, "recipe": recipe}


def _teacher(entry: Params) -> dict[str, Any]:
    features = {
        name: {**(feature or {}), "slots": min(SLOTS, (feature or {}).get("slots", SLOTS))}
        for name, feature in entry["features"].items()
    }
    kept = {key: value for key, value in entry.items() if key != "weights"}
    return _network(kept | {"features": features})


def _taught(entry: Params) -> dict[str, Any]:
    """Return a copy or an assistant of a teacher that sees few views."""
    slots = entry.get("slots", "all")
    return {**entry, "slots": SLOTS if slots == "all" else min(SLOTS, slots)}


def _run(entry: Params, base: Params) -> dict[str, Any]:
    """Return a run, or what a pair changes of one.

    Args:
        entry: its settings.
        base: the run that they change, or the same.
    """
    small = dict(entry)
    for key, catalogue in (("methods", "methods"), ("schedule", "schedules"), ("transform", "transforms")):
        if key in entry:
            small[key] = _plugins(catalogue, entry[key], whole=entry is base)
    if "recipe" in entry:
        small["recipe"] = {key: value for key, value in entry["recipe"].items() if key not in LENGTHS}
    # Online, views need no slots, and may be unbounded.
    if entry is base and entry.get("source", "cached") == "cached":
        small["slots"] = SLOTS
    return small


def _overridden(entry: Params, runs: Params) -> dict[str, Any]:
    if "overrides" not in entry:
        return dict(entry)
    changes = {run: _run(change, runs[run]) for run, change in entry["overrides"].items()}
    return {**entry, "overrides": changes}


def _plugins(catalogue: str, written: Any, *, whole: bool = True) -> dict[str, Any]:
    """Return plug-ins with small settings; of whole ones, those that are left out are looked up."""
    return {
        name: _small(settings, plugin.load(catalogue, name).Config if whole else None)
        for name, settings in plugs(written).items()
    }


def _small(settings: Params, model: Any = None) -> dict[str, Any]:
    """Return settings none of whose numbers is above its `MOST`, those that their model has by default included."""
    small = {
        key: _small(value) if isinstance(value, Mapping) else _capped(key, value)
        for key, value in settings.items()
    }
    for key in MOST.keys() - settings.keys():
        field = None if model is None else model.model_fields.get(key)
        if field is not None and field.default != (capped := _capped(key, field.default)):
            small[key] = capped
    return small


def _capped(key: str, value: Any) -> Any:
    return min(value, MOST[key]) if key in MOST and isinstance(value, int) else value
