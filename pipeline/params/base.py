"""Blocks of params.yaml: strict and frozen, with one-line errors. `document.py` reads the file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from pipeline.artifacts import advice
from pipeline.artifacts.publish import read_json
from pipeline.errors import DamagedArtifactError, ParamsError, ShapeError, UnknownNameError, foreign


class Block(BaseModel):
    """A block of params.yaml: frozen, and unknown keys are errors, as are numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StageBlock(Block):
    """What one stage depends on: settings, and the code that they run.

    Attributes:
        stage: DVC's name of the stage: what it makes says so, and errors name it.
        code_hash: hash of the code of the stage and of the plug-ins that the settings name, and of no other.
    """

    stage: str = ""
    code_hash: str = ""


B = TypeVar("B", bound=Block)
T = TypeVar("T")
# A key without a value is an empty mapping: `final:` is `final: {}`. Not for models that hold a tuple: what a
# validator returns is no longer json, and then a strict tuple accepts no list.
OrEmpty = Annotated[T, BeforeValidator(lambda content: {} if content is None else content)]

_SHOWN = 200  # letters of a place or a wrong value
# pydantic speaks of json, and the reader of the message has written yaml.
_IN_YAML = (
    ("Dictionary should have at least 1 item after validation, not 0", "Name one at least"),
    ("Tuple should have at least 1 item after validation, not 0", "Name one at least"),
    ("should be an object", "should be a mapping"),
    ("or an object", "or a mapping"),
    ("should be a valid array", "should be a list"),
)


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Say in an error where in params.yaml its cause stands, unless it says so itself.

    Args:
        where: the place, for instance "runs.kd.methods".
    """
    try:
        yield
    except (ParamsError, ShapeError, UnknownNameError) as error:
        # What was raised nearer to the cause knows the place better.
        if str(error).startswith("params.yaml"):
            raise
        raise type(error)(f"params.yaml: {where}: {error}") from None


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
        return model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise ParamsError(_one_line(error, model, content, where, file)) from None
    except (TypeError, ValueError, RecursionError) as error:  # what json cannot hold, or not so deep
        raise ParamsError(
            f"{file}: '{where}' is nothing that a file holds: {error}. Write it anew."
        ) from None


def load(model: type[B], path: Path, hint: str = "dvc repro params") -> B:
    """Read a block from the json that a stage has made.

    Args:
        model: the block's model.
        path: the json.
        hint: the command that makes it.

    Raises:
        MissingArtifactError: it is not there.
        DamagedArtifactError: it is of another form.
    """
    try:
        return validate(model, read_json(path, hint), "", str(path))
    except ParamsError as error:
        # A stage wrote it, so no edit of params.yaml would mend it.
        raise DamagedArtifactError(f"{error} {advice.again(hint)}") from None


def load_asked(model: type[B], path: Path, hint: str = "dvc repro params") -> B | None:
    """Read a block from a json that is null where nobody asks for what it is about; see `load`."""
    return None if read_json(path, hint) is None else load(model, path, hint)


def _one_line(error: ValidationError, model: type[BaseModel], content: Any, where: str, file: str) -> str:
    # What is unknown explains what is missing, so it is reported first.
    details = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    path = _path(details["loc"], content)
    place = _shortened(".".join(part for part in (where, *path) if part))

    if details["type"] == "extra_forbidden":
        key = str(details["loc"][-1])
        known = sorted(_fields(model, details["loc"][:-1]))
        near = difflib.get_close_matches(key, known, n=1)
        guess = f" Did you mean '{near[0]}'?" if near else ""
        return (
            f"{file}: unknown key '{place}'.{foreign(key)}{guess} Known keys: {', '.join(known) or 'none'}."
        )

    # A key that is missing is none of the keys that `_path` returns.
    if details["type"] == "missing":
        return f"{file}: '{'.'.join((place, str(details['loc'][-1]))).removeprefix('.')}' is missing. Add it."

    # A union has an error for each of its members.
    messages = [item["msg"] for item in error.errors() if _path(item["loc"], content) == path]
    # Members often say the same: each message once.
    first, *others = (message.removeprefix("Value error, ") for message in dict.fromkeys(messages))
    message = " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])

    for of_json, of_yaml in _IN_YAML:
        message = message.replace(of_json, of_yaml)
    value = "null" if details["input"] is None else _shortened(repr(details["input"]))
    return f"{file}: '{place}' is {value}. {message}."


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _path(location: tuple[int | str, ...], content: Any) -> list[str]:
    """Return the keys of `location` that the yaml holds: without the tags that pydantic puts between them."""
    path = []
    for part in location:
        # Positions in a list are keys too: "milestones.2".
        keys = (
            range(len(content)) if isinstance(content, list) else content if isinstance(content, dict) else ()
        )
        if part in keys:
            path.append(str(part))
            content = content[part]
    return path


def _fields(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """Return the keys of the block at `path` below `model`, following what annotations can tell."""
    # Several at a time: below a union, any of its members may be meant.
    models = [model]
    for part in path:
        fields = [one.model_fields[str(part)] for one in models if part in one.model_fields]
        tagged = [
            one for one in models if any(part in get_args(f.annotation) for f in one.model_fields.values())
        ]
        if fields:
            models = [inner for field in fields for inner in _models(field.annotation)]
        elif tagged:  # the tag of a union
            models = tagged

    # A literal of one value is a union's tag: in params.yaml a plug-in's name says it.
    return {
        name
        for one in models
        for name, field in one.model_fields.items()
        if len(get_args(field.annotation)) != 1 or get_origin(field.annotation) is not Literal
    }


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation names: the values of a dict, the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
