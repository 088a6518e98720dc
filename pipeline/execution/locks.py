"""DVC's two kinds of locks: one of the repository, held for moments, and those of the files of a stage that runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from pipeline.errors import MachineError

PATIENCE = 10.0  # seconds to wait for the repository's lock before something is begun


@contextmanager
def locked(repo: Any, patience: float | None = PATIENCE) -> Iterator[None]:
    """Hold the lock of a repository within the block.

    Args:
        repo: a `dvc.repo.Repo`.
        patience: seconds to wait for it; None waits until it is free.

    Raises:
        MachineError: another command has it, or is busy with a file of a stage.
    """
    from dvc.lock import LockError

    _take(repo, patience)
    try:
        yield
    except LockError as error:
        raise MachineError(f"{text(error)}. Wait for it to end, then run the same command again.") from None
    finally:
        repo.lock.unlock()


def holding(repo: Any, stage: Any) -> AbstractContextManager[None]:
    """Let other DVC commands know, within the block, what a running stage reads and writes."""
    from dvc.rwlock import rwlock

    reads, writes = (
        [one.fs_path for one in group if one.protocol == "local"] for group in (stage.deps, stage.outs)
    )
    # A name of its own: what two stages read is free when both have ended.
    command = f"{' '.join(sys.argv)} ({stage.addressing})"
    hardlink = repo.config["core"].get("hardlink_lock", False)
    held: AbstractContextManager[None] = rwlock(repo.tmp_dir, repo.fs, command, reads, writes, hardlink)
    return held


def text(error: BaseException) -> str:
    """Return the text of one of DVC's errors in a line, without a full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _take(repo: Any, patience: float | None) -> None:
    from dvc.lock import LockError

    start, told = time.monotonic(), False
    while True:
        try:
            repo.lock.lock()  # waits three seconds
        except LockError:
            waited = time.monotonic() - start
        else:
            return
        if patience is not None and waited > patience:
            raise MachineError(
                f"Another DVC command holds the lock of {repo.root_dir}. Wait for it to end, then run the same command "
                "again."
            )
        if patience is None and waited > PATIENCE and not told:
            print("Waiting for another DVC command to give back its lock.", file=sys.stderr)
            told = True
