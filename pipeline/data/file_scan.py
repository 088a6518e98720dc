"""The writer of indexed data: every file is read once, and its name, size and hash are kept, not its pixels.

Every file is decoded too: a damaged one would otherwise stop a training, hours later.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import histogram
from pipeline.data.dataset import Source
from pipeline.data.file_index import record_type
from pipeline.data.layout import files_path, fingerprinting, image_hash, index_hash
from pipeline.data.raw import image_files
from pipeline.data.raw.image_files import FileSplit
from pipeline.data.raw.place import located
from pipeline.params.size import sides
from pipeline.progress import Advance

_BLOCK = 64  # files a thread that are read before their records are written


def index(
    folder: Path,
    source: Source,
    held_out: NDArray[np.bool_],
    advance: Advance,
    *,
    measure: bool,
) -> tuple[dict[str, str], dict[str, str], NDArray[np.int64]]:
    """List the files of every split in `folder`.

    Args:
        folder: the prepared data that are being made.
        source: the data set; its splits are files.
        held_out: which training files are held out for model selection, bool (N,).
        advance: reports samples done.
        measure: count the pixel values of the training images.

    Returns:
        Fingerprints by split, which depend on the content of the files and not on where they lie; the hashes of the
        lists by split; and the counts of the training images' pixel values, int64 (C, 256).

    Raises:
        DataError: a file that cannot be read or decoded, by name.
    """
    assert source.files is not None
    assert isinstance(source.train, FileSplit)
    assert isinstance(source.test, FileSplit)
    parts = {"train": (source.train, np.flatnonzero(~held_out))}
    if held_out.any():
        parts["holdout"] = (source.train, np.flatnonzero(held_out))
    elif source.holdout is not None:
        assert isinstance(source.holdout, FileSplit)
        parts["holdout"] = (source.holdout, np.arange(len(source.holdout.labels)))
    parts["test"] = (source.test, np.arange(len(source.test.labels)))

    fingerprints, listing, counts = {}, {}, np.zeros((source.channels, 256), dtype=np.int64)
    threads, root = os.cpu_count() or 1, located(source.files.root)
    for split, (raw, rows) in parts.items():
        names = [os.fsencode(os.path.relpath(raw.paths[row], root)) for row in rows.tolist()]
        # numpy's strings have one width, so all paths get that of the longest.
        kind = record_type(max(map(len, names)))

        labels = raw.labels[rows]
        shape = (len(rows), raw.channels, *sides(raw.size))
        digest = fingerprinting(source.classes, (*shape, *source.files.marks), labels)
        listed = index_hash()

        scan = partial(_scan, raw, measure=measure and split == "train")
        with files_path(folder, split).open("wb") as file, ThreadPoolExecutor(threads) as pool:
            # The header goes first and the records block by block: the list is never whole in memory.
            header = {
                "descr": np.lib.format.dtype_to_descr(kind),
                "fortran_order": False,
                "shape": (len(rows),),
            }
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(rows), _BLOCK * threads):
                block = rows[start : start + _BLOCK * threads].tolist()
                records = np.zeros(len(block), dtype=kind)
                # In the order of the files, whichever thread is first: the fingerprint depends on it.
                for place, (facts, counted) in enumerate(pool.map(scan, (raw.paths[row] for row in block))):
                    records[place] = (names[start + place], *facts)
                    counts += counted

                file.write(records.tobytes())
                listed.update(records.tobytes())
                digest.update(records["hash"].tobytes())
                advance(len(block))
        fingerprints[split], listing[split] = digest.hexdigest(), listed.hexdigest()
    return fingerprints, listing, counts


def _scan(
    raw: FileSplit, path: str, *, measure: bool
) -> tuple[tuple[int, int, int, NDArray[np.uint8]], NDArray[np.int64] | int]:
    """Return a file's record without its name, and the counts of its plain view's pixel values, or 0."""
    content = image_files.read(path)
    image = image_files.decode(path, content, raw.channels, decoding=raw.decoding)
    # Training finds out no later than here that a file is too narrow to be resized.
    image_files.resized_size(path, image, raw.resize or raw.size)
    digest = np.frombuffer(image_hash(content), dtype=np.uint8)
    counts: Any = histogram.count(raw.view(path, image)[None]) if measure else 0
    return (len(content), image.height, image.width, digest), counts
