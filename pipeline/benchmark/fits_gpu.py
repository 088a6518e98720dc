"""Fits by torch on the device: K-means and LDA of pixels there, beside the bare matrix products of the same tiles.

A CPU runs a scaled-down version without targets, so that this code runs everywhere; its own engine is measured by
`pipeline.benchmark.fits`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline import seeding
from pipeline.benchmark.fits import LDA_CHANNELS as CHANNELS
from pipeline.benchmark.material import CLASSES, Bench
from pipeline.benchmark.record import Record, record
from pipeline.benchmark.timing import interleaved, synchronize, timed
from pipeline.compute.precision import full_products
from pipeline.tables.device import lloyd, nearest
from pipeline.tables.device import scatter as scatters
from pipeline.tables.device.rows import DeviceRows, Rows
from pipeline.tables.device.start import start

GPU_PIXELS, GPU_CLUSTERS = 3_200_000, 4096  # a stage of CIFAR's 50,000 images at 8x8, the papers' words
ITERATIONS = 20
CPU_ITERATIONS = 2
ROWS_PER_CLUSTER = 100  # on a CPU
BLOCK = 1 << 16  # rows that are drawn at a time


@dataclass(frozen=True)
class Pixels:
    """Random pixels with a mean of their own in each class, on the device.

    Attributes:
        rows: the pixels.
        clusters: of K-means.
        iterations: Lloyd's.
    """

    rows: DeviceRows
    clusters: int
    iterations: int

    @classmethod
    def of(cls, bench: Bench) -> Pixels:
        """Draw the pixels: as many as the target names on a GPU, few on a CPU."""
        device, on_gpu = bench.machine.device, bench.machine.device.type == "cuda"
        count = GPU_PIXELS if on_gpu else max(1, bench.scale.fitted // 8)
        clusters = GPU_CLUSTERS if on_gpu else max(1, count // ROWS_PER_CLUSTER)

        generator = seeding.generator("pixels", device=device)
        means = torch.randn(CLASSES, CHANNELS, device=device, generator=generator)

        def read() -> Iterator[Rows]:
            for first in range(0, count, BLOCK):
                pixel = torch.arange(first, min(first + BLOCK, count), device=device)
                noise = torch.randn(len(pixel), CHANNELS, device=device, generator=generator)
                yield Rows((means[pixel % CLASSES] + noise).relu_(), pixel % CLASSES, pixel)

        # Held whatever the budget: the target is that of pixels on the device.
        rows = DeviceRows(read, count, CHANNELS, device, budget=1 << 40)
        return cls(rows, clusters, ITERATIONS if on_gpu else CPU_ITERATIONS)


def fits_gpu(bench: Bench) -> list[Record]:
    """Time K-means and LDA on the device against their matrix products alone; on a GPU with targets."""
    pixels = Pixels.of(bench)
    # IEEE float32 as in the stage, whatever the precision of networks.
    with full_products():
        return [*_kmeans(bench, pixels), *_lda(bench, pixels)]


def _kmeans(bench: Bench, pixels: Pixels) -> list[Record]:
    rows, device = pixels.rows, bench.machine.device
    start(rows, 1, 0)  # what is imported and loaded at a first call is not measured
    synchronize(device)
    began = time.perf_counter()
    first = start(rows, pixels.clusters, 0)
    synchronize(device)
    seconds = time.perf_counter() - began
    # Few pixels on a CPU may be settled earlier.
    iterations = lloyd.lloyd(rows, first, pixels.iterations).iterations

    def whole() -> None:
        lloyd.lloyd(rows, first, pixels.iterations)
        synchronize(device)

    def bare() -> None:
        factors = first.T  # laid out as `Nearest` has them
        for _ in range(iterations):
            for block in rows:
                for tile in nearest.tiles(block.x, pixels.clusters):
                    torch.mm(tile, factors)
        synchronize(device)

    runs = {"whole": timed(whole, 1), "bare": timed(bare, 1)}
    rates = interleaved("K-means on the device", runs, _rounds(bench))
    target = device.type == "cuda"
    spent, name = 1 / rates.median("whole") + seconds, "fits_gpu/kmeans"
    note = f"{len(rows):,} pixels of {rows.width}, {pixels.clusters:,} clusters, {iterations} iterations"
    return [
        record(name, spent, "s", at_most=10 if target else None, note=f"{note}, k-means++ {seconds:.2g} s"),
        record(
            f"{name}/of_products",
            rates.ratio("whole", to="bare"),
            "of bare products",
            at_least=0.5 if target else None,
            note="Lloyd's iterations",
        ),
    ]


def _lda(bench: Bench, pixels: Pixels) -> list[Record]:
    rows, device = pixels.rows, bench.machine.device

    def whole() -> None:
        scatters.scatter(rows, CLASSES, "LDA on the device")
        synchronize(device)

    # The labels do not matter to a product's time.
    one_hot = torch.zeros(CLASSES, scatters.ROWS, dtype=torch.float64, device=device)

    def bare() -> None:
        for block in rows:
            for tile in torch.split(block.x, scatters.ROWS):
                x = tile.double()
                torch.mm(one_hot[:, : len(x)], x)
                torch.mm(x.T, x)
        synchronize(device)

    rates = interleaved(
        "LDA on the device", {"whole": timed(whole, 1), "bare": timed(bare, 1)}, _rounds(bench)
    )
    note = f"{len(rows):,} pixels of {rows.width}, {CLASSES} classes; float64"
    return [
        record("fits_gpu/lda", 1 / rates.median("whole"), "s", note=note),
        record("fits_gpu/lda/of_products", rates.ratio("whole", to="bare"), "of bare products"),
    ]


def _rounds(bench: Bench) -> int:
    return min(3, bench.scale.rounds)  # each is seconds long
