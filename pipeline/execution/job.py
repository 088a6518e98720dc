"""Contract of an executor: what it is given, and what it says of it.

An executor runs commands somewhere: in processes of this machine (`local`), on the nodes of a Ray cluster (`ray`), or
as jobs of Slurm (`slurm`). It knows nothing of DVC; the scheduler (`scheduler`) tells it what to run, and when.

Example:
    executor.start(job)                  # returns at once
    for ended in executor.wait(1.0): ... # jobs that have ended since, after a second at most
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter

from pipeline.execution.done import Mark

TAIL = 1 << 16  # bytes of a log that are searched for an error
SHOWN = 300  # letters of a line that is no error of ours


@dataclass(frozen=True)
class Job:
    """Commands that run one after another, up to the first that fails.

    Attributes:
        name: for people; the stage's, or the stages' where several share a process.
        commands: as a shell reads them.
        folder: that they run in.
        environment: variables that are theirs, beside those of the executor.
        log: the file that takes what they print.
        gpu: the job computes on a GPU where there is one.
        marks: left by the executor once all commands have ended well.
        stages: whose commands these are.
    """

    name: str
    commands: tuple[str, ...]
    folder: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    gpu: bool = False
    marks: tuple[Mark, ...] = ()
    stages: tuple[str, ...] = ()


def to_json(job: Job) -> str:
    """Return a job as text, for another machine."""
    return TypeAdapter(Job).dump_json(job).decode()


def from_json(text: str) -> Job:
    """Return the job of a text."""
    return TypeAdapter(Job).validate_json(text)


@dataclass(frozen=True)
class Ended:
    """A job that has ended.

    Attributes:
        job: the job.
        failure: why it has no result, in a line; None where it has one.
    """

    job: Job
    failure: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        title: what it does.
        done: units of work done.
        total: units of work in all.
        note: what its bar shows beside them.
    """

    title: str
    done: int
    total: int
    note: str = ""


class Executor(Protocol):
    """Runs jobs."""

    @property
    def places(self) -> int:
        """How many students compute at a time at most: ready ones are divided between as many processes."""
        ...

    def free(self, *, gpu: bool) -> bool:
        """Tell whether a job of this kind would start at once."""
        ...

    def start(self, job: Job) -> str:
        """Start a job, and return where it runs, for people; `free` has been asked."""
        ...

    def wait(self, seconds: float) -> Sequence[Ended]:
        """Return the jobs that have ended since it was asked last, after `seconds` at most where there is none."""
        ...

    def progress(self, job: Job) -> Progress | None:
        """Return how far a running job is, or None where it does not say."""
        ...

    def stop(self) -> None:
        """Interrupt all jobs, and return when they have ended: a training may resume from its checkpoint."""
        ...

    def close(self) -> None:
        """Give back what the executor holds."""
        ...


def ending(status: int, memory: str) -> str:
    """Say how a process has ended.

    Args:
        status: its exit status, negative for a signal.
        memory: what the user might do, or should know, where it was killed as the system kills for want of memory.
    """
    if -status not in set(signal.Signals):
        return f"exit status {status if status > 0 else 128 - status}"
    because = f" ({memory})" if -status == signal.SIGKILL else ""
    return f"it was killed by {signal.Signals(-status).name}{because}"


def failure(log: Path, status: str) -> str:
    """Return in a line why a job has failed: its own last error line, or its last line.

    Args:
        log: what it has printed.
        status: how it ended, for instance "exit status 1".
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1].removeprefix("error: ")
    return f"{status}: {lines[-1][:SHOWN]}" if lines else status
