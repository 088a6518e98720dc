"""Hashes of files and of settings: how artifacts say what they were made from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.errors import MissingArtifactError


def file_hash(path: Path) -> str:
    """Return the blake2b hash of a file, 32 hexadecimal digits, read in blocks.

    Raises:
        MissingArtifactError: there is no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except FileNotFoundError:
        raise MissingArtifactError(f"{path} does not exist. Make it with: dvc repro") from None


def content_hash(content: Any) -> str:
    """Return the blake2b hash of anything that json can hold, 32 hexadecimal digits."""
    # Sorted keys and no blanks: equal content has one text, however it was put together.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def identity(*parts: Any) -> str:
    """Return one hash of everything that a result depends on.

    A run that resumes compares it with what the interrupted one has left: what another identity left is dropped. So
    every setting, every hash of an input and the hash of the code belong to it; where a result is written does not.

    Args:
        parts: in a fixed order: settings as pydantic models, and whatever else json can hold.
    """
    return content_hash(
        [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    )
