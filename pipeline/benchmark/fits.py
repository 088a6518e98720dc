"""Fits of tables, next to scikit-learn (and faiss, where there is one) on the same rows.

Run as a module it fits LDA once in a process of its own and prints seconds and the growth of its peak memory in MB:
`python -m pipeline.benchmark.fits ENGINE PIXELS`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import plugin
from pipeline.artifacts.closure import root
from pipeline.benchmark.material import CLASSES, Bench
from pipeline.benchmark.memory import peak
from pipeline.benchmark.record import Record, missing, record
from pipeline.benchmark.timing import Run, interleaved, timed
from pipeline.tables import clustering, pixels
from pipeline.tables.pixels import Pixels
from pipeline.tables.table import FitContext

Array = NDArray[Any]

SIDE = 8  # of the maps
ROWS_PER_CLUSTER = 25  # of K-means: 100,000 pixels make 4,000 clusters, about the papers' 4,096
ITERATIONS = 3
KMEANS_CHANNELS, LDA_CHANNELS = 64, 256
SAMPLES = 64  # of a block


@dataclass
class Generated:
    """A stream of random maps with a mean of their own in each class, made anew in each pass.

    Attributes:
        shape: (N, C, 8, 8).
    """

    shape: tuple[int, ...]

    @classmethod
    def of(cls, num_pixels: int, channels: int) -> Generated:
        """Return a stream of about so many pixels."""
        return cls((max(1, num_pixels // SIDE**2), channels, SIDE, SIDE))

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """Give blocks and labels."""
        means = np.random.default_rng(0).normal(size=(CLASSES, self.shape[1], 1, 1)).astype(np.float32)
        for start in range(0, self.shape[0], SAMPLES):
            count = min(SAMPLES, self.shape[0] - start)
            draw = np.random.default_rng((1, start))
            label = np.arange(start, start + count) % CLASSES
            noise = draw.standard_normal((count, *self.shape[1:]), np.float32)
            yield np.maximum(means[label] + noise, 0), label

    def rows(self) -> tuple[Array, Array]:
        """Return all pixels (n, C) and their labels int64 (n,)."""
        blocks = list(Pixels.of(self, "generated"))
        return np.concatenate([block.x for block in blocks]), np.concatenate(
            [block.label for block in blocks]
        )


def fits(bench: Bench) -> list[Record]:
    """Time K-means in memory and streamed, and LDA with its peak memory."""
    return kmeans(bench) + lda(bench)


def kmeans(bench: Bench) -> list[Record]:
    """Time Lloyd's iterations from the same centers."""
    stream = Generated.of(bench.scale.fitted // 2, KMEANS_CHANNELS)
    x, _ = stream.rows()
    first = x[:: max(1, min(ROWS_PER_CLUSTER, len(x) // 2))].copy()
    in_memory = list(Pixels.of(stream, "generated"))

    work: dict[str, Callable[[], object]] = {
        "held": lambda: clustering.lloyd(in_memory, first, ITERATIONS),
        "streamed": lambda: clustering.lloyd(pixels.Pixels.of(_Array(x), "generated"), first, ITERATIONS),
        "sklearn": _sklearn(x, first),
    }
    faiss = _faiss(x, first)
    if faiss is not None:
        work["faiss"] = faiss

    runs: dict[str, Run] = {name: timed(task, len(x) * ITERATIONS) for name, task in work.items()}
    rates = interleaved("K-means", runs, bench.scale.rounds)

    name, note = "fits/kmeans", f"{len(x):,} pixels of {x.shape[1]}, {len(first):,} clusters"
    return [
        record(f"{name}/held", rates.median("held"), "pixels/s", note=f"{note}; an iteration"),
        record(f"{name}/of_sklearn", rates.ratio("held", to="sklearn"), "of sklearn", at_least=0.9),
        record(f"{name}/streamed", rates.ratio("streamed", to="sklearn"), "of sklearn", at_least=0.8),
        record(f"{name}/of_faiss", rates.ratio("held", to="faiss"), "of faiss", at_least=1)
        if faiss is not None
        else missing(f"{name}/of_faiss", "of faiss", "faiss is not installed"),
    ]


def lda(bench: Bench) -> list[Record]:
    """Compare seconds and the growth of the peak memory of LDA, each engine in a process of its own."""
    fits = {engine: apart(engine, bench.scale.fitted) for engine in ENGINES}
    (seconds, megabytes), (known_seconds, known_megabytes) = fits["streamed"], fits["sklearn"]
    note = f"{seconds:.1f} s, scikit-learn {known_seconds:.1f} s, {bench.scale.fitted:,} pixels of {LDA_CHANNELS}"
    memory = f"{megabytes:.0f} MB, scikit-learn {known_megabytes:.0f} MB with the pixels that it holds"
    return [
        record("fits/lda/time", seconds / known_seconds, "of sklearn", at_most=1, note=note),
        record("fits/lda/memory", megabytes / known_megabytes, "of sklearn", at_most=0.1, note=memory),
    ]


def apart(engine: str, num_pixels: int) -> tuple[float, float]:
    """Fit LDA in a process of its own; return seconds, and the growth of its peak memory in MB."""
    command = [sys.executable, "-m", "pipeline.benchmark.fits", engine, str(num_pixels)]
    done = subprocess.run(command, cwd=root(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def streamed_lda(stream: Generated) -> float:
    """Fit the table; return the seconds."""
    table = plugin.load("tables", "lda")
    config = table.Config(feature="generated", components=min(60, CLASSES - 1, stream.shape[0] - 1))
    start = time.perf_counter()
    table.fit(stream, config, FitContext(CLASSES))
    return time.perf_counter() - start


def sklearn_lda(stream: Generated) -> float:
    """Fit scikit-learn's in float64, in which the table is computed too; return the seconds."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    start = time.perf_counter()
    x, label = stream.rows()
    LinearDiscriminantAnalysis(solver="svd").fit(x.astype(np.float64), label)
    return time.perf_counter() - start


ENGINES: dict[str, Callable[[Generated], float]] = {"streamed": streamed_lda, "sklearn": sklearn_lda}


class _Array:
    """Rows as a stream of maps of one pixel, sixteen thousand at a time."""

    def __init__(self, x: Array) -> None:
        self.x = x[:, :, None, None]
        self.shape: tuple[int, ...] = self.x.shape

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for start in range(0, len(self.x), 1 << 14):
            block = self.x[start : start + (1 << 14)]
            yield block, np.zeros(len(block), np.int64)


def _sklearn(x: Array, first: Array) -> Callable[[], object]:
    from sklearn.cluster import KMeans

    # No tolerance: all iterations are done, as in the other engines.
    model = KMeans(len(first), init=first, n_init=1, max_iter=ITERATIONS, tol=0)
    return lambda: model.fit(x)


def _faiss(x: Array, first: Array) -> Callable[[], object] | None:
    try:
        import faiss
    except ImportError:
        return None
    # By default faiss takes 256 points a centroid and warns of fewer than 39.
    options = {"niter": ITERATIONS, "max_points_per_centroid": len(x), "min_points_per_centroid": 1}
    return lambda: faiss.Kmeans(x.shape[1], len(first), **options).train(x, init_centroids=first)


if __name__ == "__main__":
    name, number = sys.argv[1:]
    # Both engines are loaded before the peak is marked, for what they themselves take in memory is not the fit's.
    import sklearn.discriminant_analysis  # noqa: F401  # only loaded: the fit imports it where it calls it

    plugin.load("tables", "lda")
    before = peak()
    spent = ENGINES[name](Generated.of(int(number), LDA_CHANNELS))
    print(spent, peak() - before)
