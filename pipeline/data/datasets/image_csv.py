"""Any classification set whose labels stand in a CSV file: a row an image, with the columns `path` and `label`.

Paths start from the folder of the data set, and columns of other names are left alone. A column `split` says `train` or
the name of the test split, one of `val`, `valid`, `validation` and `test`; where there are several of these, or another
one, `test` names it. `holdout_split` may name one to choose the best epoch on, and rows of others are left out. Without
that column `split: 0.2` tests with a fifth of each class.

Classes are the labels of the training images in alphabetical order, and samples are in the order of class and path,
whatever the order of the rows is. What is done to an image is what `image_folder` does.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.data.dataset import ImageFacts, PhotographConfig, Source
from pipeline.data.raw import names, regular, splits
from pipeline.data.raw.listing import Listed, Listing
from pipeline.data.raw.place import hint
from pipeline.data.raw.splits import TEST, TRAIN, Parts
from pipeline.errors import DataError

COLUMNS = ("path", "label")
SPLIT = "split"
_LARGEST = 2**28  # bytes of a CSV file; one of a million rows has a third
_SHOWN = 80  # letters of a cell in an error


class Config(PhotographConfig):
    """Settings of images with a CSV file.

    Attributes:
        labels: the CSV file, in that folder.
    """

    labels: Path


class Row(NamedTuple):
    """A row: where it ends in the file, and what it says; without a column `split` it is of none."""

    line: int
    path: str
    label: str
    split: str


def image(config: Config) -> ImageFacts:
    """Return what the images are like; the labels are the classes."""
    return ImageFacts(config.size, config.channels, classes=None)


def open_source(config: Config) -> Source:
    """Read the CSV file and look for every image that it names; nothing is decoded yet.

    Raises:
        DataError: a file is missing or leads out of the folder; a row does not say what is expected, by its line; or a
            class has too few images.
    """
    listing = Listing(config.path, config.links)
    root = listing.folder(listing.root, "the images of a CSV file. Put the data there")
    table = root / config.labels
    rows = sorted(_rows(config, listing, table), key=lambda row: row.path)
    for row in rows:
        _find(listing, table, row)

    names.by_likeness({row.label: None for row in rows}, table)
    divide = _given if config.split is None else _divided
    parts = divide(config, listing, table, rows)
    return Source(
        parts.classes,
        config.channels,
        config.size,
        parts.train,
        parts.test,
        files=config.files,
        listed=listing.done(skip_damaged=config.damaged == "skip"),
        holdout=parts.holdout,
    )


def listed(config: Config) -> Listed | None:
    """Return the files as they lie there now."""
    return open_source(config).listed


def _rows(config: Config, listing: Listing, table: Path) -> list[Row]:
    """Return the rows of the splits that are read, each with a path of its own."""
    rows = list(_read(config, listing, table))
    if not rows:
        raise DataError(f"{table} has no rows, expected one for each image. Write them, then: dvc repro")

    first: dict[str, int] = {}
    for row in rows:
        if first.setdefault(row.path, row.line) != row.line:
            raise _wrong(
                table,
                row.line,
                f"has the path {_shown(row.path)}, as line {first[row.path]} has",
                "each once",
            )
    if config.split is not None:
        return rows

    test = splits.test_name({row.split for row in rows}, config, f"Column '{SPLIT}' of {table}")
    wanted = [TRAIN, test, *([] if config.holdout_split is None else [config.holdout_split])]
    known = list(dict.fromkeys((*wanted, *TEST)))
    for row in rows:
        if row.split not in known:
            raise _wrong(table, row.line, f"has the split {_shown(row.split)}", f"one of {', '.join(known)}")
        if row.split not in wanted:
            listing.left_out["row", f"of split {row.split}"] += 1
    for split in wanted:
        if all(row.split != split for row in rows):
            raise DataError(f"{table} has no row of split {split}, expected some. Add them, then: dvc repro")
    return [row for row in rows if row.split in wanted]


def _read(config: Config, listing: Listing, table: Path) -> Iterator[Row]:
    """Give the rows of the file, checked one by one."""
    try:
        content = regular.read(table, limit=_LARGEST)
        text = content.decode("utf-8-sig")  # spreadsheets write a mark at its start
    except FileNotFoundError:
        raise DataError(
            f"{table} does not exist, expected a CSV file with the columns path and label. Put it there, then: "
            f"dvc repro.{hint(config.path)}"
        ) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _wrong(table, line, "is no text in UTF-8", "a CSV file in that encoding") from None
    listing.note(table, content)

    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(config, table, header)
        for cells in reader:
            if not cells:  # an empty line
                continue
            if len(cells) != len(header):
                raise _wrong(
                    table, reader.line_num, f"has {len(cells)} cells", f"{len(header)}, as the first"
                )
            yield _row(table, reader.line_num, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise _wrong(table, reader.line_num, f"cannot be read ({error})", "a row") from None


def _check_header(config: Config, table: Path, header: list[str]) -> None:
    """Refuse columns that do not say what must be known."""
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        found = f"has the columns {_shown(', '.join(header))}" if header else "is empty"
        raise _wrong(table, 1, found, f"a column '{missing[0]}' too, and commas between them")
    for name in (*COLUMNS, SPLIT):
        if header.count(name) > 1:
            raise _wrong(table, 1, f"has the column '{name}' twice", "it once")

    given = SPLIT in header
    if given and config.split is not None:
        raise DataError(
            f"{table} has a column '{SPLIT}', and split is {config.split:g} in params.yaml. Drop one of them, then: "
            "dvc repro"
        )
    if not given and config.split is None:
        raise DataError(
            f"{table} has no column '{SPLIT}', which says what is for testing. Add it, or set a share under the "
            "settings of the source in params.yaml, for instance split: 0.2, then: dvc repro"
        )


def _row(table: Path, line: int, cells: dict[str, str]) -> Row:
    path, label = cells["path"], cells["label"]
    for column in COLUMNS:
        if not cells[column].strip():
            raise _wrong(table, line, f"has no {column}", "one")
    names.check_class(label, f"the label in line {line} of {table}")

    # In one form, so that a file that is named twice is found.
    path = os.path.normpath(path)
    if "\0" in path or Path(path).is_absolute() or Path(path).parts[:1] in ((), (os.pardir,)):
        raise _wrong(table, line, f"has the path {_shown(path)}", f"one that starts from {table.parent}")
    return Row(line, path, label, cells.get(SPLIT, ""))


def _find(listing: Listing, table: Path, row: Row) -> None:
    try:
        listing.add(listing.root / row.path)
    except FileNotFoundError:
        raise _wrong(
            table,
            row.line,
            f"has the path {_shown(row.path)}, which does not exist",
            f"a file in {listing.root}",
        ) from None
    except OSError as error:
        reason = f"which cannot be read ({error.strerror})"
        raise _wrong(
            table, row.line, f"has the path {_shown(row.path)}, {reason}", f"a file in {listing.root}"
        ) from None


def _given(config: Config, listing: Listing, table: Path, rows: Sequence[Row]) -> Parts:
    """Return classes and images of rows that say their split."""
    classes = sorted({row.label for row in rows if row.split == TRAIN})
    for row in rows:
        if row.label not in classes:
            raise _wrong(
                table,
                row.line,
                f"has the label {_shown(row.label)}, of which no row is of split {TRAIN}",
                "some",
            )
    by_split = [[row for row in rows if row.split == TRAIN]]
    by_split.append([row for row in rows if row.split not in (TRAIN, config.holdout_split)])
    if config.holdout_split is not None:
        by_split.append([row for row in rows if row.split == config.holdout_split])

    for split in by_split[1:]:
        labels = {row.label for row in split}
        if lacking := [name for name in classes if name not in labels]:
            kind = "holdout" if split[0].split == config.holdout_split else "test"
            raise DataError(
                f"{table} has no row of the {kind} split for the class '{lacking[0]}', expected one or more. Add some, "
                "then: dvc repro"
            )
    return Parts(classes, *(splits.files(config, *_sorted(listing, split, classes)) for split in by_split))


def _divided(config: Config, listing: Listing, table: Path, rows: Sequence[Row]) -> Parts:
    """Return classes, training and test images of rows of which a share is for testing."""
    classes = sorted({row.label for row in rows})
    return Parts(classes, *splits.of_share(config, listing, *_sorted(listing, rows, classes), classes))


def _sorted(listing: Listing, rows: Sequence[Row], classes: Sequence[str]) -> splits.Paths:
    """Return the files of rows, class by class, and their labels int64 (N,)."""
    label = {name: index for index, name in enumerate(classes)}
    ordered = sorted(rows, key=lambda row: label[row.label])  # stable: within a class by path
    paths = [str(listing.root / row.path) for row in ordered]
    return paths, np.array([label[row.label] for row in ordered], dtype=np.int64)


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= _SHOWN else f"{cell[:_SHOWN]}...")


def _wrong(table: Path, line: int, found: str, expected: str) -> DataError:
    return DataError(f"{table}, line {line}: it {found}, expected {expected}. Mend it, then: dvc repro")
