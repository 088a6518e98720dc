"""Which stage runs next: all whose upstream stages have ended, as many at a time as the executor has room for.

The result is that of `dvc repro`, which takes them one after another. What is new is the order:

* Of the stages that could start, the one that most others wait for starts first.
* Stages that may share a process (`meta.cohort` in dvc.yaml) go to one, if they have the same data and batch size.
* A stage that has ended is recorded after the next one has started: hashing does not leave a slot idle.

A stage that fails does not take back what others do: those that run are let end and are recorded. Without `keep_going`
nothing starts after it, with it all that does not depend on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from pipeline.errors import MachineError, StillhouseError
from pipeline.execution import cohort as cohorts
from pipeline.execution.cohort import Group
from pipeline.execution.job import Ended, Executor, Job
from pipeline.execution.outcome import Outcome, View
from pipeline.execution.plan import Plan
from pipeline.execution.recorder import Recorder
from pipeline.execution.stage import Stage, Verdict, file_name

POLL = 0.5  # seconds between two looks at how far jobs are


@dataclass(frozen=True)
class _Running:
    job: Job
    group: Group
    start: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


class Scheduler:
    """Runs a plan.

    Args:
        stages: all that are to be looked at.
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
        self._plan = Plan(stages, view, keep_going=keep_going)
        self._recorder, self._executor, self._view = recorder, executor, view
        self._cohort, self._keep_going, self._force = cohort, keep_going, force
        self._begun: set[str] = set()  # and neither recorded nor released
        self._running: dict[str, _Running] = {}  # by the job's name
        self._ended: list[Ended] = []  # of those that run: what has ended, and is not recorded
        self._stopping: Callable[[], bool] = lambda: False

    def run(self, stopping: Callable[[], bool] = lambda: False) -> Outcome:
        """Run everything that is out of date.

        Args:
            stopping: tells whether the user has asked to stop: then all jobs are interrupted, and what has ended
                well is recorded.

        Raises:
            MachineError: the executor has no place for a stage.
        """
        self._stopping = stopping
        try:
            while (self._plan.waiting or self._running) and not stopping():
                self._turn()
        except BaseException:
            self._stop()
            raise
        if self._plan.waiting or self._running:
            self._stop()
        return self._plan.outcome

    def _turn(self) -> None:
        """Start what can start, and take in what has ended."""
        if self._plan.halted:
            self._plan.skip_all()
        self._fill()

        if self._running:
            self._ended += self._executor.wait(POLL)
            if self._ended and (self._keep_going or not any(each.failure for each in self._ended)):
                self._fill()
            self._settle()
            self._view.moved(
                {name: self._executor.progress(each.job) for name, each in self._running.items()}
            )
        elif self._plan.waiting and not self._plan.halted and not self._stopping():
            raise MachineError(f"There is no place for {next(iter(self._plan.waiting))} to run.")

    # --- What starts ---

    def _fill(self) -> None:
        """Begin and start stages, in their order, as long as there is room.

        One pass is enough: a stage stands behind all that it depends on.
        """
        for stage in list(self._plan.waiting.values()):
            if self._plan.halted or self._stopping():
                return
            # A stage that is begun has lost its outs: not before its turn has come.
            if self._plan.may_begin(stage) and self._executor.free(gpu=stage.gpu):
                self._start(self._begin(stage))

    def _begin(self, first: Stage) -> list[Stage]:
        """Begin a stage and those that share its process, and return which of them must run."""
        company = [first]
        if self._cohort > 1 and first.each:
            candidates = [each for each in self._plan.waiting.values() if self._plan.may_begin(each)]
            company = cohorts.company(first, candidates, self._recorder.working_folder)
        ended = {each.job.name for each in self._ended}
        taken = sum(each.group.gpu == first.gpu for name, each in self._running.items() if name not in ended)
        most = min(self._cohort, math.ceil(len(company) / max(1, self._executor.places - taken)))

        begun: list[Stage] = []
        for stage in company:
            if len(begun) == most or self._plan.halted:
                break
            if self._must_run(stage):
                begun.append(stage)
        return begun

    def _must_run(self, stage: Stage) -> bool:
        """Begin a stage; where its commands need not run, that is its end."""
        name = stage.name
        self._plan.take(stage)
        try:
            verdict = self._recorder.begin(name, force=self._force)
        except StillhouseError as error:
            self._plan.failed(name, str(error))
            return False

        if verdict is Verdict.TO_RUN:
            self._begun.add(name)
            return True
        if verdict is Verdict.UNCHANGED:
            self._plan.unchanged(name)
        elif verdict is Verdict.RESTORED:
            self._plan.restored(name)
        else:
            self._plan.had_run(name)
        return False

    def _start(self, stages: Sequence[Stage]) -> None:
        """Start stages that were begun as one job, unless another of their company has failed meanwhile."""
        if not stages:
            return
        if self._plan.halted:
            for stage in stages:
                self._release(stage.name)
                self._plan.skipped(stage.name)
            return

        group = cohorts.group(stages)
        job = self._job(group)
        self._running[job.name] = _Running(job, group, time.monotonic())
        try:
            place = self._executor.start(job)
        except StillhouseError as error:
            del self._running[job.name]
            for stage in stages:
                self._release(stage.name)
                self._plan.failed(stage.name, str(error))
        else:
            self._view.started(job, place)

    def _job(self, group: Group) -> Job:
        first = group.stages[0].name
        return Job(
            group.name,
            group.commands,
            self._recorder.working_folder(first),
            self._recorder.folder / "logs" / f"{file_name(first)}.log",
            self._recorder.environment(first),
            group.gpu,
            tuple(self._recorder.mark(stage.name) for stage in group.stages),
            tuple(stage.name for stage in group.stages),
        )

    # --- What has ended ---

    def _settle(self, interrupted: Collection[str] = ()) -> None:
        """Record what has ended well, and release the rest.

        Whatever raises meanwhile, each stage is handed back once: it leaves `_begun` before it is.

        Args:
            interrupted: jobs that fail because they were stopped.
        """
        for each in self._ended:
            self._view.recording(each.job)
        begun = [
            (stage, each, self._running[each.job.name])
            for each in self._ended
            for stage in self._running[each.job.name].group.stages
            if stage.name in self._begun
        ]
        made = {stage.name: job for stage, each, job in begun if _has_result(stage, each, job)}
        refused = self._record(list(made)) if made else {}
        for name, running in made.items():
            if name in refused:
                self._plan.failed(name, refused[name], running.job.log, running.seconds)
            else:
                self._plan.ran(name, running.seconds)

        for stage, each, running in begun:
            if stage.name in made:
                continue
            self._release(stage.name)
            if each.job.name in interrupted:
                self._plan.stopped(stage.name, running.seconds)
            else:
                self._plan.failed(stage.name, each.failure or "", running.job.log, running.seconds)

        while self._ended:
            job = self._ended.pop().job
            del self._running[job.name]
            self._view.ended(job)

    def _record(self, names: Sequence[str]) -> Mapping[str, str]:
        self._begun.difference_update(names)
        try:
            return self._recorder.record(names)
        except StillhouseError as error:
            return dict.fromkeys(names, str(error))

    def _release(self, name: str) -> None:
        self._begun.remove(name)
        self._recorder.release(name)

    def _stop(self) -> None:
        """Stop all jobs, record what has ended well meanwhile, and give back what else was begun."""
        with ExitStack() as stack:
            stack.callback(self._release_all)
            if self._running:
                before = {each.job.name for each in self._ended}
                self._executor.stop()
                self._ended += self._executor.wait(0.0)
                self._settle(self._running.keys() - before)
        self._plan.stop_all()

    def _release_all(self) -> None:
        with ExitStack() as stack:  # one that raises does not keep the others
            for name in sorted(self._begun):
                stack.callback(partial(self._release, name))
                self._plan.outcome.stopped.append(name)


def _has_result(stage: Stage, ended: Ended, running: _Running) -> bool:
    """Tell whether a stage has run: of several in one process some may have failed, and a folder is made whole."""
    if ended.failure is None:
        return True
    return len(running.group.stages) > 1 and bool(stage.outs) and all(out.exists() for out in stage.outs)
