"""Which stage runs next: all whose upstream stages have ended, as many at a time as the executor has room for.

The result is that of `dvc repro`, which takes them one after another. What is new is the order:

* Of the stages that could start, the one that most others wait for starts first.
* Stages that may share a process (`meta.cohort` in dvc.yaml) go to one, if they have the same data and batch size.
* A stage that has ended is recorded after the next one has started: hashing does not leave a slot idle.

A stage that fails does not take back what others do: those that run are let end and are recorded. Without `keep_going`
nothing starts after it, with it all that does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.errors import MachineError, StillhouseError
from pipeline.execution.cohort import Group, groups
from pipeline.execution.done import Mark
from pipeline.execution.job import Ended, Executor, Job, Progress
from pipeline.execution.stage import Stage, Verdict

POLL = 0.5  # seconds between two looks at how far jobs are


class Recorder(Protocol):
    """What the scheduler asks of DVC; see `pipeline.execution.repository.Repository`."""

    @property
    def folder(self) -> Path:
        """A folder of the run's own files."""
        ...

    def begin(self, name: str, *, force: bool = False) -> Verdict:
        """Make a stage ready to run, if it must."""
        ...

    def record(self, names: Sequence[str]) -> dict[str, str]:
        """Record stages that have run; return why one could not be."""
        ...

    def release(self, name: str) -> None:
        """Give back what a stage that has failed was holding."""
        ...

    def mark(self, name: str) -> Mark:
        """Return what is to be left when a begun stage has run."""
        ...

    def environment(self, name: str) -> dict[str, str]:
        """Return the variables that DVC gives to a stage's commands."""
        ...

    def working_folder(self, name: str) -> Path:
        """Return the folder that a stage's commands run in."""
        ...


class View(Protocol):
    """What a run looks like to people; see `pipeline.execution.view`."""

    def started(self, job: Job, place: str) -> None:
        """Tell that a job has started at a place."""
        ...

    def ended(self, job: Job) -> None:
        """Tell that a job has ended, and what it leaves is about to be recorded."""
        ...

    def settled(self, name: str, state: str, reason: str = "") -> None:
        """Tell what became of a stage: one of the lists of `Outcome`, by its name."""
        ...

    def moved(self, progress: Mapping[str, Progress | None]) -> None:
        """Show how far the running jobs are, by their names."""
        ...


@dataclass
class Outcome:
    """What became of the stages.

    Attributes:
        ran: those whose commands have run.
        restored: those that came out of the run cache.
        unchanged: those that were up to date.
        failed: why, in a line, by name.
        skipped: the failed stage that one was skipped for, by name.
    """

    ran: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


