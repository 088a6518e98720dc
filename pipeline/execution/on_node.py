"""What a node of a Ray cluster does with a job: what `local` does, in a process of Ray that waits for it.

The job's own process ends with Ray's, and Ray's with the run that has asked for it: a lost run leaves nothing behind.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from dataclasses import astuple
from pathlib import Path

from pipeline.artifacts.publish import write_json
from pipeline.execution.job import Job, Progress
from pipeline.execution.local import LocalExecutor

EVERY = 1.0  # seconds between two notes
QUIET = 4.0  # seconds without a new note after which nobody writes them

_executors: list[LocalExecutor] = []  # one: the next job of this process finds its imports done


def run(job: Job, note: Path | None) -> str | None:
    """Run a job in a process of its own, and return why it has failed; None where it has not.

    Args:
        job: what to run.
        note: the file that says all the while where it runs, and how far it is; None where nobody could read it.
    """
    if note is not None:
        _wait_for_lost(note)
    executor = _executor(job)
    try:
        executor.start(job)
        for turn in itertools.count():
            if note is not None:
                _write(note, job, executor, turn)
            if ended := executor.wait(EVERY):
                break
    except KeyboardInterrupt:  # Ray's way to cancel a task
        executor.stop()
        ended = executor.wait(0.0)
    return ended[0].failure if ended else "interrupted"


def _executor(job: Job) -> LocalExecutor:
    """Return this process's executor, whose server starts with the first job."""
    os.environ.update(job.environment)  # OpenMP reads its variables once, when the server imports torch
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
    # Ray blocks it, and the server would inherit that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # Which is Ray's worker: jobs would import it once more.
    vars(sys.modules["__main__"]).pop("__file__", None)
    if not _executors:
        _executors.append(LocalExecutor(1))
    return _executors[0]


def _write(note: Path, job: Job, executor: LocalExecutor, turn: int) -> None:
    import ray

    progress = executor.progress(job) or Progress("", 0, 0)
    node = ray.get_runtime_context().get_node_id()
    write_json(note, {"node": node, "progress": astuple(progress), "turn": turn})


def _wait_for_lost(note: Path) -> None:
    """Wait while another node still runs this job: one that Ray has lost, and that has not noticed it yet."""
    before = None
    while note.exists() and (now := note.read_bytes()) != before:
        before = now
        time.sleep(QUIET)
