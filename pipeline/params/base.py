"""Reading params.yaml: strict, frozen blocks, and one-line errors.

The parser is DVC's own (YAML 1.2), so that both read `5e-4` as a number.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.artifact import read_json
from pipeline.errors import ParamsError, unknown_name


class Block(BaseModel):
    """A block of params.yaml: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


B = TypeVar("B", bound=Block)


def read(path: Path) -> dict[str, Any]:
    """Read a yaml file whose top level is a mapping.

    Raises:
        ParamsError: no such file, not yaml, or another top level.
    """
    try:
        content = YAML(typ="safe").load(path.read_text())
    except FileNotFoundError:
        raise ParamsError(
            f"{path} does not exist. Run the command in the project's folder, or give --params."
        ) from None
    except YAMLError as error:
        raise ParamsError(f"{path} is not valid yaml: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path} holds {type(content).__name__}, expected a mapping of blocks.")
    return content


def entry(params: Mapping[str, Any], section: str, name: str) -> Any:
    """Return `params[section][name]`.

    Raises:
        UnknownNameError: the section has no such entry; the message lists what it has.
    """
    entries = params.get(section) or {}
    if name not in entries:
        raise unknown_name(section.removesuffix("s"), name, entries, f"Add it to '{section}' in params.yaml.")
    return entries[name]


def validate(model: type[B], content: Any, where: str, file: str = "params.yaml") -> B:
    """Check `content` against `model`.

    Args:
        model: the block's model.
        content: what the yaml holds.
        where: the block's place, for instance "teachers.resnet20".
        file: what it stands in, for the error.

    Raises:
        ParamsError: the first thing that is wrong, with its place and the nearest valid key.
    """
    try:
        # As json, so that strictness still lets a list be a tuple.
        return model.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise ParamsError(_one_line(error, model, content, where, file)) from None


def load(model: type[B], path: Path) -> B:
    """Read a block from the json that a stage has made.

    Raises:
        MissingArtifactError: it is not there.
        ParamsError: it is of another form.
    """
    return validate(model, read_json(path, "dvc repro params"), "", str(path))


def _one_line(error: ValidationError, model: type[BaseModel], content: Any, where: str, file: str) -> str:
    # What is unknown explains what is missing, so it is told first.
    found = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    place = ".".join(part for part in (where, *_path(found["loc"], content)) if part)
    if found["type"] == "extra_forbidden":
        key = str(found["loc"][-1])
        known = sorted(_fields(model, found["loc"][:-1]))
        near = difflib.get_close_matches(key, known, n=1)
        guess = f" Did you mean '{near[0]}'?" if near else ""
        return f"{file}: unknown key '{place}'.{guess} Known keys: {', '.join(known) or 'none'}."
    if found["type"] == "missing":
        return f"{file}: '{place}' is missing. Add it."
    message = found["msg"].removeprefix("Value error, ")
    return f"{file}: '{place}' is {found['input']!r}. {message}."


def _path(location: tuple[int | str, ...], content: Any) -> list[str]:
    """Return the keys of `location` that the yaml holds: without the tags that pydantic puts between them."""
    path = []
    for part in location:
        inside = isinstance(content, list) or (isinstance(content, dict) and part in content)
        if inside or part == location[-1]:
            path.append(str(part))
            content = content[part] if inside else None
    return path


def _fields(model: Any, path: tuple[int | str, ...]) -> set[str]:
    """Return the keys of the block at `path` below `model`, following what annotations can tell."""
    for part in path:
        if isinstance(part, int):
            continue
        fields = getattr(model, "model_fields", {})
        if part not in fields:  # the key of a dict, or the tag of a union
            continue
        model = fields[part].annotation
    models = [model, *_arguments(model)]
    return {name for one in models for name in getattr(one, "model_fields", {})}


def _arguments(annotation: Any) -> list[Any]:
    found = []
    for argument in getattr(annotation, "__args__", ()):
        found += [argument, *_arguments(argument)]
    return found
