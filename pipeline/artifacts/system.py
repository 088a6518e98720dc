"""Errors of the operating system: what they look like when a library tells them, and what a user can do about each.

A file that cannot be read because a permission is missing, or because a disk does not answer, is not damaged: to make
it again would not help.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

# What bytes that nobody wrote make Python do: seek to before the start. A folder in a file's place is no system's error
# either, and what is missing has an error of its own.
_OURS = frozenset((errno.ENOENT, errno.EINVAL, errno.EISDIR))
# Libraries in C++ and Rust put the system's error into a text of their own.
_NUMBER = re.compile(r"os[ _]error(?:_code)?[ =':]*(\d+)")
_FILE = re.compile(r'file "([^"]+)"')

_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_PERMISSION = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
_OPEN_FILES = frozenset((errno.EMFILE, errno.ENFILE))
_NAME = frozenset((errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EEXIST))
# What a disk answers, and no server.
DISK_ERRORS = _SPACE | _PERMISSION | _OPEN_FILES | _NAME | {errno.EIO, errno.ESTALE}


def system_error(error: BaseException, path: Path | None = None) -> OSError | None:
    """Return the system's error that an exception is or tells of, or None where it is of another kind.

    Args:
        error: what a library has raised.
        path: the file that was read or written, where the exception does not name it.
    """
    text, number, name = " ".join(str(error).split()), None, None
    if isinstance(error, OSError) and error.errno is not None:
        number, name = error.errno, error.filename
    elif told := _NUMBER.search(text):
        number = int(told[1])
        named = _FILE.search(text)
        name = named[1] if named else None

    if number is None or number in _OURS or number not in errno.errorcode:
        return None
    return OSError(number, os.strerror(number), name if name is not None or path is None else str(path))


def line(error: OSError) -> str:
    """Return what a stage says of a system's error, in one line."""
    number = error.errno
    if number in _SPACE:
        cure = "Free space (dvc gc --workspace prunes DVC's cache)"
    elif number in _PERMISSION:
        cure = "Mend the permissions of the file and of the folders above it"
    elif number in _OPEN_FILES:
        cure = "Raise the limit of open files (ulimit -n)"
    elif number in _NAME:
        cure = (
            "Look at that path: a part of it is too long, a loop of links, or a file where a folder should be"
        )
    else:
        cure = "Look at the disk or at the connection to it"
    return (
        f"{error.filename or 'A file'} cannot be read or written: {error.strerror}. {cure}, then run the same command "
        "again."
    )
