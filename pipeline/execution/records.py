"""dvc.lock: written for several stages at once, and mended after a kill.

DVC writes the file in place, which a kill may cut short, and takes a second for some eighty stages. So a copy of what
was there lies in the run's folder meanwhile, and writing waits while it would take more than a tenth of the time.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHARE = 0.1  # of the time that writing may take


class Records:
    """Stages that are waiting to be written into dvc.lock.

    Args:
        root: the repository's folder.
        folder: of the copies.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._waiting: list[Any] = []
        self._next = 0.0  # when it may be written again, on the monotonic clock

    def add(self, stage: Any) -> None:
        """Add a stage that has been saved."""
        self._waiting.append(stage)

    def write(self, *, now: bool = False) -> list[Any]:
        """Write what is waiting, and return the stages that have been written.

        Args:
            now: do not wait for a better time.
        """
        if not self._waiting or (time.monotonic() < self._next and not now):
            return []
        start = time.monotonic()
        self._write(self._waiting)  # where it raises, they wait for another time
        stages, self._waiting = self._waiting, []
        end = time.monotonic()
        self._next = end + (end - start) / SHARE
        return stages

    def mend(self) -> None:
        """Put back the copy of a file that a kill has cut short."""
        for copy in self._folder.glob("*dvc.lock"):
            lock = self._root / copy.name.replace("%", os.sep)
            if not _whole(lock):
                copy.replace(lock)
                print(
                    f"{lock} was cut short by a kill; the copy from before it is put back.", file=sys.stderr
                )
            copy.unlink(missing_ok=True)

    def _write(self, stages: Sequence[Any]) -> None:
        files: dict[str, list[Any]] = {}
        for stage in stages:
            if hasattr(stage.dvcfile, "_lockfile"):
                files.setdefault(stage.dvcfile._lockfile.path, []).append(stage)
            else:  # a .dvc file
                stage.dump(update_pipeline=False)

        for lock, mine in files.items():
            copy = self._folder / str(Path(lock).relative_to(self._root)).replace(os.sep, "%")
            if Path(lock).exists():
                shutil.copyfile(lock, f"{copy}.part")
                Path(f"{copy}.part").replace(copy)
            mine[0].dvcfile.dump_stages(mine, update_pipeline=False)
            copy.unlink(missing_ok=True)


def _whole(lock: Path) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from ruamel.yaml import YAML

    try:
        text = lock.read_text()
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text))
    except Exception:  # whatever a half of a file makes a parser or a schema say
        return False
    return text.endswith("\n")  # cut within a path or a hash it is a valid file still
