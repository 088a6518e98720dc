"""DVC's own files that a kill cuts short, and a Python that is not the project's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest
from dvc.lock import LockError, make_lock
from dvc_project import ONE, Project, make

from pipeline.artifacts import rwlock
from pipeline.artifacts.closure import root


def failing(folder: Path, *command: str, **environment: str) -> str:
    """Run a command that must fail, and return what it prints to standard error."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode
    return done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make(tmp_path_factory.mktemp("project"), ONE)
    made.repro("prepare_data")
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "left", "error", "cure"),
    [
        (".dvc/tmp/rwlock", b"", "Unable to read RWLock-file", "rm .dvc/tmp/rwlock"),
        ("dvc.lock", b"schema: '2", "'./dvc.lock' is invalid", "rm dvc.lock"),
        ("dvc.lock", b"", "'./dvc.lock' validation failed", "rm dvc.lock"),
    ],
)
def test_the_docs_have_the_cure_for_a_file_that_a_killed_dvc_has_cut_short(
    project: Project, file: str, left: bytes, error: str, cure: str
) -> None:
    (project.folder / file).write_bytes(left)

    assert error in failing(project.folder, "dvc", "repro", "params")
    part = (root() / ".github/docs/trouble.md").read_text()
    assert f"`{error}`" in part
    assert f"`{cure}`" in part

    project.run(*cure.split())
    assert project.repro("params") == set()  # it is up to date, or comes out of the run cache


@pytest.mark.slow
@pytest.mark.parametrize("left", [b"", b'{"write": {"'])
def test_a_plan_mends_what_a_killed_dvc_has_left(project: Project, left: bytes) -> None:
    lock = project.folder / ".dvc/tmp/rwlock"
    lock.write_bytes(left)
    assert f"{lock} was cut short when DVC was killed" in project.run("python", "-m", "stages.plan")
    assert project.repro("prepare_data") == set()


@pytest.mark.slow
def test_a_plan_names_the_cure_for_a_lock_file_that_is_cut_short(project: Project) -> None:
    lock = project.folder / "dvc.lock"
    whole = lock.read_bytes()
    lock.write_bytes(b"")
    assert "Look with: rm dvc.lock, then: dvc repro" in failing(project.folder, "python", "-m", "stages.plan")
    lock.write_bytes(whole)


def test_a_file_of_locks_that_dvc_is_writing_is_left_alone(tmp_path: Path) -> None:
    lock = tmp_path / "rwlock"
    lock.write_bytes(b"")
    repo = SimpleNamespace(tmp_dir=str(tmp_path), config={"core": {}})
    with make_lock(f"{lock}.lock"), pytest.raises(LockError):
        rwlock.mend(repo)
    assert lock.exists()

    assert rwlock.mend(repo) == lock
    assert rwlock.mend(repo) is None
    lock.write_text("{}")
    assert rwlock.mend(repo) is None
    assert lock.exists()


@pytest.mark.slow
def test_a_path_without_python_is_told_in_one_line(project: Project) -> None:
    """As when `.venv/bin/dvc repro` is called and the environment is not active."""
    project.edit(lambda params: params.update(seeds=[1]))
    shells = project.folder / "shells"
    shells.mkdir()
    (shells / "sh").symlink_to(str(shutil.which("sh")))  # what DVC calls, and no python
    dvc = Path(sys.executable).parent / "dvc"
    said = failing(project.folder, str(dvc), "repro", PATH=str(shells), SHELL="/bin/sh")
    assert "error: There is no `python`. Activate the environment" in said


@pytest.mark.slow
def test_a_python_without_the_project_is_told_in_one_line(tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=False)
    for stage in ("code", "distill", "report"):
        said = failing(root(), f"{tmp_path}/bin/python", "-m", f"stages.{stage}")
        assert said.count("\n") == 1
        assert "is not the Python that Stillhouse is installed in" in said
