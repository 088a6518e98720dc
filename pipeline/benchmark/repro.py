"""`dvc repro` with nothing to do, in the project of the working folder."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from pipeline import progress
from pipeline.artifacts import rwlock
from pipeline.benchmark.material import Bench
from pipeline.benchmark.record import Record, missing, record

NAME = "repro"
UNIT = "s a stage"

Dvc = Callable[..., subprocess.CompletedProcess[str]]


def repro(bench: Bench) -> list[Record]:
    """Time a `dvc repro` that finds everything up to date; where it is not, nothing is run."""
    from dvc.repo import Repo

    if Path(".dvc").exists():
        with Repo() as repo:
            rwlock.mend(repo)
    return compare(bench.scale.rounds, dvc)


def compare(rounds: int, dvc: Dvc) -> list[Record]:
    """Return the time a stage, and in all, of a `dvc repro` that runs nothing.

    Args:
        rounds: how often it is timed.
        dvc: runs dvc with some arguments.
    """
    if not Path("dvc.yaml").exists():
        return [missing(NAME, UNIT, "no dvc.yaml in the working folder")]
    if not Path("dvc.lock").exists():
        return [missing(NAME, UNIT, "no dvc.lock: nothing was reproduced yet")]

    with progress.bar("dvc repro", rounds + 1) as advance:
        # Where something is not up to date, `dvc repro` would run it.
        status = dvc("status", "-q")
        advance(1)
        if status.returncode:
            return [missing(NAME, UNIT, "dvc status says that something is not up to date, or fails")]

        seconds: list[float] = []
        stages = 0
        for _ in range(rounds):
            start = time.perf_counter()
            answer = dvc("repro").stdout
            seconds.append(time.perf_counter() - start)
            stages = len(re.findall(r"^Stage '.+' didn't change, skipping", answer, re.M))
            advance(1)

    if not stages:
        return [missing(NAME, UNIT, "dvc repro names no stage that is up to date")]
    return [
        record(f"{NAME}/stage", median(seconds) / stages, UNIT),
        record(f"{NAME}/all", median(seconds), "s", note=f"{stages} stages"),
    ]


def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run dvc in the working folder."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
