"""The quick form of a preset: the same runs of one pair, small enough for two cores and a few minutes.

It tries out that everything fits together; what it measures means nothing. Nothing is written down for it: it follows
from the preset.

* The data are 360 of scikit-learn's digits, in color and of 32x32 pixels: half to train on, half to test. Where
  they have boxes, they are 32 drawn images of shapes, shown at 64 pixels.
* Nothing is downloaded: teachers are trained. Trainings have 4 epochs, and batches of 32 samples at most, or of 4 with
  boxes. The learning rate is lowered with them, and to a tenth of that: with so few steps a method whose weight is
  large would diverge.
* Detectors keep their ResNets, under a pyramid and heads that are cut to the numbers of `MOST`.
* Tables, warm-ups and the phases and trainings of methods and matchings are cut to the numbers of `MOST`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pipeline import plugin
from pipeline.detection.detector_settings import DetectorSettings
from pipeline.params.matchings import MatchingParams
from pipeline.params.plug import plugs
from pipeline.params.recipe import Recipe
from pipeline.params.tasks import DETECTION, task_of
from pipeline.presets import selection
from pipeline.presets.selection import Params

SIZE = 32  # pixels: enough for every network here
SOURCE = {"digits": {"samples": 360, "test_share": 0.5, "size": SIZE, "channels": 3}}
BOXES = {"shapes": {"train": 24, "test": 8}}  # a source, where data have boxes
SIDE = 64  # of their images, the short one, in pixels
EPOCHS, MILESTONES, BATCH = 4, [3], 32
BOX_BATCH = 4
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
    # Of views and networks that find boxes.
    "longest": 128,
    "pyramid_width": 32,
    "head_width": 64,
    "smallest_anchor": 8,
    "proposals": 100,
    "sampled_anchors": 64,
    "sampled_proposals": 32,
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
    boxed = {name for name, entry in params["datasets"].items() if _has_boxes(entry)}
    params["recipes"] = _recipes(params, boxed)
    params["datasets"] = {
        name: _with_boxes(entry) if name in boxed else {**entry, "source": SOURCE}
        for name, entry in params["datasets"].items()
    }

    _replace(params, "teachers", lambda entry: _trained(entry, entry["dataset"] in boxed))
    _replace(params, "students", lambda entry: _trained(entry, entry["dataset"] in boxed))
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


def _has_boxes(dataset: Params) -> bool:
    (source,) = plugs(dataset["source"])
    return task_of(plugin.load("datasets", source)) == DETECTION


def _with_boxes(dataset: Params) -> dict[str, Any]:
    """Return a data set whose images are drawn, and shown small."""
    views = {}
    for name, settings in plugs(dataset["views"]).items():
        views[name] = _small(settings)
        if "short" in settings:
            views[name]["short"] = sorted({min(side, SIDE) for side in settings["short"]})
    return {**dataset, "source": BOXES, "views": views}


def _recipes(params: Params, boxed: Collection[str]) -> dict[str, Any]:
    """Return the recipes, cut; those of networks that find boxes have smaller batches.

    Args:
        params: sections of params.yaml.
        boxed: the data sets with boxes.
    """
    networks = [entry for section in ("teachers", "students") for entry in params[section].values()]
    of_detectors = {
        name for entry in networks if entry["dataset"] in boxed for name in plugs(entry["recipe"])
    }
    return {
        name: _recipe(recipe or {}, BOX_BATCH if name in of_detectors else BATCH)
        for name, recipe in params["recipes"].items()
    }


def _recipe(recipe: Params, most: int) -> dict[str, Any]:
    """Return a recipe of few epochs, and of batches of `most` samples at most."""
    default = Recipe()
    batch = recipe.get("batch_size", default.batch_size)
    rate = recipe.get("learning_rate", default.learning_rate)
    kept = {key: value for key, value in recipe.items() if key not in LENGTHS}
    size = min(batch, most)
    return kept | {
        "epochs": EPOCHS,
        "milestones": MILESTONES,
        "batch_size": size,
        "learning_rate": SLOWER * rate * size / batch,
    }


def _network(entry: Params) -> dict[str, Any]:
    """Return a network without changes of its recipe's length."""
    if isinstance(entry["recipe"], str):
        return dict(entry)
    recipe = {
        name: {key: value for key, value in changes.items() if key not in LENGTHS}
        for name, changes in plugs(entry["recipe"]).items()
    }
    return {**entry, "recipe": recipe}


def _trained(entry: Params, detector: bool) -> dict[str, Any]:
    """Return a teacher or a student: nothing is downloaded for it, and little is stored of it.

    Args:
        entry: its settings.
        detector: whether it finds boxes.
    """
    small = _network({key: value for key, value in entry.items() if key != "weights"})
    if "features" in entry:
        small["features"] = {
            name: {**(feature or {}), "slots": min(SLOTS, (feature or {}).get("slots", SLOTS))}
            for name, feature in entry["features"].items()
        }
    if detector:
        small["detector"] = _small(entry.get("detector", {}), DetectorSettings)
    return small


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
    for key in MOST:
        field = None if model is None or key in settings else model.model_fields.get(key)
        if field is not None and field.default != (capped := _capped(key, field.default)):
            small[key] = capped
    return small


def _capped(key: str, value: Any) -> Any:
    return min(value, MOST[key]) if key in MOST and isinstance(value, int) else value
