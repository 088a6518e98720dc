"""The stages of a run: which of them wait, in which order, and what became of the others."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

from pipeline.execution.outcome import Outcome, View
from pipeline.execution.stage import Stage


class Plan:
    """Stages that wait, and what became of the others.

    Args:
        stages: all that are to be looked at, in any order.
        view: is told what becomes of them.
        keep_going: a failure stops only what depends on it.

    Attributes:
        waiting: stages by name; those that most others wait for come first, and each behind all that it depends on.
        outcome: what became of the others.
    """

    def __init__(self, stages: Sequence[Stage], view: View, *, keep_going: bool = False) -> None:
        self.waiting = _by_weight(stages)
        self.outcome = Outcome()
        self._view, self._keep_going = view, keep_going
        self._settled: set[str] = set()  # well: what depends on them may begin

    @property
    def halted(self) -> bool:
        """Whether nothing may begin any more."""
        return bool(self.outcome.failed) and not self._keep_going

    def may_begin(self, stage: Stage) -> bool:
        """Tell whether a stage waits, and all that it depends on has settled well."""
        return stage.name in self.waiting and stage.after <= self._settled

    def take(self, stage: Stage) -> None:
        """Let a stage wait no longer: the next that is said of it is what became of it."""
        del self.waiting[stage.name]

    def ran(self, name: str, seconds: float) -> None:
        """Tell that a stage's commands have run, and that it is recorded."""
        self._settle(name, self.outcome.ran, "ran", seconds)

    def had_run(self, name: str) -> None:
        """Tell that a run before this one has run a stage's commands, and that it is recorded now."""
        self._settle(name, self.outcome.ran, "had run")

    def restored(self, name: str) -> None:
        """Tell that a stage came out of the run cache."""
        self._settle(name, self.outcome.restored, "restored")

    def unchanged(self, name: str) -> None:
        """Tell that a stage was up to date."""
        self._settle(name, self.outcome.unchanged, "unchanged")

    def failed(self, name: str, reason: str, log: Path | None = None, seconds: float | None = None) -> None:
        """Tell that a stage has failed; what depends on it is skipped.

        Args:
            name: the stage's.
            reason: in a line.
            log: what it has printed.
            seconds: that its job has taken.
        """
        self.outcome.failed[name] = reason
        if log is not None:
            self.outcome.logs[name] = log
        self._view.settled(name, "failed", reason, seconds)

        lost = {name}
        for other in list(self.waiting.values()):
            if other.after & lost:
                lost.add(other.name)
                self.take(other)
                self._skip(other.name, name)

    def skipped(self, name: str) -> None:
        """Tell that a stage is skipped because nothing may begin any more."""
        self._skip(name, next(iter(self.outcome.failed)))

    def skip_all(self) -> None:
        """Skip all stages that wait."""
        for stage in list(self.waiting.values()):
            self.take(stage)
            self.skipped(stage.name)

    def stopped(self, name: str, seconds: float) -> None:
        """Tell that a stage was interrupted."""
        self.outcome.stopped.append(name)
        self._view.settled(name, "stopped", "", seconds)

    def stop_all(self) -> None:
        """Stop all stages that wait."""
        self.outcome.stopped += self.waiting
        self.waiting.clear()

    def _settle(self, name: str, listed: list[str], state: str, seconds: float | None = None) -> None:
        listed.append(name)
        self._settled.add(name)
        self._view.settled(name, state, "", seconds)

    def _skip(self, name: str, failed: str) -> None:
        self.outcome.skipped[name] = failed
        self._view.settled(name, "skipped", failed)


def _by_weight(stages: Sequence[Stage]) -> dict[str, Stage]:
    planned = {stage.name: stage for stage in stages}
    order = list(TopologicalSorter({stage.name: stage.after for stage in stages}).static_order())

    later: dict[str, set[str]] = {name: set() for name in planned}
    for name in reversed(order):  # what depends on it has been seen
        for before in planned[name].after:
            later[before] |= {name} | later[name]
    return dict(sorted(planned.items(), key=lambda item: -len(later[item[0]])))
