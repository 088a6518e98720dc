"""Measurements with a seal: one hash of themselves and of the files that they were measured with.

A json has no checksum of its own. A digit that has flipped, or numbers that were copied from another run, would be
shown as if they were true.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts.hashing import content_hash, file_hash
from pipeline.errors import DamagedArtifactError

SEAL = "seal"  # its key among the measurements


def sealed(content: Mapping[str, Any], *files: Path) -> dict[str, Any]:
    """Return `content` with its seal.

    Args:
        content: what was measured, anything that json can hold.
        files: those that it belongs to, in a fixed order.
    """
    return {**content, SEAL: _seal(content, files)}


def opened(path: Path, content: Mapping[str, Any], hint: str, *files: Path) -> dict[str, Any]:
    """Return sealed measurements without their seal.

    Args:
        path: of the json, for the error.
        content: what it holds.
        hint: the command that makes it.
        files: those that it belongs to, in the order of `sealed`.

    Raises:
        MissingArtifactError: one of the files is not there.
        DamagedArtifactError: a number or a file is not the one that was written.
    """
    measured = {key: value for key, value in content.items() if key != SEAL}
    if content.get(SEAL) != _seal(measured, files):
        beside = f", or they do not belong to {' and '.join(map(str, files))}" if files else ""
        raise DamagedArtifactError(
            f"The numbers in {path} are not those that were written{beside}: their seal says so. "
            f"Make them again with: {hint}"
        )
    return measured


def _seal(content: Mapping[str, Any], files: tuple[Path, ...]) -> str:
    return content_hash([content, [file_hash(path) for path in files]])
