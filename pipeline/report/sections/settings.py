"""How each run of a pair was trained: methods, schedule, transform, source, slots, views, changes of the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from pipeline.report.detectors import BoxPair, BoxRun
from pipeline.report.drawing import markup, text
from pipeline.report.results import Pair, Results, Run
from pipeline.report.trainings import Plugins

TITLE = "Settings of the runs"
LEAD = "whether runs that are compared differ in their methods alone, or in schedule, slots, views or recipe too."
GROUP, ORDER = "pair", 20
DETECTION: Mapping[str, str] = {}


def section(results: Results, pair: Pair | BoxPair) -> Markup:
    """Return the student's recipe, a folded block for each run, and how detectors are built."""
    # Of epochs and iterations one is given.
    recipe = [
        (name.replace("_", " "), _words(value))
        for name, value in pair.alone.settings.recipe.items()
        if value is not None
    ]
    blocks = [_run(run, pair.alone) for run in pair.runs if run is not pair.alone]
    words = "All settings are shown, defaults too. Of the recipe, what a run changes is shown beside the student's own."

    shared = Markup("<h4>Recipe of {}, for all runs that do not change it</h4>{}").format(
        pair.student, markup.facts(recipe)
    )
    if isinstance(pair, BoxPair):
        blocks.append(markup.folded("How the detectors are built", _built(pair)))
    return shared + Markup().join(blocks) + (markup.note(words) if blocks else Markup())


def _built(pair: BoxPair) -> Markup:
    """Return a row for each setting of the two detectors."""
    teacher, student = dict(_flat(pair.teacher.built)), dict(_flat(pair.built))
    rows: list[markup.Row] = [
        [name, teacher.get(name, text.DASH), student.get(name, text.DASH)]
        for name in dict.fromkeys((*teacher, *student))
    ]
    return markup.table(["setting", pair.teacher.name, pair.student], rows, 3)


def _run(run: Run | BoxRun, alone: Run | BoxRun) -> Markup:
    settings = run.settings
    slots = "unbounded" if settings.slots is None else str(settings.slots)
    rows: list[markup.Row] = [
        *_plugins("method", settings.methods),
        *_plugins("schedule", settings.schedule),
        *_plugins("transform", settings.transform),
        ["source", "", settings.source],
        ["slots", "", slots],
        ["views", "", settings.views or "of the data set"],
        *(
            ["recipe", name, f"{_words(settings.recipe[name])} (student alone: {_words(alone.settings.recipe[name])})"]
            for name in settings.changed
        ),
    ]  # fmt: skip

    # What a folded block would hide: another composition than the name says, and another recipe.
    words = [run.composition] if run.composition != run.name else []
    if settings.views:
        words.append("views of its own")
    if settings.changed:
        words.append(f"changes {', '.join(settings.changed)} of the recipe")
    title = Markup("<b>{}</b> <small>{}</small>").format(run.name, "; ".join(words))
    return markup.folded(title, markup.table(["part", "setting", "value"], rows, 3))


def _plugins(part: str, plugins: Plugins) -> list[markup.Row]:
    """Return one row for each setting of plug-ins, after a row with the plug-in's name."""
    rows: list[markup.Row] = []
    for name, settings in plugins.items():
        rows.append([part, "", markup.strong(name)])
        rows += [[part, setting, value] for setting, value in _flat(settings)]
    return rows


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Give settings with dotted names: those of a mapping within a mapping become rows of their own."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:  # an empty one is a setting like any other
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, _words(value)


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    if value is None or value == {}:
        return "none"
    return text.plain(value)
