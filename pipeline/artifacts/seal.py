"""Measurements with a seal: what they are of, and one hash of themselves and of the files that they belong to.

A json has no checksum of its own. A digit that has flipped, or numbers that were copied from another run, would be
shown as if they were true.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import advice
from pipeline.artifacts.hashing import content_hash, file_hash
from pipeline.errors import DamagedArtifactError, MissingArtifactError, StaleArtifactError

# Keys beside the measurements: no name in params.yaml starts like these. They hold lists, which `dvc metrics show` and
# `dvc exp show` leave out.
OF = "_of"
SEAL = "_seal"


def sealed(content: Mapping[str, Any], of: Any, *files: Path) -> dict[str, Any]:
    """Return measurements with what they are of, and their seal.

    Args:
        content: what was measured, anything that json can hold.
        of: what decides on it, which a reader knows too: settings, hashes.
        files: those that it belongs to, in a fixed order.
    """
    measured = {**content, OF: [content_hash(of)]}
    return measured | {SEAL: [_seal(measured, files)]}


def opened(path: Path, content: Mapping[str, Any], of: Any, stage: str, *files: Path) -> dict[str, Any]:
    """Return sealed measurements as they were before.

    Args:
        path: of the json, for the error.
        content: what it holds.
        of: what they must be of, as `sealed` was given it.
        stage: DVC's name of the stage that makes it.
        files: those that it belongs to, in the order of `sealed`.

    Raises:
        MissingArtifactError: one of the files is not there.
        StaleArtifactError: they are of something else.
        DamagedArtifactError: a number or a file is not the one that was written.
    """
    if content.get(OF) != [content_hash(of)]:
        raise StaleArtifactError(
            f"{path} was measured with other settings, weights or code than the project has now. "
            f"{advice.again(f'dvc repro {stage}')}"
        )

    for file in files:
        if not file.exists():
            raise MissingArtifactError(f"{file} does not exist. Make it with: dvc repro {stage}")

    measured = {key: value for key, value in content.items() if key != SEAL}
    if content.get(SEAL) != [_seal(measured, files)]:
        beside = f", or it does not belong to {files[0]}" if files else ""
        raise DamagedArtifactError(
            f"{path} is not what was written: its numbers do not have the hash that it names{beside}. "
            f"{advice.again(f'dvc repro {stage}')}"
        )
    return {key: value for key, value in measured.items() if key != OF}


def _seal(content: Mapping[str, Any], files: tuple[Path, ...]) -> str:
    return content_hash([content, [file_hash(path) for path in files]])
