"""The gate behind extraction: a sample of stored rows is computed again and compared.

It runs the teacher on views made from scratch, so it finds a store that is blind to augmentation, rows that
were shifted, and weights or normalization that are not those of the manifest. What the channels of each
feature look like is gathered on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import plugin, seeding
from pipeline.compute import batch_size
from pipeline.compute import precision as precisions
from pipeline.compute.machine import Machine
from pipeline.compute.precision import Precision
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Split
from pipeline.data.ranges import open_rows
from pipeline.data.views import ViewSpace
from pipeline.features import top
from pipeline.features.difference import Codes, Difference, Floats, share_differing
from pipeline.features.encoding import Feature, Tables
from pipeline.features.manifest import Manifest
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher
from pipeline.networks.network import Network
from pipeline.params.size import area
from pipeline.params.top import Top

Array = NDArray[Any]

BLOCK_BYTES = 32 << 20
ON_GPU = 1024  # rows that are computed at once; on a CPU those of one slot


@dataclass(frozen=True)
class Live:
    """The teacher of a store, computed anew: exactly, and as roughly as the store's precision does.

    How far the two lie apart is what rounding costs this network on these images. No constant could say it: in
    bfloat16 a shallow network is off by 2 % where a deep one is off by 10 %.

    Attributes:
        exact: in IEEE float32.
        rough: in the store's precision; for one of float32, with factors rounded to TF32.
        precision: the store's.
        normalize: what images go through.
    """

    exact: Teacher
    rough: Teacher
    precision: Precision
    normalize: Normalize

    @classmethod
    def of(
        cls,
        network: Network,
        precision: Precision,
        device: torch.device,
        normalize: Normalize,
        tables: Tables | None = None,
    ) -> Self:
        """Return the teacher `network` as it is compared with a store of `precision`.

        Args:
            network: the teacher.
            precision: the store's.
            device: where it runs; a store that was made elsewhere is compared alike.
            normalize: what images go through.
            tables: arrays of the fitted tables that encodings read.
        """
        exact = Teacher(network, Machine(device), tables)
        if precision == "bfloat16":
            return cls(exact, Teacher(network, Machine(device, "bfloat16"), tables), precision, normalize)

        return cls(exact, Teacher(rounded(network), Machine(device), tables), precision, normalize)

    def features(self, image: Tensor, names: set[str], label: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Give name, exact and rough feature (B, ...) of uint8 images (B, C, H, W), on the CPU."""
        # The device's own TF32 is off for both: `rough` rounds by itself, alike on all devices.
        with precisions.using("float32"):
            exact, rough = (
                teacher.features(self.normalize(image), names, label) for teacher in (self.exact, self.rough)
            )
        for name in sorted(names):
            yield name, exact[name].cpu(), rough[name].cpu()


