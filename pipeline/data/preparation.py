"""The writer of prepared data: streams a `Source` into arrays, block by block, in bounded memory.

Of indexed data it writes a list of the files instead (`pipeline/data/file_scan.py`). Only the stage prepare_data
imports it. What it writes is described in `pipeline/data/layout.py`.
"""

from __future__ import annotations

import hashlib
import io
import math
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline import progress
from pipeline.artifacts import publish
from pipeline.data import file_scan, histogram
from pipeline.data.dataset import DatasetConfig, RawSplit, Source
from pipeline.data.layout import (
    Meta,
    Reading,
    fingerprinting,
    hashes_path,
    image_hashes,
    images_path,
    labels_path,
    meta_path,
)
from pipeline.data.raw import record
from pipeline.data.raw.image_files import FileSplit
from pipeline.data.raw.screening import screened
from pipeline.errors import DataError, MachineError, ParamsError
from pipeline.params.size import area, reduced, sides

BLOCK_BYTES = 16 * 2**20


def prepare(
    source: Source,
    name: str,
    config: DatasetConfig,
    out: Path,
    *,
    made_by: str = "prepare_data",
    block_bytes: int = BLOCK_BYTES,
) -> Meta:
    """Write `source` as prepared data.

    Args:
        source: the opened data set.
        name: the plug-in that opened it.
        config: its settings.
        out: the folder to make; it appears only when it is whole.
        made_by: the DVC stage that makes it.
        block_bytes: images are decoded, hashed and written in blocks of about this size; the result does not
            depend on it.

    Returns:
        what was written to `meta.json`.

    Raises:
        ParamsError: `mean` or `std` does not fit the number of channels.
        DataError: the source's parts do not fit together, or it holds images that cannot be read.
        MachineError: the disk is too full.
    """
    _check(source, name, config)
    source, skipped = screened(source, name)
    mask = held_out(source.train.labels, config.holdout, config.holdout_seed)
    labels = {"train": source.train.labels[~mask]}
    if mask.any():
        labels["holdout"] = source.train.labels[mask]
    elif source.holdout is not None:
        labels["holdout"] = source.holdout.labels
    labels["test"] = source.test.labels
    total = sum(map(len, labels.values()))

    with publish.building(out) as folder, progress.bar(f"prepare {name}", total) as advance:
        listing: dict[str, str] | None = None
        if source.files is None:
            rows = max(1, block_bytes // (source.channels * area(source.size)))
            fingerprint, counts = _copy(source, name, folder, mask, labels, rows, advance)
        else:
            measure = None in (config.mean or source.mean, config.std or source.std)
            fingerprint, listing, counts = file_scan.index(folder, source, mask, advance, measure=measure)

        for split, values in labels.items():
            save(labels_path(folder, split), values)

        mean, std = _normalization(source, config, counts)
        meta = Meta(
            made_by=made_by,
            source=name,
            classes=tuple(source.classes),
            channels=source.channels,
            size=reduced(source.size),
            samples={split: len(values) for split, values in labels.items()},
            mean=mean,
            std=std,
            fingerprint=fingerprint,
            files=source.files,
            listing=listing,
            reading=_reading(source),
        ).sealed()
        publish.write_json(meta_path(folder), meta.model_dump(mode="json"))
        if source.listed is not None:
            record.write(folder, source.listed, skipped)
    return meta


def _reading(source: Source) -> Reading | None:
    """Return how files become the images of copied data; None where they are indexed, or no files of any size."""
    split = source.train
    if source.files is not None or not isinstance(split, FileSplit) or split.resize is None:
        return None
    return Reading(resize=split.resize, decoding=split.decoding)


def _copy(
    source: Source,
    name: str,
    folder: Path,
    held: NDArray[np.bool_],
    labels: Mapping[str, NDArray[np.int64]],
    rows: int,
    advance: progress.Advance,
) -> tuple[dict[str, str], NDArray[np.int64]]:
    """Write all images, so many rows at a time; return fingerprints, and counts of training pixels (C, 256)."""
    # Before the first byte: a disk that is too small would show after minutes.
    _check_disk(folder, sum(map(len, labels.values())) * source.channels * area(source.size))
    with ExitStack() as stack:
        # All are open at once: one pass over the raw training data serves two splits.
        writers = {
            split: stack.enter_context(_Writer(folder, split, values, source))
            for split, values in labels.items()
        }

        counts = np.zeros((source.channels, 256), dtype=np.int64)
        for start in range(0, len(held), rows):
            block = _read(source, source.train, name, start, rows)
            mask = held[start : start + rows]
            writers["train"].write(block[~mask])
            counts += histogram.count(block[~mask])
            if "holdout" in writers:
                writers["holdout"].write(block[mask])
            advance(len(block))

        for split, raw in (("holdout", source.holdout), ("test", source.test)):
            for start in range(0, 0 if raw is None else len(raw.labels), rows):
                assert raw is not None
                block = _read(source, raw, name, start, rows)
                writers[split].write(block)
                advance(len(block))

        return {split: writer.finish() for split, writer in writers.items()}, counts


def held_out(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose the samples that are held out for model selection.

    Sample i is ranked within its class by a hash of (seed, i), and the first `share` of each class are taken,
    rounded, at least one and never all. No generator is drawn from, so that the choice depends on no
    library's version.

    Args:
        labels: int64 (N,).
        share: share of each class, in [0, 1).
        seed: another seed makes another choice.

    Returns:
        bool (N,), true where held out.
    """
    mask = np.zeros(len(labels), dtype=np.bool_)
    if share == 0.0:
        return mask
    ranks = np.array([_rank(seed, index) for index in range(len(labels))], dtype=np.uint64)
    order = np.lexsort((ranks, labels))  # by class, then by rank

    start = 0
    for count in np.bincount(labels).tolist():
        # Halves are rounded up, and one sample of each class always trains.
        num_held = min(max(1, math.floor(share * count + 0.5)), count - 1)
        mask[order[start : start + num_held]] = True
        start += count
    return mask


def _rank(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest(), "little")


class _Writer:
    """Writes one split in sequence and hashes it.

    Sequential writes, not a memory map: its dirty pages would count as this process' memory.
    """

    def __init__(self, folder: Path, split: str, labels: NDArray[np.int64], source: Source) -> None:
        shape = (len(labels), source.channels, *sides(source.size))
        self._file, self._hashes_path = images_path(folder, split).open("wb"), hashes_path(folder, split)
        # As numpy.save begins a file, for data that come in blocks.
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._hash = fingerprinting(source.classes, shape, labels)
        self._hashes: list[NDArray[np.uint8]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, block: NDArray[np.uint8]) -> None:
        """Append images uint8 (n, C, H, W)."""
        self._hashes.append(image_hashes(block))
        # No copy of a block that is contiguous.
        self._file.write(np.ascontiguousarray(block).reshape(-1).data)

    def finish(self) -> str:
        """Write the hashes of all images; return that of class names, shape, labels and images."""
        hashes = np.concatenate(self._hashes)
        save(self._hashes_path, hashes)
        self._hash.update(hashes.data)
        return self._hash.hexdigest()


def save(path: Path, array: NDArray[Any]) -> None:
    """Write an array as an npy file."""
    content = io.BytesIO()  # numpy writes to a file itself, and does not say why when it cannot
    np.save(content, array)
    path.write_bytes(content.getvalue())


def _normalization(
    source: Source, config: DatasetConfig, counts: NDArray[np.int64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel: the config's, else the published, else those of the training images.

    Args:
        source: the data set, with its published normalization.
        config: its settings.
        counts: of each pixel value in the training split, int64 (C, 256).
    """
    mean, std = config.mean or source.mean, config.std or source.std
    if mean is not None and std is not None:
        return mean, std

    measured = [histogram.moments(channel.tolist()) for channel in counts]
    for channel, (_, spread) in enumerate(measured):
        if spread == 0.0 and std is None:
            raise DataError(
                f"Channel {channel} of every training image is one constant value, so it has no standard "
                "deviation to normalize with. Set mean and std of the source in params.yaml."
            )
    return mean or tuple(m for m, _ in measured), std or tuple(s for _, s in measured)


def _read(source: Source, split: RawSplit, name: str, start: int, rows: int) -> NDArray[np.uint8]:
    stop = min(start + rows, len(split.labels))
    block = split.images(start, stop)
    shape = (stop - start, source.channels, *sides(source.size))
    if block.shape != shape or block.dtype != np.uint8:
        raise DataError(
            f"Data set '{name}' gave images {block.dtype} {block.shape}, expected uint8 {shape}. "
            f"Check open_source in pipeline/data/datasets/{name}.py."
        )
    return block


def _check(source: Source, name: str, config: DatasetConfig) -> None:
    for key in ("mean", "std"):
        values = getattr(config, key)
        if values is not None and len(values) != source.channels:
            raise ParamsError(
                f"params.yaml: '{key}' has {len(values)} values, but the images of '{name}' have "
                f"{source.channels} channels. Give one value a channel."
            )

    if len(source.classes) < 2:
        found = f"one class, '{source.classes[0]}'" if source.classes else "no class"
        raise DataError(
            f"Data set '{name}' has {found}, expected two or more to tell apart: add another, then: dvc repro"
        )

    splits = {"training": source.train, "test": source.test}
    if source.holdout is not None:
        splits["holdout"] = source.holdout
    for split, raw in splits.items():
        labels = raw.labels
        if len(labels) == 0:
            raise DataError(f"Data set '{name}' has no {split} samples, expected at least one.")
        if labels.min() < 0 or labels.max() >= len(source.classes):
            raise DataError(
                f"The {split} labels of '{name}' lie in [{labels.min()}, {labels.max()}], "
                f"expected [0, {len(source.classes) - 1}] for its {len(source.classes)} classes."
            )

    # A class of one sample cannot be divided into a part to train on and a part that is held out.
    fewest, remedy = (2, "set holdout: 0.0 or add samples") if config.holdout else (1, "add samples")
    for label, count in enumerate(np.bincount(source.train.labels, minlength=len(source.classes)).tolist()):
        if count < fewest:
            raise DataError(
                f"Class '{source.classes[label]}' of '{name}' has {count} training samples, expected "
                f"{fewest} or more: {remedy}."
            )


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MachineError(
            f"The prepared images need {needed / 1e6:,.0f} MB, but the disk of {folder.parent} has "
            f"{free / 1e6:,.0f} MB free. Free some space, for instance with: dvc gc --workspace"
        )
