"""Artifacts on disk: built in a scratch path beside the output, published whole by a rename."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedArtifactError, MissingArtifactError


def scratch(out: Path) -> Path:
    """Return the scratch path of `out`: hidden, on the same disk, left in place when a run is cut off."""
    return out.parent / f".{out.name}.scratch"


def remove(path: Path) -> None:
    """Remove a file, link or folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def publish(built: Path, out: Path) -> None:
    """Put `built` in the place of `out`, which is unlinked first: it may be a link into DVC's cache."""
    remove(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    built.replace(out)


@contextmanager
def building(out: Path, *, resume: bool = False) -> Iterator[Path]:
    """Give a scratch folder and publish it as `out` at the end of the block.

    Args:
        out: the folder to make. A stale one is unlinked at the start, so that it exists only when whole.
        resume: keep what a run that was cut off has left in the scratch folder.
    """
    folder = scratch(out)
    remove(out)
    if not resume:
        remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    publish(folder, out)


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` in one step: sorted keys, two spaces, a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = scratch(path)
    part.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")
    publish(part, path)


def read_json(path: Path, hint: str) -> Any:
    """Read the json file `path`.

    Args:
        path: the file.
        hint: what to do when it is not there, for instance "dvc repro".

    Raises:
        MissingArtifactError: there is no such file.
        DamagedArtifactError: it is not json.
    """
    if path.is_dir():
        raise DamagedArtifactError(f"{path} is a folder, expected a json file. Make it with: {hint}")
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise MissingArtifactError(f"{path} does not exist. Make it with: {hint}") from None
    except ValueError as error:
        raise DamagedArtifactError(
            f"{path} is not valid json ({error}). Make it again with: {hint}"
        ) from None


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
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
