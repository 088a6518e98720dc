"""Copies of the project in temporary folders, in which whole jobs are run as a user runs them.

A copy has the project's sources and `dvc.yaml`, a params.yaml of its own, and nothing made: no artifact, no cache, no
settings of DVC but its defaults.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from ruamel.yaml import YAML

from pipeline.artifacts.closure import PACKAGES, root
from pipeline.errors import MachineError

FILES = ("dvc.yaml", ".dvcignore", ".gitignore", "artifacts/.gitignore", "data/.gitignore", "own/__init__.py")
NEEDED = "dvc.yaml"


@dataclass(frozen=True)
class Done:
    """A command that has ended well.

    Attributes:
        seconds: that it took.
        output: what it printed.
    """

    seconds: float
    output: str


Runner = Callable[[Path, Sequence[str], Mapping[str, str]], Done]


@dataclass(frozen=True)
class Scratch:
    """A copy of the project.

    Attributes:
        folder: it lies in.
        environment: variables of its commands.
        runner: runs them.
    """

    folder: Path
    environment: Mapping[str, str]
    runner: Runner

    @classmethod
    def make(
        cls,
        folder: Path,
        params: Mapping[str, Any],
        environment: Mapping[str, str],
        runner: Runner | None = None,
    ) -> Self:
        """Make a copy with a params.yaml in a folder that is not there yet."""
        skip = shutil.ignore_patterns("__pycache__")
        for name in PACKAGES:
            shutil.copytree(root() / name, folder / name, ignore=skip)
        for name in FILES:
            if (root() / name).is_file():
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copy(root() / name, folder / name)
        YAML().dump(params, folder / "params.yaml")

        scratch = cls(folder, environment, runner or execute)
        scratch.runner(folder, ("git", "init", "--quiet"), {})
        scratch.python("dvc", "init", "--quiet")
        scratch.python("compileall", "-q", *PACKAGES)  # else whatever runs first would be timed with it
        return scratch

    def again(self, folder: Path) -> Self:
        """Return a copy of the copy, as it is now."""
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)

    def python(self, module: str, *arguments: str, **variables: str) -> Done:
        """Run `python -m module`."""
        command = (sys.executable, "-m", module, *arguments)
        return self.runner(self.folder, command, {**self.environment, **variables})

    def repro(self, *arguments: str, **variables: str) -> Done:
        """Run `dvc repro`."""
        return self.python("dvc", "repro", *arguments, **variables)

    def run(self, *arguments: str, **variables: str) -> Done:
        """Run `stages.run`."""
        return self.python("stages.run", *arguments, **variables)


def execute(folder: Path, command: Sequence[str], variables: Mapping[str, str]) -> Done:
    """Run a command in a folder, with this Python as `python` and nobody's settings of DVC.

    Raises:
        MachineError: it fails.
    """
    away = {
        f"DVC_{name}_DIR": str(folder / ".away") for name in ("GLOBAL_CONFIG", "SYSTEM_CONFIG", "SITE_CACHE")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {
        **os.environ,
        **away,
        "DVC_NO_ANALYTICS": "1",
        "PATH": path,
        "PYTHONPATH": str(folder),
        **variables,
    }
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        last = " ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])
        words = " ".join(command).replace(sys.executable, "python")
        raise MachineError(f"`{words}` has failed in a copy of the project: {last}")
    return Done(seconds, done.stdout)
