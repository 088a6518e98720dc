"""Jsons of names and values, read and checked for what the report needs of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import advice
from pipeline.artifacts.publish import read_json
from pipeline.errors import DamagedArtifactError, StaleArtifactError


def mapping(path: Path, hint: str, needed: Iterable[str]) -> dict[str, Any]:
    """Read a json that is a mapping of names.

    Args:
        path: of the json.
        hint: the command that makes it.
        needed: names that it must have.

    Raises:
        MissingArtifactError: it is not there.
        DamagedArtifactError: it cannot be read, or lacks a name.
    """
    return _checked(f"{path}", hint, read_json(path, hint), needed)


def inner(
    path: Path, hint: str, content: Mapping[str, Any], key: str, needed: Iterable[str]
) -> dict[str, Any]:
    """Return the mapping of names that a json has under a key.

    Args:
        path: of the json.
        hint: the command that makes it.
        content: what it holds.
        key: of `content`, which has it.
        needed: names that the inner mapping must have.

    Raises:
        DamagedArtifactError: it is something else, or lacks a name.
    """
    return _checked(f"{path}: {key}", hint, content[key], needed)


def _checked(place: str, hint: str, content: Any, needed: Iterable[str]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DamagedArtifactError(f"{place} is not a mapping of names. {advice.again(hint)}")

    lacking = [name for name in needed if name not in content]
    if lacking:
        raise DamagedArtifactError(f"{place} lacks {', '.join(lacking)}. {advice.again(hint)}")
    return dict(content)


def require(path: Path, hint: str, content: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a file whose content says that it was made from other settings than params.yaml has.

    Raises:
        StaleArtifactError: a value differs.
    """
    for name, value in expected.items():
        if content.get(name) != value:
            raise StaleArtifactError(
                f"{path} was made for {name} '{content.get(name)}', params.yaml says '{value}'. "
                f"{advice.again(hint)}"
            )
