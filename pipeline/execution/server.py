"""Python's fork server (`multiprocessing`), with the imports of all stages and the threads of one slot.

There is one in a process. It reads the number of threads once, as OpenMP does, so another number takes another server.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

from pipeline.errors import MachineError

PRELOAD = "pipeline.execution.preload"
DYING = 0.5  # seconds after which a killed process is gone
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_context = multiprocessing.get_context("forkserver")
_read: list[object] = []  # what the server has read at its start: one item, or none


def pipe() -> tuple[Connection, Connection]:
    """Return the ends of a pipe: this process's, and the one to hand to a process of the server."""
    return _context.Pipe(duplex=False)


def start(
    target: Callable[..., object],
    arguments: Sequence[object],
    name: str,
    threads: Mapping[str, str],
    *,
    again: bool = True,
) -> ForkServerProcess:
    """Start a process that is a fork of the server, and the server where there is none.

    Args:
        target: what the process calls.
        arguments: of the call.
        name: of the process.
        threads: variables of the server, beside those of this process.
        again: try once more where the server has just been killed, which shows a moment later.

    Raises:
        MachineError: the server has ended while it imported.
    """
    _serve(threads)
    process = _context.Process(target=target, args=tuple(arguments), name=name)
    try:
        process.start()
    except (EOFError, OSError) as error:
        if again and isinstance(error, ConnectionError):
            time.sleep(DYING)
            return start(target, arguments, name, threads, again=False)
        raise MachineError(
            f"The process that stages are forked from has ended at its start ({error or type(error).__name__}). What "
            "it printed stands above; see that there is memory, then run the same command again."
        ) from None
    return process


def _serve(threads: Mapping[str, str]) -> None:
    """Start the server unless it is there, with the same threads."""
    reads = (PRELOAD, {name: threads.get(name, os.environ.get(name)) for name in THREADS})
    if _read and _read != [reads]:
        if any(isinstance(child, ForkServerProcess) for child in multiprocessing.active_children()):
            raise RuntimeError("an executor with another number of threads is at work in this process")
        forkserver._forkserver._stop()  # type: ignore[attr-defined]  # nothing public ends it

    _read[:] = [reads]
    _context.set_forkserver_preload([PRELOAD])
    with _variables(threads), _interrupts_held():
        forkserver.ensure_running()


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Have what starts within the block never see Ctrl-C, which would end it amid its imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
