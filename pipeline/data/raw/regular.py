"""Raw files are opened only where they are regular ones, and read up to a limit.

A named pipe would wait for a writer, a device may never end, and opening some of them has effects.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from pipeline.artifacts.system import system_error
from pipeline.errors import DataError

LARGEST = 2**30  # bytes of a file that is read whole; the largest image that is decoded is half as large
_BLOCK = 2**16

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
_FLAGS = os.O_RDONLY | os.O_NONBLOCK  # a pipe that took the file's place since is not waited for


def check(path: str | Path, then: str = "dvc repro") -> os.stat_result:
    """Return what the system knows of a regular file, following links.

    Args:
        path: the file.
        then: the command that comes after its repair.

    Raises:
        FileNotFoundError: there is nothing of that name.
        DataError: it is something else than a file, or a link that leads nowhere.
    """
    try:
        info = os.stat(path)  # noqa: PTH116 - a million files are not worth a million Paths
    except OSError as error:
        raise _refused(path, error, then) from None
    _check_kind(path, info, then)
    return info


def read(path: str | Path, then: str = "dvc repro", limit: int = LARGEST) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        then: the command that comes after its repair.
        limit: the most bytes that it may have.

    Raises:
        FileNotFoundError: there is nothing of that name.
        DataError: it is something else than a file, a link that leads nowhere, or larger than the limit.
    """
    check(path, then)  # before it is opened: that may wait, or rewind a tape
    try:
        descriptor = os.open(path, _FLAGS)
        try:
            info = os.fstat(descriptor)
            _check_kind(path, info, then)  # it may be another one by now
            # Its size is a hint: a file may grow, and those of /proc say 0.
            blocks, left, block = [], limit + 1, max(min(info.st_size, limit), _BLOCK) + 1
            while left and (content := os.read(descriptor, min(left, block))):
                blocks.append(content)
                left -= len(content)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _refused(path, error, then) from None

    if not left or info.st_size > limit:
        raise DataError(f"{path} has more than {limit:,} bytes. Replace or remove it, then: {then}")
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def _check_kind(path: str | Path, info: os.stat_result, then: str) -> None:
    if not stat.S_ISREG(info.st_mode):
        kind = _KINDS.get(stat.S_IFMT(info.st_mode), "nothing that can be read")
        raise DataError(f"{path} is {kind}, expected a file. Remove or replace it, then: {then}")


def _refused(path: str | Path, error: OSError, then: str) -> Exception:
    """Return the error for a file that cannot be opened; the system's own is the stages' to report."""
    if error.errno == errno.ELOOP:
        return DataError(f"{path} is a link that leads back to itself. Remove or replace it, then: {then}")
    if isinstance(error, FileNotFoundError) and Path(path).is_symlink():
        return DataError(
            f"{path} is a broken link, to {Path(path).readlink()}. Remove or replace it, then: {then}"
        )
    if isinstance(error, FileNotFoundError):
        return error
    return system_error(error, Path(path)) or DataError(
        f"{path} cannot be read ({error.strerror}). Remove or replace it, then: {then}"
    )
