"""Files that cannot be decoded, left out of a data set that asks for it: `damaged: skip`."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline import progress
from pipeline.data.dataset import Source
from pipeline.data.raw import image_files
from pipeline.data.raw.image_files import FileSplit
from pipeline.errors import DataError

_BLOCK = 4096  # files between two reports of progress


def screened(source: Source, name: str) -> tuple[Source, list[str]]:
    """Return a source without its damaged files, and the names of these; any other source as it is.

    Args:
        source: the opened data set.
        name: the plug-in that opened it.

    Raises:
        DataError: no file of a class is left in a split.
    """
    if source.listed is None or not source.listed.skip_damaged:
        return source, []
    raw = {"train": source.train, "test": source.test}
    if source.holdout is not None:
        raw["holdout"] = source.holdout

    skipped: list[str] = []
    splits: dict[str, FileSplit] = {}
    with progress.bar(f"check {name}", sum(len(split.labels) for split in raw.values())) as advance:
        for part, split in raw.items():
            assert isinstance(split, FileSplit)
            whole = _whole(split, advance)
            _check_classes(source, split, split.labels[whole])
            paths = [split.paths[row] for row in np.flatnonzero(whole).tolist()]
            splits[part] = replace(split, paths=paths, labels=split.labels[whole])
            damaged = [split.paths[row] for row in np.flatnonzero(~whole).tolist()]
            skipped += [os.path.relpath(path, source.listed.root) for path in damaged]
    kept = replace(source, train=splits["train"], test=splits["test"], holdout=splits.get("holdout"))
    return kept, skipped


def _whole(split: FileSplit, advance: progress.Advance) -> NDArray[np.bool_]:
    """Return which files of a split can be used, bool (N,)."""
    whole = np.ones(len(split.paths), dtype=np.bool_)

    def check(rows: NDArray[np.int64]) -> None:
        for row in rows.tolist():
            path = split.paths[row]
            try:
                split.pixels(path, image_files.read(path))
            except DataError:
                whole[row] = False

    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(split.paths), _BLOCK):
            count = min(_BLOCK, len(split.paths) - start)
            parts = image_files.runs(count, image_files.file_bytes(split.paths[start]), threads)
            for _ in pool.map(check, [start + part for part in parts]):
                pass
            advance(count)
    return whole


def _check_classes(source: Source, split: FileSplit, kept: NDArray[np.int64]) -> None:
    before, after = (np.bincount(labels, minlength=len(source.classes)) for labels in (split.labels, kept))
    emptied = np.flatnonzero((before > 0) & (after == 0)).tolist()
    if emptied:
        first = int(np.flatnonzero(split.labels == emptied[0])[0])
        raise DataError(
            f"All {before[emptied[0]]} images of the class '{source.classes[emptied[0]]}' are damaged, the first of "
            f"them {split.paths[first]}. Replace them, or remove the class, then: dvc repro"
        )
