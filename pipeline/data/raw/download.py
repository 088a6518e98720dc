"""Files from the network, accepted only with the right checksum, and the archives among them.

Two libraries download too, but not as it is needed here. pooch reads through `requests`, which unpacks a .gz that a
server labels `Content-Encoding: gzip`; then the checksum is that of another file. torchvision writes to the final name,
waits without a limit, falls back from https to http, and its CIFAR classes unpickle whatever a batch asks for.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.request
from pathlib import Path

from pipeline import progress
from pipeline.artifacts.publish import publish, remove, scratch
from pipeline.artifacts.system import DISK_ERRORS
from pipeline.data.raw import regular
from pipeline.errors import DataError

_TIMEOUT = 30.0  # seconds without an answer
_BLOCK = 2**20
_LARGEST = 2**32  # bytes that an archive may unpack to


def md5(path: Path) -> str:
    """Return the md5 of a file, as the publishers of data sets list it.

    Raises:
        DataError: it is no regular file.
    """
    regular.check(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def fetch(url: str, path: Path, expected: str, *, download: bool, note: str = "") -> Path:
    """Return `path`, downloaded from `url` when it is not there.

    Args:
        url: where the file is published.
        path: where it belongs.
        expected: its md5.
        download: whether the network may be used.
        note: a sentence that the error ends with where the file is not there.

    Raises:
        DataError: it is not there and cannot be had, or has another checksum.
    """
    if os.path.lexists(path):
        check(path, expected, f"Delete it and put {url} there")
        return path
    if not download:
        raise DataError(
            f"{path} does not exist, and download is false. Put {url} there, or set download: true under "
            f"the settings of the source in params.yaml, then: dvc repro.{note}"
        )

    part = scratch(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _retrieve(url, part)
    except (OSError, http.client.HTTPException) as error:
        # First of all: half a file must not keep a full disk full.
        remove(part)
        _reraise_of_disk(error, path)
        reason = " ".join(str(error).split()).strip("<>") or type(error).__name__
        raise DataError(
            f"Cannot download {url} ({reason}). Put the file at {path} by hand, then: dvc repro.{note}"
        ) from None

    actual = md5(part)
    if actual != expected:
        remove(part)
        raise DataError(
            f"{url} gave a file with md5 {actual}, expected {expected}. Try again, or put the file "
            f"at {path} by hand, then: dvc repro"
        )
    publish(part, path)
    return path


def check(path: Path, expected: str, remedy: str) -> None:
    """Raise DataError when the md5 of `path` is not the expected one; `remedy` is what to do then."""
    actual = md5(path)
    if actual != expected:
        raise DataError(f"{path} has md5 {actual}, expected {expected}. {remedy}, then: dvc repro")


def extract(archive: Path, folder: str) -> None:
    """Extract `folder` of a .tar.gz file beside it, whole or not at all.

    Raises:
        DataError: the archive does not hold it.
    """
    out = archive.parent / folder
    part = scratch(out)
    remove(part)
    try:
        _unpack(archive, part)
        if not (part / folder).is_dir() or (part / folder).is_symlink():
            raise DataError(f"{archive} holds no folder '{folder}'. Put the published archive there.")
        publish(part / folder, out)
    finally:
        remove(part)


def _unpack(archive: Path, out: Path) -> None:
    left = _LARGEST

    def spend(size: int) -> None:
        nonlocal left
        left -= size
        if left < 0:
            raise tarfile.TarError(f"it unpacks to more than {_LARGEST:,} bytes")

    def bounded(member: tarfile.TarInfo, place: str) -> tarfile.TarInfo | None:
        spend(member.size)
        return tarfile.data_filter(member, place)  # refuses devices, and names and links that lead out of it

    regular.check(archive)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(out, filter=bounded)
            # To the end of the .gz, which has its checksum; tar stops before.
            while tar.fileobj and (block := tar.fileobj.read(_BLOCK)):
                spend(len(block))
    # Of a damaged header tarfile lets through whatever its parsing of numbers and names raises.
    except Exception as error:
        if not isinstance(error, NotADirectoryError | FileExistsError):  # two members of one name
            _reraise_of_disk(error, out)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{archive} cannot be extracted ({reason}). Delete it, then: dvc repro") from None


def _reraise_of_disk(error: Exception, path: Path) -> None:
    """Raise an error that is the disk's again: neither the publisher nor the archive is to blame for it."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        error.filename = error.filename or str(path)
        raise error


def _retrieve(url: str, path: Path) -> None:
    # Some mirrors refuse Python's own name.
    request = urllib.request.Request(url, headers={"User-Agent": "stillhouse"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, path.open("wb") as file:
        # 0 where the mirror does not say how long the file is.
        length = int(response.headers.get("Content-Length") or 0)
        if length > shutil.disk_usage(path.parent).free:
            raise OSError(f"{length / 1e6:,.0f} MB do not fit the disk of {path.parent}")
        with progress.bar(f"download {path.name}", max(1, length // _BLOCK)) as advance:
            while block := response.read(_BLOCK):
                file.write(block)
                advance()
