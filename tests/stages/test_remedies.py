"""What errors advise, run: it mends what it is advised for, and a command that would do nothing does nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from dvc_project import ONE, Project, make
from prepared_fixtures import flip

from pipeline.artifacts import advice

STAGE = "prepare_data@digits"
MADE = "data/prepared/digits"
IMAGES = f"{MADE}/train_images.npy"
RESTORES = f"dvc repro {STAGE}"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Prepare data once; tests work on copies."""
    project = make(tmp_path_factory.mktemp("finished"), ONE)
    assert STAGE in project.repro(STAGE)
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    copy = Project(tmp_path / "project")
    copy.run(*RESTORES.split())  # so that DVC knows the times of the copies
    return copy


def content(project: Project) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.folder / MADE).iterdir()}


def rot(path: Path) -> None:
    """Change a bit as a disk does: size and time stay."""
    before = path.stat()
    path.chmod(0o644)
    flip(path, -8)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def ran(project: Project, command: str) -> set[str]:
    """Run an advised command, and return the stages that ran."""
    return project.repro(*command.removeprefix("dvc repro").split())


def test_what_is_missing_is_fetched(project: Project) -> None:
    before = content(project)
    (project.folder / IMAGES).unlink()
    assert ran(project, RESTORES) == set()
    assert content(project) == before


def test_what_a_disk_has_damaged_is_left_until_its_stage_is_forced(project: Project) -> None:
    before = content(project)
    rot(project.folder / IMAGES)
    assert ran(project, RESTORES) == set()
    project.run("dvc", "checkout", "--force", MADE)
    assert content(project) != before

    assert ran(project, advice.forced(RESTORES)) == {STAGE}
    assert content(project) == before


def test_what_is_damaged_and_deleted_is_fetched(project: Project) -> None:
    before = content(project)
    rot(project.folder / IMAGES)
    (project.folder / IMAGES).unlink()
    ran(project, RESTORES)
    assert content(project) == before


def test_what_dvc_itself_holds_is_made_again_when_its_stage_is_forced(project: Project) -> None:
    """Of a producer's fault, or of a file that was changed by hand and committed, the cache has the same."""
    before, path = content(project), project.folder / MADE / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean": [0.1]}))
    project.run("dvc", "commit", "--force", STAGE)
    shutil.rmtree(project.folder / MADE)
    assert ran(project, RESTORES) == set()
    assert content(project) != before

    assert ran(project, advice.forced(RESTORES)) == {STAGE}
    assert content(project) == before


def test_forced_with_its_inputs_a_stage_would_run_all_that_come_before(project: Project) -> None:
    planned = project.run("dvc", "repro", "--force", "--dry", STAGE)
    assert "Running stage 'params'" in planned
    assert "Running stage 'params'" not in project.run(*advice.forced(RESTORES).split(), "--dry")
