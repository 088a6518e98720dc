"""What a process of `local` does: one command of a stage, in a process that has its imports already.

The process is a fork of a server that has imported torch and the rest (`preload`) and done nothing else: it has no
CUDA context and has drawn no random number, so a stage that runs in it is the stage that runs by hand.
`python -m stages.NAME ...` runs in this process; everything else is given to a shell, as DVC does.
"""

from __future__ import annotations

import os
import runpy
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import progress
from pipeline.execution.done import Mark

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

EVERY = 0.2  # seconds at least between two messages about progress
SHELL = set('|&;<>()$`\\"*?[]#~%!{}\r\n')  # what a shell reads as more than words
# Options by which shells read no file of the user's, as DVC gives them.
PLAIN = {"bash": ("--noprofile", "--norc"), "zsh": ("--no-rcs",)}


def module_of(command: str, path: str | None = None) -> tuple[str, list[str]] | None:
    """Return the stage module of a command and its arguments, or None where a shell must read it.

    Args:
        command: as a shell reads it.
        path: where the shell looks for programs; None is this process's PATH.
    """
    words = None if SHELL & set(command) else stage_words(command)
    if words is None:
        return None
    return (words[2], words[3:]) if _is_this(shutil.which("python", path=path)) else None


def stage_words(command: str) -> list[str] | None:
    """Return the words of a command `python -m stages.NAME ...`, or None where it is another."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that nobody closes
        return None
    alike = words[:2] == ["python", "-m"] and len(words) > 2 and words[2].startswith("stages.")
    return words if alike else None


def _is_this(python: str | None) -> bool:
    """Tell whether a program is the Python of this process's environment."""
    if python is None:
        return False
    # Every environment made from one Python links to it: what differs is the folder.
    other, this = Path(python), Path(sys.executable)
    return other.parent.resolve() == this.parent.resolve() and other.resolve() == this.resolve()


def run(
    command: str,
    folder: str,
    environment: Mapping[str, str],
    log: str,
    messages: Connection,
    marks: Sequence[Mark] = (),
    threads: Mapping[str, str] | None = None,
) -> None:
    """Run a command in this process, and exit with its status.

    Args:
        command: as a shell reads it.
        folder: that it runs in.
        environment: all of its variables.
        log: the file that takes what it prints.
        messages: takes how far it is, as (title, done, total, note).
        marks: left when it has ended well.
        threads: variables of a shell beside the others; what has started this process has read them.
    """
    os.setsid()  # a group of its own: it is interrupted with all that it starts, and by nobody else
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the server holds it back
    _end_with_parent()
    _print_to(log)

    imported = Path(folder).samefile(Path.cwd())  # in another folder, a stage's imports may be others
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)

    named = module_of(command) if imported else None
    if named is None:
        status: int | str | None = _run_shell(command, {**os.environ, **(threads or {})})
    else:
        progress.report(_reporter(messages))
        status = _run_module(*named, folder)

    if not status:
        with suppress(OSError):  # a disk that is full now: the stage has run all the same
            for mark in marks:
                mark.leave()
    sys.exit(status)


def _run_module(module: str, arguments: list[str], folder: str) -> int | str | None:
    """Run `python -m module arguments`, and return what it exits with."""
    sys.argv = ["python", *arguments]  # runpy puts the module's file in the first place
    sys.path[0] = folder  # as `python -m` does
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code
    return 0


def in_shell(command: str, environment: Mapping[str, str]) -> list[str]:
    """Return the words by which the user's shell runs a command, as DVC has it run."""
    shell = environment.get("SHELL") or "/bin/sh"
    return [shell, *PLAIN.get(Path(shell).name, ()), "-c", command]


def _run_shell(command: str, environment: Mapping[str, str]) -> int:
    """Give a command to the user's shell, as DVC does, and return its status as another shell would."""
    # The shell gets it too, and decides what it means; a handler, unlike SIG_IGN, is nothing that it inherits.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    process = subprocess.Popen(in_shell(command, environment), env=dict(environment))
    status = process.wait()
    return status if status >= 0 else 128 - status


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
        if done < total and now - last < EVERY:
            return
        # While DVC hashes, nobody reads: a full pipe would stop the stage.
        if select.select([], [messages], [], 0)[1]:
            last = now
            messages.send((title, done, total, note))

    return report
