"""The cure for what a kill leaves of DVC's file of locks.

DVC rewrites `.dvc/tmp/rwlock` in place, twice a stage. Killed meanwhile it leaves the file empty or cut short, and
every later command ends in "Unable to read RWLock-file". Nothing in it is worth keeping: who is in it was killed too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def mend(repo: Any) -> Path | None:
    """Remove a project's file of locks if a kill has left it unreadable.

    Args:
        repo: a `dvc.repo.Repo`.

    Returns:
        The file that is removed; None where there was nothing to mend.
    """
    from dvc.lock import make_lock

    if repo.tmp_dir is None or not (path := Path(repo.tmp_dir) / "rwlock").exists():
        return None

    # DVC writes the file only while it holds this lock: with it in hand, what is cut short stays so.
    hardlink = repo.config["core"].get("hardlink_lock", False)
    with make_lock(f"{path}.lock", tmp_dir=repo.tmp_dir, hardlink_lock=hardlink):
        try:
            json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            path.unlink()
            return path
    return None
