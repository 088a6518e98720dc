"""Stages run in processes of their own, which can be killed or starved at a chosen moment.

`python fault_fixtures.py` is a server: it imports what the stages import once, and forks a process for each line
that it reads. So a test can afford dozens of real processes, and a real SIGKILL.
"""

from __future__ import annotations

import csv
import errno
import functools
import importlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
TIMES = {
    "seconds",
    "images_per_second",
    "train_seconds",
    "latency_ms",
    "peak_bytes",
}  # differ from run to run
PRELOAD = ("torch", "safetensors.torch", "sklearn.datasets", "sklearn.model_selection", "zarr", "tensorstore",
           "torch._dynamo", "torch.utils.flop_counter", "matplotlib.pyplot")  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when.

    Attributes:
        place: "module:function" or "module:Class.method" that is called.
        call: at which of its calls, counted from 1.
        kind: "before" and "after" kill the process with SIGKILL around the call; "half" lets a method that writes
            content to a path write half of it first; "stop" halts it; "interrupt" and "full" raise what Ctrl-C and a
            full disk do.
    """

    place: str
    call: int = 1
    kind: str = "before"


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, negative for a signal, and what it wrote."""

    status: int
    text: str


class Server:
    """Runs stages in forked processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
        self._process = subprocess.Popen(
            [sys.executable, __file__], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(
        self,
        stage: str,
        words: Sequence[object],
        *faults: Fault,
        limit: int = 0,
        settings: Any = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Start a stage and return the number of its process.

        Args:
            stage: its name, or that of a module of the tests that has a `main` as stages have.
            words: arguments of its command.
            faults: what goes wrong.
            limit: bytes that a file may have; the system refuses more. 0 is no limit.
            settings: attributes to set, by "module:name"; a mapping gives a function these options.
            environment: variables to set.
        """
        request = {"stage": stage, "words": [str(word) for word in words], "limit": limit,
                   "faults": [vars(fault) for fault in faults], "settings": settings or {},
                   "environment": dict(environment or {})}  # fmt: skip
        return int(self._ask(request))

    def wait(self, number: int) -> Ended:
        """Wait for a process."""
        status = int(self._ask({"wait": number}))
        path = self.folder / f"{number}.txt"
        text = path.read_text()
        path.unlink()
        return Ended(status, text)

    def run(self, stage: str, words: Sequence[object], *faults: Fault, **options: Any) -> Ended:
        """Run a stage to its end; see `start`."""
        return self.wait(self.start(stage, words, *faults, **options))

    def close(self) -> None:
        self._process.kill()  # it holds nothing
        with self._process:
            pass

    def _ask(self, request: Mapping[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()


def contents(path: Path) -> dict[str, Any]:
    """Return what is in a file or folder, by path below it, without times: they differ from run to run."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): _content(file) for file in sorted(files)}


def _content(file: Path) -> Any:
    if file.suffix == ".json":
        content = json.loads(file.read_text())
        return {k: v for k, v in content.items() if k not in TIMES} if isinstance(content, dict) else content
    if file.name == "history.csv":
        rows = csv.DictReader(io.StringIO(file.read_text()))
        return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    if file.suffix == ".npz":
        with np.load(file) as archive:
            return {name: archive[name].tolist() for name in archive.files}
    return file.read_bytes()


# The server.


def _serve() -> None:
    for name in PRELOAD:
        importlib.import_module(name)
    import torch

    from stages import (  # noqa: F401
        check_features,
        code,
        distill,
        encode_views,
        evaluate,
        extract_features,
        fit_table,
        inputs,
        params,
        prepare_data,
        pretrain_student,
        report,
        student_inputs,
        train_self_taught,
        train_teacher,
    )

    for name in ("training.distil", "training.evaluate", "training.alone", "training.resolve", "prepare",
                 "features.extract", "features.codes", "features.check", "features.stream", "report.page",
                 "report.collect"):  # fmt: skip
        importlib.import_module(f"pipeline.{name}")
    from pipeline import closure, plugin

    for path in (ROOT / "stages").glob("*.py"):
        closure.digest([f"stages.{path.stem}"])  # once for all children
    for catalogue in ("networks", "methods", "encodings"):
        for name in plugin.names(catalogue):
            closure.digest([f"pipeline.{catalogue}.{name}"])
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                _child(request)
        print(answer, flush=True)


def _child(request: dict[str, Any]) -> None:
    from stages import command

    held = io.StringIO()
    status = 70  # os._exit: nothing of the server's is to run in its child
    try:
        out = os.open(f"{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(request["environment"])
        for place, value in request["settings"].items():
            module, name = place.split(":")
            owner = importlib.import_module(module)
            given = functools.partial(getattr(owner, name), **value) if isinstance(value, dict) else value
            setattr(owner, name, given)
        for fault in request["faults"]:
            _arm(Fault(**fault))
        if request["limit"]:
            sys.stderr = held  # the limit holds for the file behind it, too
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], resource.RLIM_INFINITY))
        name = request["stage"]
        stage = importlib.import_module(name if name.endswith("_fixtures") else f"stages.{name}")
        sys.argv = [request["stage"], *request["words"]]
        command.run(stage.main)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.write(2, held.getvalue().encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _arm(fault: Fault) -> None:
    module, _, place = fault.place.partition(":")
    *owners, name = place.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    setattr(owner, name, _failing(getattr(owner, name), fault))


def _failing(function: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    calls = [0]

    def wrapped(*values: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] != fault.call:
            return function(*values, **options)
        match fault.kind:
            case "interrupt":
                raise KeyboardInterrupt
            case "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case "stop":  # until it is sent SIGCONT
                os.kill(os.getpid(), signal.SIGSTOP)
                return function(*values, **options)
            case "half":
                path, content = values[:2]
                function(path, content[: len(content) // 2], **options)
            case "after":
                function(*values, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    return wrapped


if __name__ == "__main__":
    _serve()
