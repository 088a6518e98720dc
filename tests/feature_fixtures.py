"""Small data, teachers and stores for the tests of the feature layer, and slow references to hold them to."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current
from numpy.typing import NDArray

from pipeline import seeding
from pipeline.artifact import file_hash
from pipeline.dataset import Meta, images_path, labels_path, meta_path
from pipeline.features import store
from pipeline.features.extract import Extraction, stored_features
from pipeline.features.manifest import Manifest
from pipeline.features.teacher import Teacher
from pipeline.network import Network, NetworkSpec, build, save_spec, save_weights
from pipeline.normalise import Normalise
from pipeline.params.extract import ExtractBlock
from pipeline.params.views import CropFlip, ViewParams
from pipeline.prepared import Prepared
from pipeline.progress import Advance
from pipeline.views import view_space
from stages import command

torch.set_num_threads(1)  # the networks are tiny: threads would only get in each other's way

Array = NDArray[Any]

CROPS = CropFlip(space="crop_flip", padding=1, flip=True)
# Features with other numbers of slots, dtypes and encodings.
REQUESTED = {
    "logits": (3, "float32"),
    "stage3": (1, "float16"),
    "stage2:attention": (0, "float32"),
    "stage1:pooled": (3, "float16"),
}
SHARD_BYTES = 2500  # many shards, though the arrays are small
_MASK = (1 << 64) - 1


def no_progress(units: int = 1, note: str = "") -> None:
    """Report nothing."""


# Data and teachers.


def prepare(
    folder: Path, *, samples: tuple[int, int] = (50, 12), channels: int = 2, size: int = 8, seed: int = 0
) -> Prepared:
    """Write random prepared data, train and test, and open them."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    counts = dict(zip(("train", "test"), samples, strict=True))
    for split, count in counts.items():
        np.save(images_path(folder, split), draw.integers(0, 256, (count, channels, size, size), np.uint8))
        np.save(labels_path(folder, split), draw.integers(0, 10, count))
    meta = Meta(
        source="random",
        classes=tuple("abcdefghij"),
        channels=channels,
        size=size,
        samples=counts,
        mean=(0.4, 0.5, 0.6)[:channels],
        std=(0.2, 0.3, 0.25)[:channels],
        fingerprint={split: file_hash(images_path(folder, split)) for split in counts},
    )
    meta_path(folder).write_text(meta.model_dump_json())
    return Prepared.open(folder)


def network(seed: int = 0, *, channels: int = 2, size: int = 8) -> tuple[Network, NetworkSpec]:
    """Build a small network whose batch norms are not the identity."""
    spec = NetworkSpec(family="resnet", network="resnet8", size=size, channels=channels, classes=10)
    built = build(spec, seed)
    draw = seeding.generator(seed, "batch norm")
    for module in built.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=draw)
            module.running_var.uniform_(0.5, 2, generator=draw)
    return built.eval(), spec


def save_teacher(folder: Path, checkpoints: Mapping[str, Network], spec: NetworkSpec) -> Path:
    """Write the weights folder of a teacher."""
    folder.mkdir(parents=True, exist_ok=True)
    save_spec(spec, folder)
    for checkpoint, one in checkpoints.items():
        save_weights(one, folder / f"{checkpoint}.safetensors")
    return folder


def extraction(
    prepared: Prepared,
    networks: Mapping[str, Network],
    spec: NetworkSpec,
    *,
    views: ViewParams = CROPS,
    requested: Mapping[str, tuple[int, str]] = REQUESTED,
    **options: Any,
) -> Extraction:
    """Return an extraction of `requested` from teachers by checkpoint; `options` are the extraction's own."""
    meta = prepared.meta
    teachers = {checkpoint: Teacher(one, current()) for checkpoint, one in networks.items()}
    manifest = Manifest(
        teacher="small",
        network=spec,
        weights=dict.fromkeys(networks, "0" * 32),
        data=meta.fingerprint,
        samples=meta.samples,
        mean=meta.mean,
        std=meta.std,
        views=views,
        precision=current().precision,
        features=stored_features(requested, next(iter(teachers.values())), meta.channels, meta.size),
    )
    normalise = Normalise(meta.mean, meta.std, current().device)
    options = {"batch_size": 16, "shard_bytes": SHARD_BYTES} | options
    return Extraction(manifest, teachers, prepared.splits, view_space(views), normalise, **options)


@dataclass(frozen=True)
class Small:
    """A small store with what it was made from.

    Attributes:
        path: the store.
        manifest: its manifest.
        prepared: the data.
        networks: teachers by checkpoint.
        spec: of the teachers.
    """

    path: Path
    manifest: Manifest
    prepared: Prepared
    networks: dict[str, Network]
    spec: NetworkSpec


def small_store(folder: Path, **options: Any) -> Small:
    """Make a store of two checkpoints in `folder`."""
    prepared = prepare(folder / "data")
    networks = {"last": network(0)[0], "anchor_050": network(1)[0]}
    spec = network(0)[1]
    path = folder / "small.zarr"
    manifest = extraction(prepared, networks, spec, **options).run(path, no_progress)
    return Small(path, manifest, prepared, networks, spec)


def make_array(path: Path, values: Array, shard_bytes: int = 1 << 20, compression: str = "none") -> Path:
    """Create the store `path` with one array, last/train/a, of `values` (slots, N, ...); return its folder."""
    layout = store.Layout.plan(values.shape, values.dtype.name, shard_bytes)
    store.create(path, {"last": {"train": {"a": layout}}}, compression)
    folder = store.array_path(path, "last", "train", "a")
    array = store.StoredArray(folder)
    for slots, samples in shard_ranges(layout):
        array.write(
            slots.start, samples.start, values[slots.start : slots.stop, samples.start : samples.stop]
        )
    return folder


