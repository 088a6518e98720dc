"""Jobs in processes of this machine, each a fork of one server that has the imports of all stages (`server`).

The cores are divided between the slots: a process computes with its share of threads at most. With one slot nothing is
set, and a stage computes as it does by hand.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

from pipeline.execution import server, worker
from pipeline.execution.job import Ended, Job, Progress, ending, failure

GRACE = 20.0  # seconds that an interrupted job has to write its checkpoint
WHOLE, PART = 4, 0.25  # cores up to which each has a slot, and the part of more that have one


@dataclass
class _Running:
    """A job, and the process of its command that runs now."""

    job: Job
    gpu: str | None
    environment: dict[str, str]
    left: list[str]
    process: ForkServerProcess
    messages: Connection
    progress: Progress | None = None


class LocalExecutor:
    """Runs jobs on this machine.

    Args:
        slots: jobs at a time.
        gpus: the GPUs, as CUDA_VISIBLE_DEVICES names them; a job that computes on one has it for itself. None of
            them, and it computes on the CPU.
        cpu: compute on the CPU even where there is a GPU.
    """

    def __init__(self, slots: int, gpus: Sequence[str] = (), *, cpu: bool = False) -> None:
        self.slots = slots
        self._gpus = list(gpus)
        self._cpu = cpu
        self._running: dict[str, _Running] = {}
        self._ended: list[Ended] = []
        self._threads = _share_of_threads(slots)
        self._stopping = False

    @property
    def places(self) -> int:
        """How many students compute at a time at most."""
        return len(self._gpus) or self.slots

    def free(self, *, gpu: bool) -> bool:
        """Tell whether a job of this kind would start at once."""
        room = len(self._running) < self.slots
        if not gpu or not self._gpus:
            return room
        return room and len(self._gpus) > sum(each.gpu is not None for each in self._running.values())

    def start(self, job: Job) -> str:
        """Start a job, and return the GPU that it runs on, or "cpu"."""
        taken = {each.gpu for each in self._running.values()}
        gpu = next((gpu for gpu in self._gpus if gpu not in taken), None) if job.gpu else None
        environment = {**os.environ, **job.environment, **self._device(gpu)}
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_bytes(b"")

        left = list(job.commands)
        process, messages = self._process(job, left, environment)
        self._running[job.name] = _Running(job, gpu, environment, left, process, messages)
        self._stopping = False
        return "cpu" if gpu is None else f"GPU {gpu}"

    def wait(self, seconds: float) -> Sequence[Ended]:
        """Return the jobs that have ended since it was asked last, after `seconds` at most where there is none."""
        deadline = time.monotonic() + seconds
        while not self._ended and self._running:
            by_end: dict[int | Connection, _Running] = {}
            for each in self._running.values():
                by_end[each.process.sentinel] = by_end[each.messages] = each
            ready = connection.wait(list(by_end), max(0.0, deadline - time.monotonic()))
            for each in {id(each): each for one, each in by_end.items() if one in ready}.values():
                self._listen(each)
                if not each.process.is_alive():
                    self._next(each)
            if time.monotonic() >= deadline:
                break
        ended, self._ended = self._ended, []
        return ended

    def progress(self, job: Job) -> Progress | None:
        """Return how far a running job is, or None where it has not said anything."""
        return self._running[job.name].progress

    def stop(self) -> None:
        """Interrupt all jobs, and kill those that do not end soon; the second time at once."""
        for each in self._running.values():
            _signal(each.process, signal.SIGINT)
        deadline = time.monotonic() + (0.0 if self._stopping else GRACE)
        self._stopping = True
        for each in list(self._running.values()):
            each.process.join(max(0.0, deadline - time.monotonic()))
            if each.process.is_alive():
                _signal(each.process, signal.SIGKILL)
            self._end(each, "it was interrupted" if each.left else None)

    def close(self) -> None:
        """Stop what runs; the server ends with this process."""
        self.stop()
        self._ended.clear()

    def _process(
        self, job: Job, left: list[str], environment: dict[str, str]
    ) -> tuple[ForkServerProcess, Connection]:
        """Start the first of the commands that are left, and take it away."""
        command = left.pop(0)
        marks = () if left else job.marks
        messages, theirs = server.pipe()
        try:
            arguments = (command, str(job.folder), environment, str(job.log), theirs, marks, self._threads)
            process = server.start(worker.run, arguments, job.name, self._threads)
        except BaseException:
            messages.close()
            raise
        finally:
            theirs.close()
        return process, messages

    def _listen(self, each: _Running) -> None:
        try:
            while each.messages.poll():
                each.progress = Progress(*each.messages.recv())
        except (EOFError, OSError):  # it has ended, perhaps within a message
            pass

    def _next(self, each: _Running) -> None:
        """Go on to a job's next command, or end it."""
        if each.process.exitcode or not each.left:
            self._end(each)
            return
        each.messages.close()
        each.process.close()
        each.process, each.messages = self._process(each.job, each.left, each.environment)

    def _end(self, each: _Running, failed: str | None = None) -> None:
        """End a job with the process of its last command; `failed` is why it has no result even if that went well."""
        each.process.join()
        status, group = each.process.exitcode, each.process.pid
        each.messages.close()
        each.process.close()
        del self._running[each.job.name]

        if status and group:
            # What it has started has no more use. Where the server is lost, this is the process itself.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        # A negative status is a signal's, and so is a shell's beyond 128.
        cure = "the machine's memory may be full"
        said = (
            failure(each.job.log, ending(status if status < 128 else 128 - status, cure))
            if status
            else failed
        )
        self._ended.append(Ended(each.job, said))

    def _device(self, gpu: str | None) -> dict[str, str]:
        if gpu is not None:  # the only one that the job sees, whatever number it has here
            return {"CUDA_VISIBLE_DEVICES": gpu, "STILLHOUSE_DEVICE": "cuda"}
        return {"STILLHOUSE_DEVICE": "cpu"} if self._cpu else {}


def _share_of_threads(slots: int) -> dict[str, str]:
    """Return the variables that give each slot its share of the cores, unless the user has set them."""
    if slots == 1 or any(os.environ.get(name) for name in server.THREADS):
        return {}
    return dict.fromkeys(server.THREADS, str(max(1, cores() // slots)))


def slots() -> int:
    """Return how many stages compute on this machine's CPU at a time, unless the user says it.

    A stage that others wait for computes alone, and has only its own share of many cores.
    """
    return cores() if cores() <= WHOLE else max(WHOLE, int(PART * cores()))


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _signal(process: ForkServerProcess, number: signal.Signals) -> None:
    if process.pid is None or not process.is_alive():
        return
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # it has no group of its own yet
        os.kill(process.pid, number)
