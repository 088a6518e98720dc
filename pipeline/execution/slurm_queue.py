"""Which jobs of a run are in Slurm's queue, and how they are taken out of it.

A run that is killed leaves its jobs there: they would go on beside the next run, and queued ones would begin. So their
numbers are kept in a file, and the next run, with whatever executor, interrupts them before it begins. It does not wait
for them: they may take days, and params.yaml may have changed. Little is lost, because a training resumes from its
checkpoint and what had ended has left its mark.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from pipeline.artifacts.publish import read_json, write_json
from pipeline.errors import MachineError
from pipeline.execution.slurm_settings import LOCAL, SLURM

PROGRAMS = ("sbatch", "srun", "sacct", "squeue", "scancel")
GRACE = 30.0  # seconds that interrupted jobs have before they are canceled
PATIENCE = 90.0  # seconds that canceled jobs have: Slurm sends SIGTERM, and SIGKILL half a minute later


class Queue:
    """The jobs of one project.

    Args:
        folder: of the run's own files.
        cluster: "slurm" or a stand-in for it.
    """

    def __init__(self, folder: Path, cluster: str) -> None:
        self.file = folder / "slurm.json"
        self.cluster = cluster

    @classmethod
    def left(cls, folder: Path) -> tuple[Queue, list[str]]:
        """Return the queue of the last run, and the jobs that it may have left there."""
        queue = cls(folder, SLURM)
        if not queue.file.exists():
            return queue, []
        content = read_json(queue.file, "python -m stages.run")
        return cls(folder, content["cluster"]), list(content["jobs"])

    def remember(self, jobs: Iterable[str]) -> None:
        """Keep the numbers of what is in the queue, those of arrays where there are any."""
        numbers = sorted({number(job) for job in jobs})
        if numbers:
            write_json(self.file, {"cluster": self.cluster, "jobs": numbers})
        else:
            self.file.unlink(missing_ok=True)

    def end(self, jobs: Iterable[str]) -> list[str]:
        """Interrupt jobs, cancel those that go on, and return the numbers of those that are there after that."""
        numbers = sorted({number(job) for job in jobs})
        if not numbers:
            return []
        if self.cluster == LOCAL:
            for each in numbers:
                _signal(int(each), signal.SIGTERM)
            return _wait_for(numbers, _local, PATIENCE, every=0.1)

        _call("scancel", "--state=PENDING", *numbers)
        _call("scancel", "--signal=INT", *numbers)
        left = _wait_for(numbers, _queued, GRACE)
        if left:
            _call("scancel", *left)
        return _wait_for(left, _queued, PATIENCE)


def require() -> None:
    """Look for Slurm, before anything is submitted.

    Raises:
        MachineError: its commands are missing, or it keeps no accounts.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise MachineError(
            f"--executor slurm needs Slurm's commands, and this machine has no {', '.join(missing)}. Run it on a "
            "machine that submits to the cluster, or try it here: --slurm cluster=local"
        )
    done = _call("sacct", "--noheader", "--jobs=1")
    if done.returncode:  # of a job that is killed nothing else tells
        raise MachineError(
            "--executor slurm asks Slurm's accounting what became of jobs, and sacct says: "
            f"{' '.join(done.stderr.split()).rstrip('.')}. Ask those who run the cluster."
        )


def number(job: str) -> str:
    """Return the number of a job, or of the array that it belongs to."""
    return job.partition("_")[0]


def end_leftovers(folder: Path) -> None:
    """Interrupt what a run that was killed has left in the queue, and return when it is gone.

    Args:
        folder: of the run's own files.

    Raises:
        MachineError: it does not go, or cannot be reached from here.
    """
    queue, jobs = Queue.left(folder)
    if not jobs:
        return
    by_hand = (
        f"End them there (scancel {' '.join(jobs)}), remove {queue.file}, then run the same command again."
    )
    if queue.cluster == SLURM and shutil.which("scancel") is None:
        raise MachineError(
            f"Jobs {', '.join(jobs)} of an earlier run may be in Slurm's queue, and this machine has no scancel. "
            + by_hand
        )

    print(f"Jobs {', '.join(jobs)} of a run that was killed are interrupted.", file=sys.stderr, flush=True)
    left = queue.end(jobs)
    if left:
        raise MachineError(f"Jobs {', '.join(left)} of an earlier run do not leave Slurm's queue. {by_hand}")
    queue.remember(())


def _wait_for(
    jobs: list[str], look: Callable[[Collection[str]], list[str]], seconds: float, every: float = 1.0
) -> list[str]:
    """Return those that are there after `seconds`."""
    deadline = time.monotonic() + seconds
    while (jobs := look(jobs)) and time.monotonic() < deadline:
        time.sleep(every)
    return jobs


def _queued(jobs: Collection[str]) -> list[str]:
    if not jobs:
        return []
    done = _call("squeue", "--noheader", "--format=%F", f"--jobs={','.join(jobs)}")
    if (
        done.returncode and "Invalid job id" not in done.stderr
    ):  # Slurm forgets jobs; else it has not answered
        return list(jobs)
    return [job for job in jobs if job in done.stdout.split()]


def _local(jobs: Collection[str]) -> list[str]:
    return [job for job in jobs if _is_controller(int(job))]


def _is_controller(pid: int) -> bool:
    """Tell whether a process is submitit's, which watches a job on this machine: its number may be another's by now."""
    try:
        return b"submitit.local._local" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _signal(pid: int, which: signal.Signals) -> None:
    if _is_controller(pid):
        os.kill(pid, which)


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
