"""Where raw files lie: `path` of a source, made a place on this machine.

A relative path starts from the folder that the commands run in, or from the one that STILLHOUSE_RAW names. `dvc exp run
--temp` and `--queue` run in a copy of the project that has no raw files, so they need it. What is stored and hashed is
the path as params.yaml gives it: where it leads is this machine's own business.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import DataError, MachineError

VARIABLE = "STILLHOUSE_RAW"


def located(path: str | Path) -> Path:
    """Return where `path` of a source leads; `~` at its start is the home folder.

    Raises:
        DataError: it cannot be a path, or nobody knows that home folder.
        MachineError: STILLHOUSE_RAW is no absolute path.
    """
    if "\0" in str(path):
        raise DataError(
            f"The path '{path}' of a source holds a NUL, which no path can. Mend it in params.yaml."
        )
    try:
        place = Path(path).expanduser()
    except RuntimeError:
        raise DataError(
            f"The home folder of '{path}' is not known here. Write the whole path of the source in params.yaml."
        ) from None
    return place if place.is_absolute() else _root() / place


def hint(path: str | Path) -> str:
    """Return a sentence to end the error of a missing `path` with; none where it is absolute."""
    if Path(path).is_absolute() or str(path).startswith("~"):
        return ""
    start = os.environ.get(VARIABLE) or Path.cwd()
    return f" Relative paths of sources start from {start}; {VARIABLE} names another folder for that."


def _root() -> Path:
    given = os.environ.get(VARIABLE, "")
    root = Path(given)
    if given.startswith("~"):
        root = Path(os.path.expanduser(given))  # noqa: PTH111 - an unknown home stays as it is, and is refused
    if given and not root.is_absolute():
        # Where a command runs in a copy of the project, a relative one would lead back into the copy.
        raise MachineError(
            f"{VARIABLE} is '{given}', expected an absolute folder. Set it, then run this again."
        )
    return root
