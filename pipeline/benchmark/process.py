"""What this process has of its machine: memory, and its share of a core beside its neighbors."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pipeline.compute.machine import Machine

_TURNS = Path("/proc/thread-self/schedstat")  # of Linux: nanoseconds on a core, and ready without one


def turns(file: Path = _TURNS) -> tuple[int, int] | None:
    """Return how long this thread has had a core, and has waited for one, in nanoseconds; None where nobody says."""
    if not file.exists():
        return None
    ran, waited = (int(x) for x in file.read_text().split()[:2])
    # A kernel that does not count gives zeros.
    return (ran, waited) if ran else None


def share(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Return for how much of the time that it was ready a thread had a core; None where that is not known.

    What it waited for otherwise, for instance files or a lock, does not count.

    Args:
        before: its `turns` when the time began.
        after: when it ended.
    """
    if before is None or after is None:
        return None
    ran, waited = (b - a for a, b in zip(before, after, strict=True))
    return ran / (ran + waited) if ran + waited else None


def held(where: Machine) -> int:
    """Return the memory that this process uses now, in bytes."""
    if where.device.type == "cuda":
        return int(torch.cuda.memory_allocated(where.device))
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return where.peak_bytes()
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free(where: Machine) -> int:
    """Return the memory that nobody uses, in bytes."""
    if where.device.type == "cuda":
        return int(torch.cuda.mem_get_info(where.device)[0])
    known = Path("/proc/meminfo")
    if known.exists():
        for line in known.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10  # given in kB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def scaled(held: int, peak: int, gradients: int, moments: int, ratio: float) -> int:
    """Return the memory of a training by that of its first step, in bytes.

    Args:
        held: before the step: weights, and what is imported.
        peak: in the step.
        gradients: of all parameters; as the weights, they do not grow with the images.
        moments: what the optimizer keeps from the first step on.
        ratio: pixels of a batch by those of the step.
    """
    return int(held + gradients + moments + max(0, peak - held - gradients) * ratio)
