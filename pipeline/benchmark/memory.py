"""Peak memory of extraction and of reading, at two sizes, each in a process of its own.

Pages of the mapped images count once they were read, though the kernel may take them back at any time: 3 kB a
sample of the growth are theirs.

Run as a module it does one task and prints its peak: `python -m pipeline.benchmark.memory TASK SAMPLES FOLDER`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from pipeline import progress
from pipeline.artifacts.closure import root
from pipeline.benchmark.material import CLASSES, Bench, extraction
from pipeline.benchmark.record import Record, record
from pipeline.compute.machine import Machine, peak_resident
from pipeline.data.prepared import Prepared
from pipeline.features.source import CachedSource
from pipeline.features.stream import PlainStream
from pipeline.features.teacher import Teacher
from pipeline.networks.network import Network, Unit
from pipeline.networks.spec import NetworkSpec

WIDTH = 16  # of the map that is stored: 32 kB a sample of 32x32 pixels
REQUESTED = {"stage1": (0, "float16"), "logits": (1, "float32")}
FACTOR = 4
SHARD_BYTES = 8 << 20  # several shards at the smaller size, so that both sizes hold whole ones
# Large blocks go back to the system when they are freed. Else glibc keeps them in pieces, and the peak of the same
# task differs by a quarter from run to run when several threads have allocated them.
STEADY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
CPU = Machine(torch.device("cpu"))


def memory(bench: Bench) -> list[Record]:
    """Compare the peaks at N and at 4 N samples."""
    small, records = bench.scale.remembered, []
    for samples in (small, FACTOR * small):
        bench.prepared(samples)
    with progress.bar("peak memory", 2 * len(TASKS)) as advance:
        for task in TASKS:
            peaks = []
            for samples in (small, FACTOR * small):
                peaks.append(apart(task, samples, bench.folder))
                advance(1, note=task)
            growth = 100 * (peaks[1] / peaks[0] - 1)
            note = f"{peaks[0]:.0f} MB, {peaks[1] - peaks[0]:+.1f} MB for {FACTOR} times {small:,} samples"
            records.append(record(f"memory/{task}", growth, "% growth", at_most=10, note=note))
    return records


def apart(task: str, samples: int, folder: Path, module: str = "memory") -> float:
    """Do a task of a module in a process of its own and return its peak memory in MB."""
    command = [sys.executable, "-m", f"pipeline.benchmark.{module}", task, str(samples), str(folder)]
    done = subprocess.run(
        command, cwd=root(), env=os.environ | STEADY, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout)


def extract(data: Path, store: Path) -> None:
    """Fill a store from the prepared data."""
    prepared = Prepared.open(data)
    # One convolution: what is looked at is what is kept, not what is computed.
    network = Network({"stage1": Unit(nn.Conv2d(3, WIDTH, 1))}, WIDTH, CLASSES)
    spec = NetworkSpec(family="none", network="one", size=prepared.meta.size, channels=3, classes=CLASSES)
    teacher = Teacher(network, CPU)
    work = extraction(prepared, teacher, spec, REQUESTED, batch_size=64, shard_bytes=SHARD_BYTES)
    work.run(store, lambda units=1, note="": None)


def read(data: Path, store: Path) -> None:
    """Stream a store as a fit does, then read it in random order as training does."""
    prepared = Prepared.open(data)
    for _ in PlainStream(store, "stage1", prepared.split("train").labels):
        pass
    source = CachedSource({"stage1": store}, ["last"], 0, CPU.device, resident_bytes=0)
    order = torch.randperm(len(prepared.split("train")))
    for index in torch.split(order, 64):
        source.begin("last", 0, index)()


def peak() -> float:
    """Return the largest resident size of this process so far, in MB."""
    return peak_resident() / (1 << 20)


TASKS: dict[str, Callable[[Path, Path], None]] = {"extract": extract, "read": read}

if __name__ == "__main__":
    name, number, folder = sys.argv[1:]
    TASKS[name](Path(folder) / f"data-{number}", Path(folder) / f"memory-{number}.zarr")
    print(peak())
