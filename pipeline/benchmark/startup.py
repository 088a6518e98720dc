"""Start-up: every stage's `--help` comes at once, because heavy imports wait until they are needed.

On a GPU also what a process does before its first training step; nothing is promised of that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

from pipeline import progress
from pipeline.artifacts.closure import root
from pipeline.benchmark.first_step import MOMENTS
from pipeline.benchmark.material import Bench
from pipeline.benchmark.record import Record, record
from pipeline.benchmark.timing import interleaved, timed

PASSED_OVER = ("__init__", "command")


def startup(bench: Bench) -> list[Record]:
    """Time `--help` of all stages beside the bare import of typer, and on a GPU the parts of a training's start."""
    stages = sorted(path.stem for path in (root() / "stages").glob("*.py") if path.stem not in PASSED_OVER)
    records = compare(stages, bench.scale.rounds)
    device = bench.machine.device
    if device.type == "cuda":
        records += first_step(str(device), bench.scale.images, bench.scale.rounds)
    return records


def compare(stages: Sequence[str], rounds: int) -> list[Record]:
    """Return the slowest stage's time and the middle one's, relative to the import of typer."""
    commands = {stage: ["-m", f"stages.{stage}", "--help"] for stage in stages}
    runs = {stage: timed(_started(command), 1) for stage, command in commands.items()}
    # Every stage imports typer, so none can start faster.
    runs["import typer"] = timed(_started(["-c", "import typer"]), 1)
    rates = interleaved("--help", runs, rounds)

    ratios = {stage: rates.ratio("import typer", to=stage) for stage in stages}
    worst = max(ratios, key=lambda stage: ratios[stage])
    middle = sorted(ratios.values())[len(ratios) // 2]
    return [
        record("startup/typer", 1000 / rates.median("import typer"), "ms"),
        record("startup/middle", middle, "of import typer"),
        record("startup/worst", ratios[worst], "of import typer", at_most=1.5, note=f"stages.{worst}"),
    ]


def first_step(device: str, samples: int, rounds: int) -> list[Record]:
    """Return the median time of each part of a process that starts, trains two steps and ends.

    Args:
        device: torch's name.
        samples: images that go to the device.
        rounds: how often it is timed, after a round that is not.
    """
    command = ["-m", "pipeline.benchmark.first_step", device, str(samples)]
    parts: list[dict[str, float]] = []
    with progress.bar("first step", rounds + 1) as advance:
        for _ in range(rounds + 1):
            start = time.time()
            moments = json.loads(_started(command)().stdout)
            end = time.time()

            marks = [start, *(moments[name] for name in MOMENTS), end]
            seconds = [later - earlier for earlier, later in pairwise(marks)]
            parts.append(dict(zip((*MOMENTS, "exit"), seconds, strict=True)) | {"all": end - start})
            advance(1)

    return [
        record(f"startup/{device}/{name}", 1000 * median(part[name] for part in parts[1:]), "ms")
        for name in parts[0]
    ]


def _started(arguments: list[str]) -> Callable[[], subprocess.CompletedProcess[bytes]]:
    return lambda: subprocess.run([sys.executable, *arguments], cwd=root(), capture_output=True, check=True)
