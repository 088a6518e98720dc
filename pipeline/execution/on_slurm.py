"""Jobs of Slurm, through submitit: queueing and placement are theirs.

What the scheduler starts between two looks at it is a frontier, and goes into the queue as one array, or as two where
some of it computes on a GPU. Nodes and this machine share the project's folder. What a node does is in `slurm_node`,
what a killed run leaves behind in `slurm_queue`.
"""

from __future__ import annotations

import io
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ParamsError
from pipeline.execution.job import Ended, Job, Progress, failure
from pipeline.execution.slurm_node import INTERRUPTED, NodeJob
from pipeline.execution.slurm_queue import Queue, require
from pipeline.execution.slurm_settings import SLURM, Settings

if TYPE_CHECKING:
    from submitit import AutoExecutor
    from submitit import Job as Submitted

EVERY = 0.2  # seconds between two looks for what has ended
ASKING = 60.0  # seconds at most between two questions to Slurm; submitit's own are up to ten minutes
LATENCY = 10.0  # seconds after a job's end in which a shared file system shows what it has left

_CURES = {
    "TIMEOUT": "Give it more: --slurm time=MINUTES",
    "OUT_OF_MEMORY": "Give it more: --slurm mem=32GB",
    "NODE_FAIL": "Run the same command again",
}


@dataclass
class _Queued:
    """A job in the queue."""

    job: Job
    submitted: Submitted[str | None]
    since: float | None = None  # the first look at which it had ended, without a result

    @property
    def has_returned(self) -> bool:
        return self.submitted.paths.result_pickle.exists()


