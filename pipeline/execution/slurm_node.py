"""What a job of Slurm does on its node: its commands, one after another, in a shell.

submitit unpickles it there and calls it. Before Slurm takes the node away (preemption, or the end of the time), it
signals submitit, which asks for `checkpoint` and queues the job again: a training resumes from its own checkpoint.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.execution.job import Job, ending, failure
from pipeline.execution.worker import in_shell

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

GRACE = 60.0  # seconds that an interrupted command has to write its checkpoint; submitit's signal comes 90 s early
INTERRUPTED = "interrupted"
MEMORY = "its memory may be too small: --slurm mem=..."
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # by which Slurm, submitit and people end a job


class NodeJob:
    """A job, as it is pickled and called on a node."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> str | None:
        """Run the commands and leave the marks; return in a line why it has failed, or None."""
        job, node = self.job, socket.gethostname()
        if not job.folder.is_dir():
            return f"Node {node} has no folder {job.folder}. Keep the project on a file system that all nodes share."
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            # There Ctrl-C would kill this process after a second, and its command would live on.
            signal.signal(signal.SIGTERM, signal.default_int_handler)

        with job.log.open("ab", buffering=0) as log:
            log.write(f"[job {_id()} on {node}]\n".encode())
        try:
            for command in job.commands:
                status = self._run(command)
                if status:
                    return failure(job.log, ending(status, MEMORY))
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would end this before its command
            self._interrupt()
            return INTERRUPTED
        finally:
            self._kill()
        for mark in job.marks:
            mark.leave()
        return None

    def checkpoint(self) -> DelayedSubmission:
        """Interrupt the command, and return what is to be done when the job has a node again: all of it."""
        from submitit.core.utils import DelayedSubmission

        self._interrupt()
        return DelayedSubmission(NodeJob(self.job))

    def _run(self, command: str) -> int:
        environment = {**os.environ, **self.job.environment}
        # A signal between the command's start and its name here would leave it running.
        with self.job.log.open("ab") as log, _deferred():
            self._process = subprocess.Popen(
                in_shell(command, environment),
                cwd=self.job.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        # Not Popen.wait: its lock would be taken when a signal's handler wants to know whether the command has ended.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return self._process.wait()

    def _interrupt(self) -> None:
        """Interrupt the command with all that it has started, and wait for its end."""
        if self._process is None or self._process.returncode is not None:
            return
        _signal(self._process.pid, signal.SIGINT)
        deadline = time.monotonic() + GRACE
        while not _has_ended(self._process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            _signal(self._process.pid, signal.SIGKILL)


@contextmanager
def _deferred() -> Iterator[None]:
    """Let signals that end a job wait until the block has ended; a child that starts in it inherits nothing of that."""
    arrived: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, wait) for number in ASKING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for each in arrived:
        signal.raise_signal(each)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:  # it has been waited for
        return True


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended
        os.killpg(group, number)


def _id() -> str:
    from submitit import JobEnvironment

    return JobEnvironment().job_id
