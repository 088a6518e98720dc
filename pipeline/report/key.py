"""What a run consists of as one string, by which a published number finds its run: `kd/self_learning`.

METHOD+METHOD/SCHEDULE|TRANSFORM: the methods in the order of the alphabet, no schedule where it is `final`, no
transform where there is none. In brackets stands what makes another method of it: what letKD's and QuEST's places learn
(`letkd[words,subclasses]`), and settings that the papers' tables tell apart (`ttm[weighted]`,
`permutation[strategy=greedy]`). Weights, temperatures and how the teacher's features are stored make no other method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.params.matchings import MatchingParams
from pipeline.params.pairs import RunBlock
from pipeline.params.plug import Plug
from pipeline.params.runs import RunParams
from pipeline.params.sections import Sections

PLACED = ("letkd", "quest")  # methods whose places each learn a table
TOLD_APART: Mapping[str, Mapping[str, Any]] = {  # settings with their defaults, by plug-in
    "dskd": {"balance": "loss", "maps": True},
    "self_learning": {"num_networks": 2, "teachers": "both"},
    "ttm": {"weighted": False},
}
MATCHED = ("measure", "strategy", "student_weights", "teacher_checkpoint", "ranges")  # of a matching


def key(run: RunBlock | RunParams, sections: Sections) -> str:
    """Return what a run consists of.

    Args:
        run: the run, with the pair's overrides merged.
        sections: of the params.yaml that has the run, its tables and its matchings.
    """
    words = "+".join(sorted(_method(plug, sections) for plug in run.methods))
    if run.schedule.name != "final":
        words += f"/{_bracketed(run.schedule.name, _told_apart(run.schedule))}"
    if run.transform is not None:
        words += f"|{_bracketed(run.transform.name, _transformed(run.transform, sections))}"
    return words


def _method(plug: Plug, sections: Sections) -> str:
    words = list(_places(plug, sections)) if plug.name in PLACED else []
    words += _told_apart(plug)
    # Layers beside the method's own: the comparison at equal numbers of parameters.
    words += [f"insert={name}" for name in sorted(map(_layer, plug.settings.get("insert", {}).values()))]
    return _bracketed(plug.name, words)


def _told_apart(plug: Plug) -> Iterator[str]:
    for name, default in TOLD_APART.get(plug.name, {}).items():
        value = plug.settings.get(name, default)
        if value != default:
            yield _word(name, value)
    # All stages but the last is the method; one of them, or none, are rows of their own.
    positions = plug.settings.get("positions")
    if plug.name == "dskd" and positions is not None and len(positions) < 2:
        yield _word("positions", positions[0] if positions else None)
    if plug.name == "anchors" and len(plug.settings.get("anchors", ())) == 1:
        yield "one"
    # KCD's AB has its boundaries beside the labels, and no phase of its own for them.
    if plug.name == "ab" and plug.settings.get("epochs") == 0:
        yield "joint"


def _places(plug: Plug, sections: Sections) -> Iterator[str]:
    """Give the kind of table that each place learns, `final` first; idle where the path leads around the layer."""
    places = plug.settings.get("places", {"final": "words"})
    alpha = plug.settings.get("alpha", {})
    for tap in sorted(places, key=lambda tap: tap != "final"):
        table = places[tap] if isinstance(places[tap], str) else places[tap]["table"]
        kind = sections.tables[table].name if table in sections.tables else table
        yield ("words" if kind == "kmeans" else kind) + ("" if alpha.get(tap, 1.0) else " idle")


def _transformed(plug: Plug, sections: Sections) -> Iterator[str]:
    if plug.name != "permutation":
        return
    matching = sections.matchings.get(plug.settings.get("matching", "kcd"), MatchingParams())
    for name in MATCHED:
        value = getattr(matching, name)
        if value != MatchingParams.model_fields[name].default:
            yield _word(name, value)
    if plug.settings.get("dynamic") is not None:
        yield _word("dynamic", plug.settings["dynamic"])
    # Of another network than the run's own: which one it is called makes no difference.
    yield from (name for name in ("teacher", "seed") if plug.settings.get(name) is not None)


def _layer(layer: Any) -> str:
    """Return the name of an inserted layer, as params.yaml or a block has it."""
    return layer if isinstance(layer, str) else str(next(iter(layer)))


def _word(name: str, value: Any) -> str:
    return name if value is True else f"{name}={str(value).lower()}"


def _bracketed(name: str, words: Iterable[str]) -> str:
    listed = ",".join(words)
    return f"{name}[{listed}]" if listed else name
