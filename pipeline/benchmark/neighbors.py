"""Training on a CPU with other processes at work: what the settings for it cost alone, and what they save.

Each training is a process of its own, for OpenMP reads its settings when torch is loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from pipeline.artifacts.closure import root
from pipeline.benchmark.record import Record, record
from pipeline.benchmark.timing import Run, interleaved
from pipeline.compute import threads
from pipeline.compute.eager import EagerSGD
from pipeline.networks.network import build
from pipeline.networks.spec import NetworkSpec

if TYPE_CHECKING:
    from pipeline.benchmark.material import Bench

# The default job's student, and one of the papers': family, network, size of the images, steps.
TRAINED = {"digits": ("resnet", "resnet8", 8, 60), "cifar": ("resnet", "resnet20", 32, 6)}
BATCH = 64
ROUNDS = 3  # each with processes that start anew
OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def neighbors(bench: Bench) -> list[Record]:
    """Time trainings with the stages' settings and with torch's own, alone and beside one busy process a core."""
    cores = os.cpu_count() or 1
    # As many threads again are busy: half of the machine is ours.
    fair = cores / (2 * cores)
    records = []

    for name in TRAINED:
        runs = {"ours": _run(name, ours=True), "torch's": _run(name, ours=False)}
        alone = interleaved(f"{name}, alone", runs, ROUNDS, warm=False)
        with _busy(cores):
            beside = interleaved(f"{name}, beside {cores}", {"ours": runs["ours"]}, ROUNDS, warm=False)
            torchs = _run(name, ours=False, steps=2)()  # once: a step may take seconds

        records += [
            record(f"neighbors/{name}/alone", alone.ratio("ours", to="torch's"), "of torch's", at_least=0.95),
            record(
                f"neighbors/{name}/beside",
                beside.median("ours") / alone.median("ours") / fair,
                "of its fair share",
                at_least=1 / 3,
                note=f"one busy process a core, {cores}",
            ),
            record(
                f"neighbors/{name}/torch",
                torchs / alone.median("torch's") / fair,
                "of its fair share",
                note="once, two steps",
            ),
        ]
    return records


def train(name: str, ours: bool, most: int | None = None) -> None:
    """Train for some steps and print the rate, images a second: what a process of the measurement does.

    Args:
        name: key of `TRAINED`.
        ours: choose the number of threads as trainings do.
        most: of the steps; None is all.
    """
    family, network, size, steps = TRAINED[name]
    steps = steps if most is None else most
    spec = NetworkSpec(family=family, network=network, size=size, channels=1, classes=10)
    student = build(spec, 0)
    image, label = torch.randn(BATCH, 1, size, size), torch.arange(BATCH) % 10
    optimizer = EagerSGD(student.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(student(image), label)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()

    with threads.suited([student], lambda: image[:1], BATCH) if ours else nullcontext():
        # Once unmeasured: the first step allocates.
        step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
    print(BATCH * steps / (time.perf_counter() - start))


def _run(name: str, *, ours: bool, steps: int | None = None) -> Run:
    # The stages' settings are made where their commands begin.
    first = "import stages.command; " if ours else ""
    code = f"{first}from pipeline.benchmark import neighbors; neighbors.train({name!r}, {ours}, {steps})"
    environment = {key: value for key, value in os.environ.items() if key not in OWN}

    def run() -> float:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root(),
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)

    return run


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Keep so many other processes busy inside the block."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
