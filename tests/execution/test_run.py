"""`stages.run` leaves what `dvc repro` leaves; killed, it goes on; what it cannot do it says in a line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dvc_project import ONE, Project, make
from run_fixtures import Run, left, recorded, refused, run, stages_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def by_dvc(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Reproduce a toy project by DVC, one stage after another, each in a process of its own from the start."""
    project = make(tmp_path_factory.mktemp("dvc") / "project", ONE, cold=True)
    project.repro()
    return project


@pytest.fixture(scope="module")
def by_run(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Reproduce the same project by `stages.run`; tests work on copies."""
    project = make(tmp_path_factory.mktemp("run") / "project", ONE)
    run(project)
    return project


@pytest.fixture
def project(by_run: Project, tmp_path: Path) -> Project:
    shutil.copytree(by_run.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


# ------------------------------------------------------------------ the same as DVC


def test_it_leaves_what_dvc_leaves(by_dvc: Project, by_run: Project) -> None:
    """The weights, stores and tables of stages in warm processes too, bit for bit."""
    assert recorded(by_run) == recorded(by_dvc)
    assert left(by_run) == left(by_dvc)


def test_dvc_has_nothing_to_do_after_it(project: Project) -> None:
    assert project.repro() == set()
    assert json.loads(project.run("dvc", "status", "--json")) == {}
    assert "Everything is up to date." in run(project, "--dry")
    assert stages_of(run(project)) == set()


def test_what_it_made_is_pushed_and_pulled(project: Project, tmp_path: Path) -> None:
    project.run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    project.run("dvc", "push", "--run-cache")
    made = left(project)
    shutil.rmtree(project.folder / ".dvc/cache")
    for top in ("students", "teachers", "features"):
        shutil.rmtree(project.folder / "artifacts" / top)
    project.run("dvc", "pull", "--run-cache")
    assert left(project) == made
    assert project.repro() == set()


def test_the_run_cache_is_dvc_s_both_ways(project: Project) -> None:
    def edit(epochs: int) -> None:
        project.edit(lambda params: params["recipes"]["quick"].update(epochs=epochs))

    edit(2)
    trained = project.repro()
    assert "train_teacher@ada" in trained
    edit(1)
    text = run(project)  # it had run these itself
    assert {"train_teacher@ada", "distill@ada-sam/kd-0"} <= stages_of(text, "restored")
    edit(2)
    text = run(project)  # DVC had
    assert {"train_teacher@ada", "distill@ada-sam/kd-0"} <= stages_of(text, "restored")
    edit(1)
    assert project.repro() & {"train_teacher@ada", "distill@ada-sam/kd-0"} == set()


def test_targets_and_flags_mean_what_they_mean_to_dvc(project: Project) -> None:
    def would(*arguments: str) -> set[str]:
        text = project.run("dvc", "repro", "--dry", *arguments)
        return {line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage '")}

    for arguments in (
        ("--force",),
        ("--force", "evaluate_teacher@ada"),
        ("--force", "evaluate"),
        ("--force", "--downstream", "extract_features@ada"),
        ("--force", "--single-item", "train_teacher@ada"),
    ):
        text = run(project, "--dry", *arguments)
        ours = {line.partition(": ")[2] for line in text.splitlines() if line.startswith(("would", "may"))}
        assert ours == would(*arguments), arguments

    assert stages_of(run(project, "--force", "--single-item", "evaluate_teacher@ada")) == {
        "evaluate_teacher@ada"
    }
    project.repro()


# ------------------------------------------------------------------ killed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_it_goes_on_where_it_was(number: signal.Signals, by_run: Project, tmp_path: Path) -> None:
    project = make(tmp_path / "project", ONE)
    for more in (1, 3, 5):  # stages that each run has done when it is ended, amid the next ones
        before = set(recorded(project))
        going = Run(project)
        going.wait_for(more)
        text = going.end(number)
        assert "Traceback" not in text
        assert not stages_of(text) & before

    before = set(recorded(project))
    assert not stages_of(run(project)) & before
    assert recorded(project) == recorded(by_run)
    assert left(project) == left(by_run)
    assert project.repro() == set()


def test_files_that_a_kill_cuts_short_are_mended(project: Project) -> None:
    folder = project.folder
    for part in (b"", b'{"write": {"'):
        (folder / ".dvc/tmp/rwlock").write_bytes(part)
        assert "is removed" in run(project)
    whole = (folder / "dvc.lock").read_bytes()
    for part in (b"", whole[: len(whole) // 2]):
        (folder / ".dvc/tmp/stillhouse/dvc.lock").write_bytes(whole)
        (folder / "dvc.lock").write_bytes(part)
        assert "is put back" in run(project)
        assert (folder / "dvc.lock").read_bytes() == whole
    assert project.repro() == set()


# ------------------------------------------------------------------ bad input


def test_an_unknown_target_is_told(project: Project) -> None:
    status, text = refused(project, "distil")
    assert status == 1
    assert text.startswith("error: ")
    assert "dvc stage list --all" in text
    assert text.count("\n") == 1


def test_a_folder_without_a_repository_is_told(project: Project) -> None:
    shutil.rmtree(project.folder / ".dvc")
    _, text = refused(project)
    assert text.startswith("error: ")
    assert "is in no DVC repository" in text
    assert text.count("\n") == 1


def test_locks_of_others_are_told(project: Project) -> None:
    source = """
import sys, time
from dvc.lock import make_lock
with make_lock(sys.argv[1], tmp_dir=".dvc/tmp"):
    print("held", flush=True)
    time.sleep(1000)
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", source, ".dvc/tmp/lock"], cwd=project.folder, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        _, text = refused(project)
        assert "Another DVC command holds the lock" in text

        holder.kill()
    assert stages_of(run(project)) == set()

    mark = {"pid": os.getpid(), "cmd": "somebody"}
    out = str(project.folder / "artifacts/report")
    (project.folder / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {out: mark}, "read": {}}))
    _, text = refused(project, "--force", "--single-item", "report")
    assert "failed: report: " in text
    assert f"(PID {os.getpid()}): somebody" in text


def test_a_mistake_in_params_yaml_is_the_stage_s_own_line(project: Project) -> None:
    project.edit(lambda params: params["recipes"]["quick"].update(epochs=-1))
    status, text = refused(project)
    assert status == 1
    (line,) = [line for line in text.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: params: ")
    assert "epochs" in line


def test_a_stage_that_fails_costs_what_depends_on_it(project: Project) -> None:
    project.append("stages/evaluate.py", "\nraise SystemExit('error: no evaluation today')\n")
    text = (project.folder / "stages/evaluate.py").read_text()
    head, _, _ = text.partition("\nfrom __future__")
    (project.folder / "stages/evaluate.py").write_text(
        f"{head}\nraise SystemExit('error: no evaluation today')\n"
    )
    status, text = refused(project, "--keep-going")
    assert status == 1
    failed = [line for line in text.splitlines() if line.startswith("failed: ")]
    assert failed
    assert all(line.endswith(": no evaluation today") for line in failed)
    assert "  skipped after it: " in text
    assert "report" in text.partition("skipped after it: ")[2]