class Scheduler:
    """Runs a plan.

    Args:
        stages: in an order in which they could run one after another.
        recorder: DVC.
        executor: where jobs run.
        view: is told what happens.
        cohort: how many students share a process at most.
        keep_going: after a failure start what does not depend on it.
        force: run stages that are up to date too.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        recorder: Recorder,
        executor: Executor,
        view: View,
        *,
        cohort: int = 1,
        keep_going: bool = False,
        force: bool = False,
    ) -> None:
        self.outcome = Outcome()
        self._recorder, self._executor, self._view = recorder, executor, view
        self._cohort, self._keep_going, self._force = cohort, keep_going, force
        self._waiting = _by_weight(stages)
        self._ready: dict[str, Stage] = {}  # begun: they run as soon as there is room
        self._running: dict[str, tuple[Job, Group]] = {}  # by the job's name
        self._settled: set[str] = set()

    def run(self, stopping: Callable[[], bool] = lambda: False) -> Outcome:
        """Run everything that is out of date.

        Args:
            stopping: tells whether the user has asked to stop: then what has ended is recorded, and all jobs are
                interrupted.

        Raises:
            MachineError: the executor has no place for a stage.
        """
        try:
            while self._waiting or self._ready or self._running:
                if stopping():
                    self._interrupt()
                    break
                if self._stopped():
                    self._drop()
                else:
                    self._fill()
                if self._running:
                    self._settle(self._executor.wait(POLL))
                    self._view.moved(
                        {name: self._executor.progress(job) for name, (job, _) in self._running.items()}
                    )
                elif self._ready or (self._waiting and not self._stopped()):
                    raise MachineError(
                        f"There is no place for {next(iter(self._ready | self._waiting))} to run."
                    )
        except BaseException:
            self._interrupt()
            raise
        return self.outcome

    # --- One turn ---

    def _fill(self) -> None:
        """Begin and start stages, in their order, for as long as there is room; none has room afterwards.

        One pass is enough: a stage stands behind all that it depends on.
        """
        self._start()
        for name, stage in list(self._waiting.items()):
            if name not in self._waiting or not stage.after <= self._settled or not self._room(stage):
                continue
            del self._waiting[name]
            try:
                verdict = self._recorder.begin(name, force=self._force)
            except StillhouseError as error:
                self._fail(name, str(error))
                if self._stopped():
                    return
                continue

            if verdict is Verdict.UNCHANGED:
                self.outcome.unchanged.append(name)
                self._done(name, "unchanged")
            elif verdict is Verdict.RESTORED:
                self.outcome.restored.append(name)
                self._done(name, "restored")
            elif verdict is Verdict.ADOPTED:
                self.outcome.ran.append(name)
                self._done(name, "had run")
            else:
                self._ready[name] = stage
                if not self._shares(stage):
                    self._start()
        self._start()

    def _room(self, stage: Stage) -> bool:
        """Tell whether a stage would start at once, or may share the process of one that will."""
        if not self._executor.free(gpu=stage.gpu):
            return False
        # What is begun has lost its outs: not before its turn has come.
        first = [other for other in self._ready.values() if other.gpu == stage.gpu]
        return not first or (
            self._shares(stage) and first[0].kind == stage.kind and len(first) < self._cohort
        )

    def _shares(self, stage: Stage) -> bool:
        return self._cohort > 1 and bool(stage.each)

    def _start(self) -> None:
        for group in groups(list(self._ready.values()), self._cohort):
            if not self._executor.free(gpu=group.gpu):
                continue
            for stage in group.stages:
                del self._ready[stage.name]
            job = self._job(group)
            self._running[job.name] = (job, group)
            self._view.started(job, self._executor.start(job))

    def _settle(self, jobs: Sequence[Ended]) -> None:
        """Record what has ended, after what it makes room for has started."""
        if not jobs:
            return
        for each in jobs:
            self._view.ended(each.job)
        if not self._stopped() and not any(each.failure for each in jobs):
            self._fill()

        made: list[str] = []
        for each in jobs:
            _, group = self._running.pop(each.job.name)
            for stage in group.stages:
                # Of several in one process some may have failed: a student's folder is there whole or not at all.
                if each.failure is None or (
                    len(group.stages) > 1 and all(out.exists() for out in stage.outs)
                ):
                    made.append(stage.name)
                else:
                    self._recorder.release(stage.name)
                    self._fail(stage.name, each.failure)

        refused = self._recorder.record(made) if made else {}
        for name in made:
            if name in refused:
                self._fail(name, refused[name])
            else:
                self.outcome.ran.append(name)
                self._done(name, "ran")

    # --- What became of a stage ---

    def _done(self, name: str, state: str) -> None:
        self._settled.add(name)
        self._view.settled(name, state)

    def _fail(self, name: str, reason: str) -> None:
        self.outcome.failed[name] = reason
        self._view.settled(name, "failed", reason)
        lost = {name}
        for other, stage in list(self._waiting.items()):
            if stage.after & lost:
                lost.add(other)
                self._skip(other, name)

    def _skip(self, name: str, failed: str) -> None:
        del self._waiting[name]
        self.outcome.skipped[name] = failed
        self._view.settled(name, "skipped", failed)

    def _stopped(self) -> bool:
        return bool(self.outcome.failed) and not self._keep_going

    def _drop(self) -> None:
        """Let nothing start any more."""
        failed = next(iter(self.outcome.failed))
        for name in list(self._ready):
            del self._ready[name]
            self._recorder.release(name)
            self.outcome.skipped[name] = failed
            self._view.settled(name, "skipped", failed)
        for name in list(self._waiting):
            self._skip(name, failed)

    def _interrupt(self) -> None:
        """Stop all jobs; those that have ended well meanwhile are recorded."""
        for name in list(self._ready):
            del self._ready[name]
            self._recorder.release(name)
        self._executor.stop()
        ended = self._executor.wait(0.0)
        self._waiting.clear()
        self._settle(ended)

    def _job(self, group: Group) -> Job:
        first = group.stages[0].name
        log = self._recorder.folder / "logs" / f"{first.replace('/', '%')}.log"
        environment = self._recorder.environment(first)
        return Job(
            group.name, group.commands, self._recorder.working_folder(first), log, environment, group.gpu
        )


def _by_weight(stages: Sequence[Stage]) -> dict[str, Stage]:
    """Return stages by name: those that most others wait for first, so each stands behind all that it depends on."""
    planned = {stage.name: stage for stage in stages}
    later: dict[str, set[str]] = {name: set() for name in planned}
    for stage in reversed(stages):  # what depends on it has been seen
        for name in stage.after:
            later[name] |= {stage.name} | later[stage.name]
    return dict(sorted(planned.items(), key=lambda item: -len(later[item[0]])))