def shard_ranges(layout: store.Layout) -> Iterator[tuple[range, range]]:
    """Give slots and samples of each shard, in row-major order of the shards."""
    slots, samples = layout.shape[:2]
    for slot in range(0, slots, layout.shard[0]):
        for start in range(0, samples, layout.shard[1]):
            yield (
                range(slot, min(slot + layout.shard[0], slots)),
                range(start, min(start + layout.shard[1], samples)),
            )


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Stages.


class CutOffError(Exception):
    """Stands for a run that is cut off."""


def cut_off(after: int) -> Advance:
    """Return a progress report that raises at its call number `after`, counted from 1."""
    calls = 0

    def advance(units: int = 1, note: str = "") -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise CutOffError

    return advance


def cut_off_bar(after: int) -> Callable[[str, int], Any]:
    """Return a stand-in for `progress.bar` whose report raises at its call number `after`."""

    @contextmanager
    def bar(title: str, total: int) -> Iterator[Advance]:
        yield cut_off(after)

    return bar


def run_stage(monkeypatch: pytest.MonkeyPatch, main: Callable[..., Any], *arguments: object) -> int:
    """Run a stage's command as its module would and return the exit status."""
    monkeypatch.setattr(sys, "argv", ["stage", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        command.run(main)
    return int(exited.value.code or 0)


def extract_block(
    path: Path, features: Mapping[str, Mapping[str, Any]], *, compression: str = "none", **more: Any
) -> Path:
    """Write a teacher's extract.json to `path`."""
    block = {
        "teacher": "small",
        "views": CROPS.model_dump(mode="json"),
        "features": features,
        "checkpoints": ["last"],
        "compression": compression,
    }
    ExtractBlock.model_validate_json(json.dumps(block | more))
    path.write_text(json.dumps(block | more))
    return path


# References: plain loops over numpy arrays and Python's integers.


def splitmix(x: int) -> int:
    """Return the finaliser of splitmix64 of a 64-bit integer, unsigned."""
    x &= _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def crop_flip(image: Array, view: int, padding: int, fill: str) -> Array:
    """Return view `view` of an image (C, H, W): pad, crop, flip.

    The offsets are counted row by row from the centre on, then the mirror images in the same order.
    """
    side = 2 * padding + 1
    mirrored, position = divmod(view, side * side)
    position = (position + (side * side) // 2) % (side * side)
    top, left = divmod(position, side)
    mode: Any = {"zero": "constant", "reflect": "reflect"}[fill]
    height, width = image.shape[1:]
    out = np.zeros_like(image)
    for channel, plane in enumerate(image):
        padded = np.pad(plane, padding, mode=mode) if padding else plane
        for row in range(height):
            for column in range(width):
                source = width - 1 - column if mirrored else column
                out[channel, row, column] = padded[top + row, left + source]
    return out


def random_box(
    index: int, view: int, size: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Any:
    """Return top, left, height, width and the flip of view `view` of sample `index`, a square image's."""
    key = splitmix(splitmix(index + 1) + view)
    draws = [(splitmix(key + step) >> 40) / 2**24 for step in range(1, 42)]
    attempts = zip(draws[:10], draws[10:20], draws[20:30], draws[30:40], strict=True)
    flip = draws[40] < 0.5
    for share, aspect, y, x in attempts:
        area = size * size * (scale[0] + share * (scale[1] - scale[0]))
        log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
        width_over_height = math.exp(log_low + aspect * (log_high - log_low))
        wide, tall = round(math.sqrt(area * width_over_height)), round(math.sqrt(area / width_over_height))
        if 1 <= wide <= size and 1 <= tall <= size:
            return math.floor(y * (size - tall + 1)), math.floor(x * (size - wide + 1)), tall, wide, flip
    return 0, 0, size, size, flip


def attention(x: Array) -> Array:
    """Return the mean of squares over channels of maps (B, C, H, W)."""
    batch, channels, height, width = x.shape
    out = np.zeros((batch, height, width))
    for b in range(batch):
        for h in range(height):
            for w in range(width):
                out[b, h, w] = sum(float(x[b, c, h, w]) ** 2 for c in range(channels)) / channels
    return out


def pooled(x: Array) -> Array:
    """Return the mean over pixels of maps (B, C, H, W)."""
    return np.array([[channel.astype(np.float64).mean() for channel in sample] for sample in x])


def features(one: Network, images: Array, meta: Meta, names: Mapping[str, Any]) -> dict[str, Array]:
    """Return the features `names` of uint8 images (B, C, H, W), straight from the network, on the CPU."""
    mean, std = (np.array(values).reshape(1, -1, 1, 1) for values in (meta.mean, meta.std))
    normalised = torch.from_numpy(((images / 255.0 - mean) / std).astype(np.float32))
    with torch.no_grad():
        taps = copy.deepcopy(one).cpu().record(normalised, None)
    encode: dict[str, Callable[[Array], Array]] = {
        "identity": lambda x: x,
        "attention": attention,
        "pooled": pooled,
    }
    found = {}
    for name in names:
        tap, _, encoding = name.partition(":")
        found[name] = encode[encoding or "identity"](taps[tap].numpy())
    return found
