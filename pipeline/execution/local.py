"""Jobs in processes of this machine, each a fork of one server that has the imports of all stages.

The server is Python's own (`multiprocessing`, start method "forkserver"). The cores are divided between the slots: a
process computes with its share of threads, which is decided when the server starts, because OpenMP reads it once. With
one slot nothing is set, and a stage computes as it does by hand.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

from pipeline.execution import worker
from pipeline.execution.job import Ended, Job, Progress, failure

GRACE = 20.0  # seconds that an interrupted job has to write its checkpoint
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class _Running:
    """A job, and the process of its command that runs now."""

    job: Job
    gpu: str | None
    left: list[str]
    process: ForkServerProcess
    messages: Connection
    progress: Progress | None = None
    environment: dict[str, str] = field(default_factory=dict)


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
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["pipeline.execution.preload"])
        self._threads = _share_of_threads(slots)

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
        environment = {**os.environ, **self._threads, **job.environment, **self._device(gpu)}
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_bytes(b"")

        left = list(job.commands)
        process, messages = self._process(job, left, environment)
        self._running[job.name] = _Running(job, gpu, left, process, messages, environment=environment)
        return "cpu" if gpu is None else f"GPU {gpu}"

    def wait(self, seconds: float) -> Sequence[Ended]:
        """Return the jobs that have ended since it was asked last, after `seconds` at most where there is none."""
        deadline = time.monotonic() + seconds
        while not self._ended and self._running:
            by_end: dict[object, _Running] = {}
            for each in self._running.values():
                by_end[each.process.sentinel] = by_end[each.messages] = each
            ready = connection.wait(list(by_end), max(0.0, deadline - time.monotonic()))  # type: ignore[arg-type]
            for each in {id(by_end[one]): by_end[one] for one in ready}.values():
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
        """Interrupt all jobs, and kill those that do not end soon."""
        for each in self._running.values():
            each.left.clear()
            _signal(each.process, signal.SIGINT)
        deadline = time.monotonic() + GRACE
        for each in list(self._running.values()):
            each.process.join(max(0.0, deadline - time.monotonic()))
            if each.process.is_alive():
                _signal(each.process, signal.SIGKILL)
                each.process.join()
            self._next(each)

    def close(self) -> None:
        """Stop what runs; the server ends with this process."""
        self.stop()
        self._ended.clear()

    def _process(
        self, job: Job, left: list[str], environment: Mapping[str, str]
    ) -> tuple[ForkServerProcess, Connection]:
        """Start the first of the commands that are left, and take it away."""
        command = left.pop(0)
        marks = () if left else job.marks
        messages, mine = self._context.Pipe(duplex=False)
        arguments = (command, str(job.folder), dict(environment), str(job.log), mine, marks)
        process = self._context.Process(target=worker.run, args=arguments, name=job.name)
        before = {name: os.environ.get(name) for name in self._threads}
        os.environ.update(self._threads)  # the first process starts the server, which keeps them
        try:
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        mine.close()
        return process, messages

    def _listen(self, each: _Running) -> None:
        try:
            while each.messages.poll():
                each.progress = Progress(*each.messages.recv())
        except EOFError:
            pass

    def _next(self, each: _Running) -> None:
        """Go on to a job's next command, or end it."""
        each.process.join()
        status = each.process.exitcode
        each.messages.close()
        each.process.close()
        if status == 0 and each.left:
            each.process, each.messages = self._process(each.job, each.left, each.environment)
            return
        del self._running[each.job.name]
        assert status is not None
        self._ended.append(Ended(each.job, failure(each.job.log, _words(status)) if status else None))

    def _device(self, gpu: str | None) -> dict[str, str]:
        if gpu is not None:
            return {"CUDA_VISIBLE_DEVICES": gpu}
        return {"STILLHOUSE_DEVICE": "cpu"} if self._cpu else {}


def _share_of_threads(slots: int) -> dict[str, str]:
    """Return the variables that give each slot its share of the cores, unless the user has set them."""
    if slots == 1 or any(os.environ.get(name) for name in THREADS):
        return {}
    return dict.fromkeys(THREADS, str(max(1, cores() // slots)))


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


def _words(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        return f"it was killed by {name}" + (
            " (the machine's memory may be full)" if status == -signal.SIGKILL else ""
        )
    return f"exit status {status}"