class SlurmExecutor:
    """Runs jobs through Slurm.

    Args:
        folder: of the run's own files, on a file system that the nodes share.
        settings: of the jobs.
        most: jobs in the queue at a time; None leaves it to Slurm.
        cpu: compute on the CPU even where a node has a GPU.

    Raises:
        MachineError: Slurm's commands are missing, or its accounting.
        ParamsError: settings that submitit refuses.
    """

    def __init__(
        self, folder: Path, settings: Settings, most: int | None = None, *, cpu: bool = False
    ) -> None:
        if settings.cluster == SLURM:
            require()
        logging.getLogger("submitit").setLevel(logging.ERROR)
        self._cluster, self._most = settings.cluster, most
        self._environment = {"STILLHOUSE_DEVICE": "cpu"} if cpu else {}
        self._queue = Queue(folder, settings.cluster)
        self._folder = folder / "slurm"
        shutil.rmtree(self._folder, ignore_errors=True)  # the last run's
        self._executors = {True: self._executor(settings.gpu), False: self._executor(settings.cpu)}
        self._frontier: list[Job] = []
        self._grown = False
        self._queued: dict[str, _Queued] = {}
        self._ended: list[Ended] = []
        self._asked = 0.0

    @property
    def places(self) -> int:
        """How many students compute at a time at most; where Slurm decides it, that is one: cohorts are whole."""
        return self._most or 1

    def free(self, *, gpu: bool) -> bool:
        """Tell whether a job would go into the queue."""
        return self._most is None or len(self._queued) + len(self._frontier) < self._most

    def start(self, job: Job) -> str:
        """Put a job among those that are submitted next, and return what its node must have."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_bytes(b"")
        self._frontier.append(job)
        self._grown = True
        return f"{self._cluster}, {'GPU' if job.gpu and not self._environment else 'cpu'}"

    def wait(self, seconds: float) -> Sequence[Ended]:
        """Return the jobs that have ended since it was asked last, after `seconds` at most where there is none.

        It returns at once where jobs have been started since: those that are ready may not be all of the frontier yet.
        """
        deadline = time.monotonic() + seconds
        if self._grown:
            self._grown = False
            return self._take()
        self._submit()
        while not self._ended:
            self._collect()
            if self._ended or not self._queued or time.monotonic() >= deadline:
                break
            time.sleep(min(EVERY, max(0.0, deadline - time.monotonic())))
        return self._take()

    def progress(self, job: Job) -> Progress | None:
        """Return the job's state in the queue; what a stage has done is in its log."""
        each = self._queued.get(job.name)
        state = "UNKNOWN" if each is None else each.submitted.state
        return Progress("submitted" if state == "UNKNOWN" else state.lower(), 0, 0)

    def stop(self) -> None:
        """Interrupt all jobs, and return when they have left the queue."""
        self._ended += [Ended(job, "interrupted before it was submitted") for job in self._frontier]
        self._frontier.clear()
        left = self._queue.end(each.submitted.job_id for each in self._queued.values())
        if left:
            print(
                f"Jobs {', '.join(left)} do not leave Slurm's queue: scancel {' '.join(left)}. The next stages.run "
                "interrupts them again.",
                file=sys.stderr,
            )

        for each in self._queued.values():
            each.submitted.done()  # it looks at the folder anew, which a shared file system may have an old list of
            self._ended.append(Ended(each.job, self._result(each) if each.has_returned else INTERRUPTED))
        self._queued.clear()
        self._queue.remember(left)

    def close(self) -> None:
        """Stop what runs."""
        self.stop()
        self._ended.clear()

    # --- Into the queue ---

    def _executor(self, parameters: Any) -> AutoExecutor:
        from submitit import AutoExecutor

        try:
            executor = AutoExecutor(self._folder, cluster=self._cluster)
            executor.update_parameters(**parameters)
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise ParamsError(f"submitit refuses the settings of --slurm: {_line(error)}") from None
        return executor

    def _submit(self) -> None:
        """Submit the frontier, as one array of jobs on GPUs and one of the others."""
        frontier, self._frontier = self._frontier, []
        for gpu, executor in self._executors.items():
            jobs = [job for job in frontier if job.gpu == gpu]
            if not jobs:
                continue
            try:
                with redirect_stderr(io.StringIO()), executor.batch():
                    submitted = [executor.submit(NodeJob(self._with_own(job))) for job in jobs]
            except Exception as error:  # submitit has no class of its own for what sbatch says
                reason = (
                    f"{self._cluster} refuses it: {_line(error)}. Change --slurm, and see sbatch's manual."
                )
                self._ended += [Ended(job, reason) for job in jobs]
                continue
            self._queued |= {job.name: _Queued(job, each) for job, each in zip(jobs, submitted, strict=True)}
            self._remember()

    def _with_own(self, job: Job) -> Job:
        return replace(job, environment={**job.environment, **self._environment})

    # --- Out of the queue ---

    def _take(self) -> Sequence[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def _collect(self) -> None:
        for name, each in list(self._queued.items()):
            if not each.submitted.done(force_check=self._is_due()):
                continue
            if each.has_returned:
                reason = self._result(each)
            elif self._cluster == SLURM and not self._late(each):
                continue
            else:
                reason = self._killed(each)
            del self._queued[name]
            self._ended.append(Ended(each.job, reason))
        if self._ended:
            self._remember()

    def _remember(self) -> None:
        self._queue.remember(each.submitted.job_id for each in self._queued.values())

    def _is_due(self) -> bool:
        """Tell whether Slurm is asked now: once for all jobs."""
        due = time.monotonic() - self._asked > ASKING
        if due:
            self._asked = time.monotonic()
        return due

    def _late(self, each: _Queued) -> bool:
        now = time.monotonic()
        each.since = now if each.since is None else each.since
        return now - each.since > LATENCY

    def _result(self, each: _Queued) -> str | None:
        """Return what a job has returned: why it has failed, or None."""
        from submitit.core.utils import UncompletedJobError

        try:
            return each.submitted.result()
        except UncompletedJobError:  # it was not even called, or it was requeued too often
            return failure(each.submitted.paths.stderr, f"{self._what(each)} has failed")

    def _killed(self, each: _Queued) -> str:
        """Return in a line why a job has ended without a result."""
        state, what = each.submitted.state, self._what(each)
        begun = each.job.log.exists() and each.job.log.stat().st_size > 0
        if not begun and state.startswith(("FAILED", "COMPLETED", "FINISHED")):
            words = (
                f"{what} ended as {state} before it began: the node must have the folder {each.job.folder} and "
                f"{sys.executable}. Keep both on a file system that all nodes share, or choose nodes by --slurm"
            )
        else:
            cure = next((cure for name, cure in _CURES.items() if state.startswith(name)), "See its log")
            words = f"{what} ended as {state}. {cure}; its log is {each.job.log}"
        return failure(each.submitted.paths.stderr, f"{words}; Slurm's is {each.submitted.paths.stderr}")

    def _what(self, each: _Queued) -> str:
        node = each.submitted.get_info(mode="cache").get("NodeList", "") if self._cluster == SLURM else ""
        return f"Job {each.submitted.job_id}" + (f" on {node}" if node else "")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or "nothing"
