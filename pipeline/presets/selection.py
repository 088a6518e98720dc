"""The part of a params.yaml that its students need: without runs, tables, networks and features that none reads.

Shared files hold whole families of pairs and runs. Which of their entries a table needs follows from the names that its
runs mention.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.params.plug import plugs
from pipeline.params.sections import merged

Params = Mapping[str, Any]
ORDER = (  # in which a reader meets them: what is named stands before what names it
    "seeds",
    "recipes",
    "datasets",
    "teachers",
    "assistants",
    "copies",
    "students",
    "pairs",
    "borrowed",
    "tables",
    "matchings",
    "runs",
    "distill",
)


def selected(params: Params, distill: Iterable[str]) -> dict[str, Any]:
    """Return what students need of `params`.

    Args:
        params: sections of params.yaml.
        distill: the students, as "pair/run".
    """
    items = list(distill)
    kept: dict[str, Any] = {"seeds": params["seeds"]}
    kept["pairs"] = _pairs(params, items)
    kept["runs"] = {run: params["runs"][run] for run in dict.fromkeys(run for _, run in map(_parted, items))}
    mentioned = {pair: _mentioned_by(kept, pair, items) for pair in kept["pairs"]}
    everything = set().union(*mentioned.values())

    for section in ("tables", "matchings", "copies"):
        kept[section] = _named(params, section, everything)
    kept["assistants"] = _assistants(params, everything)
    kept["borrowed"] = {
        name: entry
        for name, entry in params.get("borrowed", {}).items()
        if entry["pair"] in kept["pairs"] and {entry["teacher"], entry["matching"]} <= everything
    }

    # Whoever names a teacher or a student, beside what runs of a pair mention of it.
    naming = [
        entry for section in ("pairs", "borrowed", "copies", "assistants") for entry in kept[section].values()
    ]
    teachers = dict.fromkeys(entry["teacher"] for entry in naming)
    students = dict.fromkeys(entry["student"] for entry in naming if "student" in entry)
    kept["teachers"] = {
        name: _stored(
            params["teachers"][name], _read_of(name, kept, mentioned), _is_cached(name, kept, items)
        )
        for name in teachers
    }
    kept["students"] = {name: params["students"][name] for name in students}

    networks = [*kept["teachers"].values(), *kept["students"].values()]
    datasets = {network["dataset"] for network in networks}
    kept["datasets"] = _named(params, "datasets", datasets)
    trained = (entry.get("recipe") for entry in (*networks, *kept["assistants"].values()))
    recipes = {name for entry in trained if entry is not None for name in plugs(entry)}
    kept["recipes"] = _named(params, "recipes", recipes)

    kept["distill"] = items
    return {section: kept[section] for section in ORDER if kept[section]}


def mentions(content: Any) -> Iterator[str]:
    """Give every text in settings, keys included."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield key
            yield from mentions(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from mentions(value)


def _parted(item: str) -> tuple[str, str]:
    pair, _, run = item.partition("/")
    return pair, run


def _pairs(params: Params, items: list[str]) -> dict[str, Any]:
    """Return the pairs of the students, with the overrides of their runs alone."""
    runs_of: dict[str, list[str]] = {}
    for pair, run in map(_parted, items):
        runs_of.setdefault(pair, []).append(run)

    pairs = {}
    for name, runs in runs_of.items():
        entry = dict(params["pairs"][name])
        overrides = {run: value for run, value in entry.pop("overrides", {}).items() if run in runs}
        pairs[name] = entry | ({"overrides": overrides} if overrides else {})
    return pairs


def _mentioned_by(kept: Params, pair: str, items: list[str]) -> set[str]:
    """Return all names in the runs of a pair, its overrides merged."""
    overrides = kept["pairs"][pair].get("overrides", {})
    runs = [run for name, run in map(_parted, items) if name == pair]
    return {name for run in runs for name in mentions(merged(kept["runs"][run], overrides.get(run, {})))}


def _named(params: Params, section: str, wanted: set[str]) -> dict[str, Any]:
    return {name: entry for name, entry in params.get(section, {}).items() if name in wanted}


def _assistants(params: Params, wanted: set[str]) -> dict[str, Any]:
    """Return the assistants that runs name, and those that these follow."""
    kept = _named(params, "assistants", wanted)
    while len(more := _named(params, "assistants", wanted | set(mentions(list(kept.values()))))) > len(kept):
        kept = more
    return kept


def _read_of(teacher: str, kept: Params, mentioned: Mapping[str, set[str]]) -> set[str]:
    """Return the features of a teacher that its students read or that its tables and matchings are made of."""
    pairs = [name for name, entry in kept["pairs"].items() if entry["teacher"] == teacher]
    pairs += [entry["pair"] for entry in kept["borrowed"].values() if entry["teacher"] == teacher]
    words = set().union(*(mentioned[pair] for pair in pairs), ())
    made_of = [
        kept[section][name] for section in ("tables", "matchings") for name in kept[section] if name in words
    ]
    return words | set(mentions(made_of))


def _is_cached(teacher: str, kept: Params, items: list[str]) -> bool:
    """Say whether anyone reads a teacher's store in training: a student of a cached run, or a copy or an assistant."""
    pairs = {name for name, entry in kept["pairs"].items() if entry["teacher"] == teacher}
    runs = [kept["runs"][run] for pair, run in map(_parted, items) if pair in pairs]
    beside = [*kept["copies"].values(), *kept["assistants"].values()]
    return any(run.get("source", "cached") == "cached" for run in runs) or any(
        entry["teacher"] == teacher for entry in beside
    )


def _stored(teacher: Params, read: set[str], cached: bool) -> dict[str, Any]:
    """Return a teacher whose store holds what is read of it; logits are always there, of no views where nobody asks.

    Of a detector nothing is stored, and it has no features.
    """
    if "features" not in teacher:
        return dict(teacher)
    features = {
        name: entry for name, entry in teacher["features"].items() if name == "logits" or name in read
    }
    if not cached:
        features["logits"] = {**(features["logits"] or {}), "slots": 0}
    return {**teacher, "features": features}
