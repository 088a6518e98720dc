"""The listing of folders of images: which files count, what is left out, and where links may lead.

Every entry is looked at once, by its name and what the system says of it; no file is opened.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.data.raw import names, place, regular
from pipeline.errors import DataError

# A fixed list: what counts must not depend on the Pillow that is installed.
SUFFIXES = (
    ".bmp",
    ".gif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)

Links = Literal["inside", "anywhere"]
_MOST_KINDS = 8  # kinds of left-out files that are told one by one


@dataclass(frozen=True)
class Listed:
    """The raw files of a data set as they were listed.

    Attributes:
        root: the folder that holds them.
        count: number of files.
        digest: hash of their names below the root and of their sizes.
        left_out: how many entries of each kind do not count.
        skip_damaged: files that cannot be decoded are left out, not refused.
    """

    root: Path
    count: int
    digest: str
    left_out: Mapping[tuple[str, str], int] = field(default_factory=dict)
    skip_damaged: bool = False


@dataclass
class Listing:
    """A walk through a data set's folder.

    Attributes:
        path: the folder, as the settings of the source give it.
        links: "inside": a link that leads out of the folder is refused.
        root: where the folder is; it may be a link itself.
        left_out: how many entries of each kind do not count: a noun, and what is said of it.
    """

    path: Path
    links: Links
    root: Path = field(init=False)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.root = place.located(self.path)
        self._real = os.path.realpath(self.root)
        self._hash = hashlib.blake2b(digest_size=16)
        self._count = 0

    def folder(self, folder: Path, expected: str) -> Path:
        """Return a folder that must be there.

        Args:
            folder: below the root.
            expected: what should be in it, for the error.

        Raises:
            DataError: it is not there, or something else.
        """
        if os.path.lexists(folder):
            self._check_link(folder)
        if folder.is_dir():
            return folder
        found = "does not exist" if not folder.exists() else "is no folder"
        raise DataError(f"{folder} {found}, expected {expected}.{place.hint(self.path)}")

    def beside(self, folder: Path, known: Collection[str]) -> None:
        """Count what lies in `folder` beside what is known to belong there."""
        for entry in _entries(folder):
            if entry.name not in known:
                noun = "folder" if _is_folder(entry) else "file"
                self.left_out[noun, f"beside {' and '.join(known)}"] += 1

    def classes(self, folder: Path) -> list[str]:
        """Return the names of the folders in `folder`, without hidden ones.

        Raises:
            DataError: a name cannot be a class, two of them look alike, or a link leads where it may not.
        """
        found = []
        for entry in _entries(folder):
            if entry.name.startswith("."):
                self._hide(entry)
                continue
            if entry.is_symlink():
                self._check_link(entry.path)
            if _is_folder(entry):
                names.check_class(entry.name, entry.path)
                found.append(entry.name)
            else:
                self.left_out["file", "beside the folders of classes"] += 1
        names.by_likeness(found, folder)
        return found

    def images(self, folder: Path) -> list[str]:
        """Return the image files right in `folder`, by name; without hidden files and other suffixes.

        Raises:
            DataError: a name with the suffix of an image is no file, or a link leads where it may not.
        """
        found = []
        for entry in _entries(folder):
            name, is_link = entry.name, entry.is_symlink()
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a million files are not worth a million Paths
            if name.startswith("."):
                self._hide(entry)
            elif suffix in SUFFIXES:
                names.check_text(name, entry.path)
                if is_link:
                    self._check_link(entry.path)
                self._count_in(entry.path, entry.stat() if entry.is_file() else regular.check(entry.path))
                found.append(entry.path)
            elif _is_folder(entry):
                self.left_out["folder", "in folders of images"] += 1
            else:
                self.left_out["file", suffix or "without a suffix"] += 1
        return found

    def add(self, path: Path) -> None:
        """Add a file below the root that a list names.

        Raises:
            FileNotFoundError: there is nothing of that name.
            DataError: it is no file, or a link leads where it may not.
        """
        info = regular.check(path)
        # Any folder on the way may be a link.
        if self.links == "inside" and not Path(os.path.realpath(path)).is_relative_to(self._real):
            raise self._outside(path)
        self._count_in(str(path), info)

    def note(self, path: Path, content: bytes) -> None:
        """Add a list of files by its content: another label has the same size."""
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        self._hash.update(f"{self.below(str(path))}\0{digest}\0".encode())
        self._count += 1

    def below(self, path: str) -> str:
        """Return what a path below the root is called from there on."""
        return path.removeprefix(str(self.root)).lstrip(os.sep)

    def done(self, *, skip_damaged: bool) -> Listed:
        """Return what was listed so far."""
        return Listed(self.root, self._count, self._hash.hexdigest(), dict(self.left_out), skip_damaged)

    def _hide(self, entry: os.DirEntry[str]) -> None:
        self.left_out["hidden folder" if _is_folder(entry) else "hidden file", ""] += 1

    def _count_in(self, path: str, info: os.stat_result) -> None:
        # Listing follows the order of names, so the hash needs no sorting.
        self._hash.update(f"{self.below(path)}\0{info.st_size}\0".encode())
        self._count += 1

    def _check_link(self, path: str | Path) -> None:
        """Refuse a link that leads nowhere, or out of the root where that is not asked for."""
        path = Path(path)
        if not path.is_symlink():
            return
        if not path.is_dir():
            regular.check(path)
        if self.links == "inside" and not path.resolve().is_relative_to(self._real):
            raise self._outside(path)

    def _outside(self, path: Path) -> DataError:
        return DataError(
            f"{path} is a link to {path.resolve()}, outside {self.root}. Put the files there, or set links: anywhere "
            "under the settings of the source in params.yaml, then: dvc repro"
        )


def described(left_out: Mapping[tuple[str, str], int]) -> str:
    """Return in words what was left out, the most first; "" where nothing was."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    parts = [
        f"{number:,} {noun}{'s' if number > 1 else ''} {rest[:40]}".rstrip()
        for (noun, rest), number in ordered[:_MOST_KINDS]
    ]
    others = sum(number for _, number in ordered[_MOST_KINDS:])
    return ", ".join([*parts, f"{others:,} of other kinds"] if others else parts)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # An entry knows its own kind; of a link, which may lead nowhere or in a circle, the system is asked.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()
