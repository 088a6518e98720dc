"""Rates of runs that take turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from pipeline import progress

Clock = Callable[[], float]
Run = Callable[[], float]  # does some work and returns its rate, units a second


@dataclass(frozen=True)
class Rates:
    """What came out of runs that took turns.

    Attributes:
        rounds: rates by run, one dict a round.
    """

    rounds: tuple[Mapping[str, float], ...]

    def median(self, name: str) -> float:
        """Return the median rate of one run."""
        return median(rates[name] for rates in self.rounds)

    def ratio(self, name: str, to: str) -> float:
        """Return the median, over rounds, of a run's rate relative to another's in the same round.

        Neighbors in time share the machine's load, so their ratio is steadier than that of two medians.
        """
        return median(rates[name] / rates[to] for rates in self.rounds)


def interleaved(title: str, runs: Mapping[str, Run], rounds: int, *, warm: bool = True) -> Rates:
    """Let `runs` take turns for `rounds` rounds; every other round goes backwards.

    Args:
        title: of the progress bar.
        runs: by name.
        rounds: how often each runs.
        warm: run all of them once before, unmeasured.
    """
    measured: list[Mapping[str, float]] = []
    with progress.bar(title, (rounds + warm) * len(runs)) as advance:
        for number in range(-int(warm), rounds):
            names = list(runs)[:: 1 if number % 2 == 0 else -1]
            rates = {}
            for name in names:
                rates[name] = runs[name]()
                advance(1, note=name)
            if number >= 0:  # round -1 only warms up
                measured.append(rates)
    return Rates(tuple(measured))


def timed(work: Callable[[], object], units: float, clock: Clock = time.perf_counter) -> Run:
    """Return the run that does `work` and gives `units` a second.

    Args:
        work: it must not return before its work is done, see `synchronize`.
        units: that it does, for instance samples or bytes.
        clock: in seconds.
    """

    def run() -> float:
        start = clock()
        work()
        return units / (clock() - start)

    return run


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
