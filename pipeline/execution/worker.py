"""What a process of `local` does: one command of a stage, in a process that has its imports already.

The process is a fork of a server that has imported torch and the rest (`preload`) and done nothing else: it has no
CUDA context, no random state and no threads of its own, so a stage that runs in it is the stage that runs by hand.
`python -m stages.NAME ...` runs in this process; everything else is given to a shell, as DVC does.
"""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import progress
from pipeline.execution.done import Mark

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

EVERY = 0.2  # seconds at least between two messages about progress
SHELL = set('|&;<>()$`\\"*?[]#~=%!{}\n')  # what a shell reads as more than words


def module_of(command: str, path: str | None = None) -> tuple[str, list[str]] | None:
    """Return the stage module of a command and its arguments, or None where a shell must read it.

    Args:
        command: as a shell reads it.
        path: where the shell looks for programs; None is this process's PATH.
    """
    if SHELL & set(command) - {"="}:
        return None
    words = shlex.split(command)
    if words[:2] != ["python", "-m"] or len(words) < 3 or not words[2].startswith("stages."):
        return None
    python = shutil.which("python", path=path)
    if python is None or Path(python).resolve() != Path(sys.executable).resolve():
        return None  # another environment's
    return words[2], words[3:]


def run(
    command: str,
    folder: str,
    environment: Mapping[str, str],
    log: str,
    messages: Connection,
    marks: Sequence[Mark] = (),
) -> None:
    """Run a command in this process, and exit with its status.

    Args:
        command: as a shell reads it.
        folder: that it runs in.
        environment: all of its variables.
        log: the file that takes what it prints.
        messages: takes how far it is, as (title, done, total, note).
        marks: left when it has ended well.
    """
    os.setsid()  # a group of its own: it is interrupted with all that it starts, and by nobody else
    _end_with_parent()
    _print_to(log)
    os.chdir(folder)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)

    named = module_of(command)
    if named is None:
        status: object = subprocess.run(
            [environment.get("SHELL", "/bin/sh"), "-c", command], check=False
        ).returncode
    else:
        progress.report(_reporter(messages))
        status = _run_module(*named, folder)
    if not status:
        for mark in marks:
            mark.leave()
    sys.exit(status)  # type: ignore[arg-type]  # what a module gives to sys.exit


def _run_module(module: str, arguments: list[str], folder: str) -> object:
    """Run `python -m module arguments`, and return what it exits with."""
    sys.argv = ["python", *arguments]  # runpy puts the module's file in the first place
    sys.path[0] = folder  # as `python -m` does
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code
    return 0


def _print_to(log: str) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _end_with_parent() -> None:
    """Kill this process and all that it has started when the process that asked for it is gone."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _reporter(messages: Connection) -> progress.Listener:
    last = 0.0

    def report(title: str, done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last > EVERY:
            last = now
            messages.send((title, done, total, note))

    return report
