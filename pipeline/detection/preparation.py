"""The writer of prepared data with boxes: every image is read and decoded once, and its file is listed.

Only the stage prepare_data runs it. What it writes is described in `layout.py`.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from pipeline import progress
from pipeline.artifacts import publish
from pipeline.data.annotated import CHANNELS, AnnotatedConfig, AnnotatedSource, AnnotatedSplit
from pipeline.data.file_index import record_type
from pipeline.data.layout import files_path, image_hash, index_hash, meta_path
from pipeline.data.preparation import save
from pipeline.data.raw import image_files, record
from pipeline.data.raw.listing import Listed
from pipeline.detection.layout import ARRAYS, IMAGES, Meta, array_path, fingerprinting
from pipeline.errors import DataError

_BLOCK = 64  # images a thread that are read before their records are kept


def run(plug: ModuleType, config: AnnotatedConfig, name: str, out: Path, made_by: str) -> Listed | None:
    """Prepare a source, say what it holds, and return the raw files, where there are any.

    Args:
        plug: the module of the source.
        config: its settings.
        name: what it is called.
        out: the folder to make.
        made_by: the DVC stage that makes it.
    """
    source: AnnotatedSource = plug.open_source(config)
    meta = prepare(source, name, config, out, made_by=made_by)
    counts = ", ".join(
        f"{split} {number} images with {meta.boxes[split]} boxes" for split, number in meta.samples.items()
    )
    print(f"{out}: {len(meta.classes)} classes, {counts}")
    return source.listed


def prepare(
    source: AnnotatedSource, name: str, config: AnnotatedConfig, out: Path, *, made_by: str = "prepare_data"
) -> Meta:
    """Write `source` as prepared data with boxes.

    Args:
        source: the opened data set.
        name: the plug-in that opened it.
        config: its settings.
        out: the folder to make; it appears only when it is whole.
        made_by: the DVC stage that makes it.

    Returns:
        what was written to `meta.json`.

    Raises:
        DataError: there is nothing to learn from, or an image cannot be read or is of another size.
    """
    splits = {"train": source.train, "test": source.test}
    for split, raw in splits.items():
        if raw.annotations.crowd.all():
            raise DataError(
                f"Data set '{name}' has no box of a single object in {split}, expected one at least. Add boxes."
            )

    total = sum(len(raw.sizes) for raw in splits.values())
    fingerprint, listing = {}, {}
    with publish.building(out) as folder, progress.bar(f"prepare {name}", total) as advance:
        for split, raw in splits.items():
            for key, (dtype, _) in ARRAYS.items():
                save(array_path(folder, split, key), getattr(raw.annotations, key).astype(dtype))
            kept = folder / IMAGES if source.root is None else None
            fingerprint[split], listing[split] = _list(raw, source, files_path(folder, split), kept, advance)

        meta = Meta(
            made_by=made_by,
            source=name,
            classes=tuple(source.classes),
            samples={split: len(raw.sizes) for split, raw in splits.items()},
            boxes={split: len(raw.annotations.labels) for split, raw in splits.items()},
            mean=config.mean,
            std=config.std,
            root=source.root,
            fingerprint=fingerprint,
            listing=listing,
        ).sealed()
        publish.write_json(meta_path(folder), meta.model_dump(mode="json"))
        if source.listed is not None:
            record.write(folder, source.listed, ())
    return meta


def _list(
    raw: AnnotatedSplit, source: AnnotatedSource, path: Path, kept: Path | None, advance: progress.Advance
) -> tuple[str, str]:
    """Write the list of a split's files; return the fingerprint of the split and the hash of the list."""
    names = [os.fsencode(name) for name in raw.images.names]
    records = np.zeros(len(names), dtype=record_type(max(map(len, names))))
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(names), _BLOCK * threads):
            rows = range(start, min(start + _BLOCK * threads, len(names)))
            # In the order of the images, whichever thread is first: the fingerprint depends on it.
            for row, facts in zip(rows, pool.map(partial(_facts, raw, kept), rows), strict=True):
                records[row] = (names[row], *facts)
            advance(len(rows))
    save(path, records)

    digest, listed = fingerprinting(source.classes, raw.annotations), index_hash()
    digest.update(np.ascontiguousarray(records["hash"]).data)
    listed.update(records.tobytes())
    return digest.hexdigest(), listed.hexdigest()


def _facts(raw: AnnotatedSplit, kept: Path | None, row: int) -> tuple[int, int, int, NDArray[np.uint8]]:
    """Return bytes, height, width and hash of an image, decoded for once; keep its file where it has none."""
    content, place = raw.images.content(row), raw.images.place(row)
    image = image_files.decode(place, content, CHANNELS, decoding=None)
    height, width = raw.sizes[row].tolist()
    if image.size != (width, height):
        raise DataError(
            f"{place} is {image.width}x{image.height}, and {raw.told_by} says {width}x{height}. Put back the image "
            "that the boxes were drawn in, or mend the entry, then: dvc repro"
        )
    if kept is not None:
        file = kept / raw.images.names[row]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return len(content), height, width, np.frombuffer(image_hash(content), np.uint8)
