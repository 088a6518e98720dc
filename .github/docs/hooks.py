"""Fill in what the pages say of settings, from the pydantic models themselves, when the pages are built.

A page holds a mark such as `<!-- generated: params -->`, alone on its line. What follows from it is never written by
hand, so it cannot fall behind the code.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

sys.path.insert(0, str(Path(__file__).parents[2]))  # mkdocs runs hooks outside any package
sys.path.insert(0, str(Path(__file__).parent))

import method_table

from pipeline import plugin
from pipeline.detection.detector_settings import DetectorSettings
from pipeline.params.detection import ScaleFlip
from pipeline.params.plug import Plug, plugs
from pipeline.params.sections import Sections
from pipeline.params.views import SPACES
from pipeline.presets import preset as presets_of

MARK = re.compile(r"^<!-- generated: (\w+)(?: (\w+))? -->$", re.MULTILINE)
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}
_PLURALS = {"integer": "integers", "number": "numbers", "text": "names"}
_NAMES: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Any: "anything",
    Path: "path",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page."""
    return MARK.sub(lambda match: GENERATED[match[1]](*filter(None, [match[2]])), markdown)


def params() -> str:
    """Return every section of params.yaml, with a table of its keys."""
    meanings = attributes(Sections)
    parts = []
    for name, field in Sections.model_fields.items():
        parts.append(f"### `{name}`\n\n{sentence(meanings.get(name, ''))}\n")
        inner = models(field.annotation)
        if not inner:
            parts.append(f"Type: {kind(field.annotation)}. Default: {default(field)}.\n")
        parts += [f"{_heading(one, inner)}{table(one)}" for one in inner]
    return "\n".join(parts)


def plugins(catalogue: str) -> str:
    """Return every plug-in of a catalogue: what it is, and a table of its settings where it has any."""
    parts = []
    for name in plugin.names(catalogue):
        module = plugin.load(catalogue, name)
        summary = inspect.cleandoc(module.__doc__ or "").partition("\n\n")[0]
        parts.append(f"### `{name}`\n\n{' '.join(summary.split())}\n")
        config = getattr(module, "Config", None)
        if config is not None and config.model_fields:
            parts.append(table(config))
    return "\n".join(parts)


def modules(catalogue: str) -> str:
    """Return every plug-in of a catalogue: its whole docstring, and a table of its settings where it has any."""
    options = "{members: false, show_root_heading: false, show_root_toc_entry: false}"
    parts = []
    for name in plugin.names(catalogue):
        module = plugin.load(catalogue, name)
        parts.append(f"### `{name}`\n\n::: {module.__name__}\n    options: {options}\n")
        if module.Config.model_fields:
            parts.append(f"**Settings**\n\n{table(module.Config)}")
    return "\n".join(parts)


def networks() -> str:
    """Return a table of the families and the networks that they know."""
    rows = ["| family | networks |", "|---|---|"]
    for family in plugin.names("networks"):
        module = plugin.load("networks", family)
        known = ", ".join(f"`{name}`" for name in module.NETWORKS)
        if getattr(module, "OPEN", False):
            known = f"{known or 'any name'} that the library knows, as `{family}/NAME`"
        rows.append(f"| `{family}` | {known} |")
    return "\n".join(rows) + "\n"


def views() -> str:
    """Return every view space: how many views it has, and a table of its settings where it has any."""
    parts = []
    for model in SPACES:
        (name,) = get_args(model.model_fields["space"].annotation)
        parts.append(
            f"### `{name}`\n\n{inspect.cleandoc(model.__doc__ or '').partition(chr(10) + chr(10))[0]}\n"
        )
        if len(model.model_fields) > 1:
            parts.append(table(model, hidden=("space",)))
    return "\n".join(parts)


def box_views() -> str:
    """Return the views of images with boxes alone, as `views` does."""
    (name,) = get_args(ScaleFlip.model_fields["space"].annotation)
    text = inspect.cleandoc(ScaleFlip.__doc__ or "").partition("\n\nAttributes:")[0]
    return f"### `{name}`\n\n{text}\n\n{table(ScaleFlip, hidden=('space',))}"


def detector() -> str:
    """Return the table of a detector's settings."""
    return table(DetectorSettings)


def presets(paper: str = "") -> str:
    """Return a table of all presets; of one paper, its tables with their rows, runs and open ends."""
    if paper:
        chosen = [(name, preset) for name, preset in presets_of.every() if preset.paper == paper]
        return "\n".join(_preset(name, preset) for name, preset in chosen)
    rows = ["| preset | paper | tables | what | pairs | students |", "|---|---|---|---|---|---|"]
    for name, preset in presets_of.every():
        students = presets_of.num_students(presets_of.block(preset))
        cells = (
            f"`{name}`",
            preset.paper,
            presets_of.places(preset),
            preset.title,
            len(preset.pairs),
            students,
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows) + "\n"


