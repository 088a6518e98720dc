"""Artifacts on disk: built in a scratch path beside the output, published whole by a rename.

One run at a time makes an output: it holds a lock beside it, which the kernel releases when the run dies.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import advice
from pipeline.errors import DamagedArtifactError, MachineError, MissingArtifactError

if TYPE_CHECKING:
    from filelock import BaseFileLock


def scratch(out: Path) -> Path:
    """Return the scratch path of `out`: hidden, on the same disk, and still there after a run was interrupted."""
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
def building(out: Path, *, resume: bool = False, keep: bool = False) -> Iterator[Path]:
    """Give a scratch folder and publish it as `out` at the end of the block.

    Args:
        out: the folder to make. A stale one is unlinked at the start, so that it exists only when whole.
        resume: keep what an interrupted run has left in the scratch folder, except half-written files.
        keep: leave a stale one until the new one is whole.

    Raises:
        MachineError: another run is making it.
    """
    folder = scratch(out)
    with _locked(out), _naming(out):
        if not keep:
            remove(out)
        if not resume:
            remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Their writer was killed within `writing`, and nobody resumes them.
        for part in list(folder.rglob(scratch(Path("*")).name)):
            remove(part)

        yield folder
        publish(folder, out)


@contextmanager
def replacing(*outs: Path) -> Iterator[None]:
    """Keep files to this run while it makes them; stale ones are unlinked at the start.

    Args:
        outs: the files. They are made within the block, by `writing` or `write_json`.

    Raises:
        MachineError: another run is making one of them.
    """
    with ExitStack() as stack:
        for out in outs:
            stack.enter_context(_locked(out))

        # All locks first: where one of them is another run's, nothing is lost.
        for out in outs:
            remove(out)
        yield


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a scratch path for a file and publish it as `path` at the end of the block, if that ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = scratch(path)
    with _naming(path):
        try:
            yield part
            publish(part, path)
        except BaseException:
            remove(part)  # a full disk has no room for half-written files
            raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` in one step: sorted keys, two spaces, a final newline."""
    with writing(path) as part:
        # NaN would be no valid json: better an error here than in a reader.
        part.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


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
        raise DamagedArtifactError(f"{path} is a folder, expected a json file. {advice.again(hint)}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingArtifactError(f"{path} does not exist. Make it with: {hint}") from None
    except (ValueError, RecursionError) as error:  # the latter of lists in lists, a thousand deep
        raise DamagedArtifactError(f"{path} is not valid json ({error}). {advice.again(hint)}") from None


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock of `out`: a file that says which process holds it, gone when the block ends.

    Raises:
        MachineError: another process holds it.
    """
    from filelock import FileLock

    path = scratch(out.with_name(f"{out.name}.lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Soft locks outlive a killed process, so a disk without real ones is an error.
    lock = FileLock(path, blocking=False, fallback_to_soft=False, on_acquired=_sign)
    _acquire(lock, path, out)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while the lock is held, so that nobody else's file is removed
        lock.release()


def _acquire(lock: BaseFileLock, path: Path, out: Path) -> None:
    """Take the lock at once, or say which process has it."""
    from filelock import Timeout

    while not lock.is_locked:
        try:
            lock.acquire()
        except Timeout:
            if not path.exists():
                continue  # its holder ended between our opening of the file and our lock on it

            holder = path.read_text() or "another one"
            raise MachineError(
                f"{out} is being made by process {holder}. Wait for it, or stop it, then run this again."
            ) from None


def _sign(descriptor: int) -> None:
    """Write this process's number into the lock file that it has just locked; a killed one may have left its own."""
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give errors of the disk that name no file, as those of writes do, the name of what was made."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
