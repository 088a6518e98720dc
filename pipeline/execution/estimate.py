"""How long a run will still take, by how long its stages have taken so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Running:
    """A stage that runs.

    Attributes:
        elapsed: seconds since it started.
        left: seconds that it needs for what it does now; None where nobody knows.
    """

    elapsed: float
    left: float | None = None


@dataclass(frozen=True)
class Left:
    """How long a run will still take.

    Attributes:
        seconds: about so many.
        least: stages wait whose like has not ended yet: it will be more.
    """

    seconds: float
    least: bool


class Estimate:
    """Expects of a stage what others of its kind have taken, and that as many will run at once as did so far.

    The kind is what stands before the `@` of a name: all students of `distill` are one, however large they are. Stages
    that were up to date count with no time, so where some of a kind are, the others are expected to be, too.

    Args:
        names: of all stages of the run.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._waiting = dict.fromkeys(names)  # as a set that keeps its order
        self._taken: defaultdict[str, list[float]] = defaultdict(list)  # seconds, by kind

    def settle(self, name: str, seconds: float | None, *, counts: bool = True) -> None:
        """Take in what has become of a stage.

        Args:
            name: the stage's.
            seconds: that it has taken; None where it did not run.
            counts: it has ended well, so others of its kind are expected to take as long.
        """
        self._waiting.pop(name, None)
        if counts:
            self._taken[_kind(name)].append(seconds or 0.0)

    def left(self, wall: float, running: Mapping[str, Running]) -> Left | None:
        """Return how long the run will still take; None before anything is known.

        Args:
            wall: seconds since the run began.
            running: the stages that run, by name.
        """
        busy = sum(sum(taken) for taken in self._taken.values()) + sum(x.elapsed for x in running.values())
        if not busy or not wall:
            return None

        work, least, longest = 0.0, False, 0.0
        for name in self._waiting:
            expected = fmean(taken) if (taken := self._taken.get(_kind(name))) else None
            if name in running:
                now = running[name]
                own = now.left if expected is None else max(now.left or 0.0, expected - now.elapsed)
            else:
                own = expected
            least |= own is None
            work += own or 0.0
            longest = max(longest, own or 0.0)
        # However many run at once, none is shorter than itself.
        seconds = max(longest, work / max(1.0, busy / wall))
        return Left(seconds, least) if seconds else None


def _kind(name: str) -> str:
    return name.partition("@")[0]