def rounded(network: Network) -> Network:
    """Return a copy whose convolutions and linear layers round their factors to TF32, on any device."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # Weights once, inputs at each call; sums and biases stay in float32, as in a GPU's TF32.
            module.weight.data = tf32(module.weight.data)
            module.register_forward_pre_hook(lambda module, given: (tf32(given[0]), *given[1:]))
    return copied


def tf32(x: Tensor) -> Tensor:
    """Round float32 to the 10 bits of fraction of TF32, to even."""
    # Half a unit of the last kept bit, where a tie adds only if that bit is odd.
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def compare(
    path: Path,
    manifest: Manifest,
    live: Live,
    checkpoint: str,
    splits: dict[str, Split],
    space: ViewSpace,
    *,
    rows: int,
) -> list[Difference]:
    """Recompute `rows` random (slot, sample) pairs of every split and return how far each array is off.

    Stored rows are taken as they are: `verify` comes first.

    Args:
        path: the store.
        manifest: what the store says of itself.
        live: the teacher at `checkpoint`.
        checkpoint: the one whose arrays are compared.
        splits: prepared data.
        space: the views.
        rows: pairs a split; features with other numbers of slots have pairs of their own.

    Returns:
        Every measure of every array.
    """
    differences: list[Difference] = []
    device = live.exact.machine.device
    network = manifest.network
    size = batch_size.bounded(device, network.channels * area(network.size), 1, ON_GPU)

    for split, data in splits.items():
        images, arrays = open_rows(data, space, device), dict[str, StoredArray]()
        measured: dict[str, Floats | Codes] = {}

        for pairs, names in _batches(draw(manifest, checkpoint, split, len(data), rows), size):
            begun = [images.begin(slot, index) for slot, index in pairs]
            view = torch.cat([finish() for finish in begun])
            label = torch.from_numpy(data.labels[torch.cat([index for _, index in pairs]).numpy()]).to(device)
            counts = [len(index) for _, index in pairs]

            for name, exact, rough in live.features(view, names, label):
                if name not in measured:
                    arrays[name] = StoredArray(array_path(path, checkpoint, split, name))
                    measured[name] = _measure(name, manifest, live)
                # Slot by slot, however many were computed at once: errors are relative to the values beside them.
                parts = zip(pairs, torch.split(exact, counts), torch.split(rough, counts), strict=True)
                for (slot, index), exactly, roughly in parts:
                    stored = arrays[name].read(slot, index.numpy())
                    if (kept := manifest.features[name].top) is not None:
                        stored, exactly, roughly = _claimed(stored, exactly, roughly, kept)
                    measured[name].add(slot, index, stored, exactly, roughly)

        for name, measure in measured.items():
            differences += measure.differences(f"{checkpoint}/{split}/{name}")
    return differences


def _batches(
    draws: Iterable[tuple[int, Tensor, set[str]]], size: int
) -> Iterator[tuple[list[tuple[int, Tensor]], set[str]]]:
    """Join draws of the same features, as `draw` gives them, into batches of about `size` samples."""
    pairs, features = list[tuple[int, Tensor]](), set[str]()
    for slot, index, names in draws:
        if pairs and (names != features or sum(len(index) for _, index in pairs) >= size):
            yield pairs, features
            pairs = []
        pairs, features = [*pairs, (slot, index)], names
    if pairs:
        yield pairs, features


def draw(
    manifest: Manifest, checkpoint: str, split: str, total: int, rows: int
) -> Iterator[tuple[int, Tensor, set[str]]]:
    """Give slots, the sample indices int64 (n,) drawn for them, and the features to compare there."""
    # Features with equal slots share pairs, and so forward passes.
    slots_of = {name: f.slots if split == "train" else 0 for name, f in manifest.features.items()}
    for most in sorted(set(slots_of.values())):
        generator = seeding.generator("check", checkpoint, split, most)
        slots = torch.randint(0, most + 1, (rows,), generator=generator)
        samples = torch.randint(0, total, (rows,), generator=generator)
        names = {name for name, slots in slots_of.items() if slots == most}
        for slot in torch.unique(slots).tolist():
            yield slot, samples[slots == slot], names


def _claimed(code: Array, exact: Tensor, rough: Tensor, kept: Top) -> tuple[Array, Tensor, Tensor]:
    """Return what a code of logits claims in its own type, and beside it what either teacher says of that."""
    stored = torch.from_numpy(code)
    claimed, exactly = top.beside(stored, exact, kept)
    return claimed.numpy().astype(kept.dtype), exactly, top.beside(stored, rough, kept)[1]


def _measure(name: str, manifest: Manifest, live: Live) -> Floats | Codes:
    feature = manifest.features[name]
    dtype = np.dtype(feature.dtype if feature.top is None else feature.top.dtype)
    if dtype.kind == "f":
        return Floats(live.precision, dtype)
    # The last encoding made these codes and knows when two of them differ.
    encoding = plugin.load("encodings", Feature.parse(name).encodings[-1])
    return Codes(live.precision, getattr(encoding, "differing", share_differing))


def summarize(path: Path, checkpoint: str, name: str) -> dict[str, Any]:
    """Return what the plain training samples of a float feature look like, streamed.

    Returns:
        `mean`, `std`, `min`, `max`, `zeros` (share of values that are 0), and `dead_channels`: those that have
        one value everywhere.
    """
    array = StoredArray(array_path(path, checkpoint, "train", name))
    sample_bytes = max(1, array.nbytes // (array.shape[0] * array.shape[1]))
    low = high = None
    total, square, zeros, count = 0.0, 0.0, 0, 0

    for _, block in array.blocks(0, max(1, BLOCK_BYTES // sample_bytes)):
        x = np.moveaxis(block, 1, -1) if block.ndim > 1 else block[:, None]
        # One pass, so as not to read the store twice; float64 has digits for the squares.
        x = x.reshape(-1, x.shape[-1]).astype(np.float64)  # (pixels, C)
        low = x.min(axis=0) if low is None else np.minimum(low, x.min(axis=0))
        high = x.max(axis=0) if high is None else np.maximum(high, x.max(axis=0))
        total, square = total + x.sum(), square + (x**2).sum()
        zeros, count = zeros + int((x == 0).sum()), count + x.size

    assert low is not None
    assert high is not None
    mean = total / count
    return {
        "mean": mean,
        "std": max(0.0, square / count - mean**2) ** 0.5,
        "min": float(low.min()),
        "max": float(high.max()),
        "zeros": zeros / count,
        "channels": len(low),
        "dead_channels": int((low == high).sum()),
    }