def _preset(name: str, preset: presets_of.Preset) -> str:
    runs: dict[str, list[str]] = {}
    for label, run in preset.rows.items():
        runs.setdefault(run, []).append(label)
    parts = [f"**`{name}`**: {preset.title}. {_places(preset)}\n"]
    if runs:
        cells = (f"| `{run}` | {'; '.join(labels)} |" for run, labels in runs.items())
        parts.append("\n".join(["| run | rows |", "|---|---|", *cells]) + "\n")
    if preset.also:
        parts.append(f"Beside them: {', '.join(f'`{run}`' for run in preset.also)}.\n")
    parts += [f"Figure {number} is {where}.\n" for number, where in preset.figures.items()]
    if preset.open:
        parts.append("Open, and what was chosen:\n")
        parts.append("\n".join(f"* {line}" for line in preset.open) + "\n")
    return "\n".join(parts)


def _places(preset: presets_of.Preset) -> str:
    """Return a sentence on the tables and pairs of a preset."""
    numbers = f"Table{'s' * (len(preset.tables) > 1)} {', '.join(preset.tables)}; " if preset.tables else ""
    return f"{numbers}{len(preset.pairs)} pair{'s' * (len(preset.pairs) > 1)}, quick with `{preset.quick}`."


GENERATED: dict[str, Callable[..., str]] = {
    "params": params,
    "plugins": plugins,
    "modules": modules,
    "networks": networks,
    "views": views,
    "box_views": box_views,
    "detector": detector,
    "methods": method_table.table,
    "presets": presets,
}


def table(model: type[BaseModel], hidden: tuple[str, ...] = ()) -> str:
    """Return the table of a model's keys but the hidden ones; those of models inside it follow, with their places."""
    rows = ["| key | type | default | what |", "|---|---|---|---|"]
    for place, field, meaning in keys(model):
        if place in hidden:
            continue
        cells = (f"`{place}`", kind(field.annotation, field), default(field), sentence(meaning))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def keys(
    model: type[BaseModel], place: str = "", above: tuple[type[BaseModel], ...] = ()
) -> Iterator[tuple[str, FieldInfo, str]]:
    """Give every key of a model with its field and its sentence, models inside it after their key."""
    meanings = attributes(model)
    for name, field in model.model_fields.items():
        yield f"{place}{name}", field, meanings.get(name, "")
        for inner in models(field.annotation):
            if inner not in above:
                middle = "." if get_origin(_plain(field.annotation)) is not dict else ".NAME."
                yield from keys(inner, f"{place}{name}{middle}", (*above, model, inner))


def attributes(model: type[BaseModel]) -> dict[str, str]:
    """Return the sentences of the `Attributes:` of a model and of those that it inherits from, by key."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, _, lines = text.partition("Attributes:\n")
        body = re.split(r"\n(?=\S)", lines)[0]
        for entry in re.split(r"\n(?=    \S)", "\n" + body):
            name, colon, meaning = entry.strip().partition(": ")
            if colon and name.isidentifier():
                found[name] = " ".join(meaning.split())
    return found


def models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation names, wherever they stand in it; a plug-in has a page of its own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if issubclass(annotation, Plug) else [annotation]
    found = [model for argument in get_args(annotation) for model in models(argument)]
    return list(dict.fromkeys(found))


def kind(annotation: Any, field: FieldInfo | None = None) -> str:
    """Return the type of a key in words, with its bounds."""
    bounds = [
        f"{sign} {getattr(rule, name)}"
        for rule in (field.metadata if field else ())
        for name, sign in _BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    if field is not None and any(getattr(rule, "func", None) is plugs for rule in field.metadata):
        return "name, or settings by name"
    return ", ".join([_words(_plain(annotation)), *bounds])


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Plug):
        return "name, or {name: settings}"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(_plain(argument)) for argument in arguments))
    if origin is dict:
        value = _plain(arguments[1])
        return "settings" if value is Any else f"{_words(value)} by name"
    if origin is tuple:
        inner = dict.fromkeys(_words(_plain(argument)) for argument in arguments if argument is not ...)
        return f"list of {' and '.join(_PLURALS.get(word, word) for word in inner)}"
    return "keys below" if models(annotation) else getattr(annotation, "__name__", str(annotation))


def _plain(annotation: Any) -> Any:
    """Return an annotation without what `Annotated` says beside it."""
    while hasattr(annotation, "__metadata__"):
        annotation = get_args(annotation)[0]
    return annotation


def default(field: FieldInfo) -> str:
    """Return the default of a key as params.yaml would hold it."""
    value = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Plug):
        return f"`{value.name}`"
    if isinstance(value, BaseModel):
        return "its own"
    return f"`{json.dumps(value, default=_shown)}`"


def _shown(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def sentence(meaning: str) -> str:
    """Return a meaning as a sentence."""
    text = meaning[:1].upper() + meaning[1:]
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def _heading(model: type[BaseModel], beside: list[type[BaseModel]]) -> str:
    return f"**{model.__name__}**\n\n" if len(beside) > 1 else ""
