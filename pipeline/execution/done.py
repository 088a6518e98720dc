"""A mark that a stage has run, left by the process that ran it.

Between a stage's end and its record in dvc.lock the run may be killed. The next run finds the mark, sees that the outs
are the files that the stage left and that it would be made from the same, and records it instead of running it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts.publish import read_json, write_json
from pipeline.errors import StillhouseError


@dataclass(frozen=True)
class Mark:
    """A mark.

    Attributes:
        file: holds it.
        key: of the stage's commands and of all that it reads.
        outs: files and folders that it makes.
    """

    file: Path
    key: str
    outs: tuple[Path, ...]

    def leave(self) -> None:
        """Leave the mark: the stage has run, and made all of its outs."""
        content = self._content()
        if None not in content["outs"]:
            write_json(self.file, content)

    def holds(self) -> bool:
        """Tell whether the mark was left by this stage, made from the same, and its outs are as it left them."""
        try:
            return bool(read_json(self.file, "") == self._content())
        except StillhouseError:
            return False

    def _content(self) -> dict[str, Any]:
        return {"key": self.key, "outs": [_listing(out) for out in self.outs]}


def _listing(out: Path) -> list[list[object]] | None:
    """Return name, size and time of every file of an out; None where it is missing."""
    if out.is_file():
        files = [out]
    elif out.is_dir():
        files = sorted(path for path in out.rglob("*") if path.is_file())
    else:
        return None
    return [
        [path.relative_to(out).as_posix(), stat.st_size, stat.st_mtime_ns]
        for path, stat in ((path, path.stat()) for path in files)
    ]
