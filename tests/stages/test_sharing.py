"""What one machine has made, another fetches: it distills a new student, and makes nothing else again."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from dvc_project import ONE, PARAMS, Project, make
from execution_fixtures import PATIENCE

# One student, and a table that its teacher asks for itself.
SHARED = ONE | {
    "tables": {"moments": PARAMS["tables"]["moments"]},
    "teachers": {"ada": ONE["teachers"]["ada"] | {"tables": {"moments": {}}}},
}
MADE = {"train_teacher@ada", "extract_features@ada", "fit_table@ada-moments", "pretrain_student@sam-0"}
# What adding a run may run: the stages that look at params.yaml, the new student, the report.
NEW = {"params", "inputs@ada-sam", "distill@ada-sam/cold-0", "evaluate@ada-sam/cold-0", "report"}
BUCKET = "lab"
# A server of the tests' own takes any credentials; a user's own must never be sent to it.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Reproduce on the first machine once; tests work on copies."""
    project = make(tmp_path_factory.mktemp("finished"), SHARED)
    commit(project, "Sources")
    assert project.repro() >= MADE
    return project


@pytest.fixture
def first(finished: Project, tmp_path: Path) -> Project:
    shutil.copytree(finished.folder, tmp_path / "first", symlinks=True)
    return Project(tmp_path / "first")


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve S3's protocol on a free port of this machine, with one empty bucket."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        (tmp_path / name).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    log = tmp_path / "server.log"
    with log.open("w") as output:
        command = [Path(sys.executable).parent / "moto_server", "--host", "127.0.0.1", "--port", "0"]
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        address = listening(server, log)
        urlopen(Request(f"{address}/{BUCKET}", method="PUT"), timeout=PATIENCE).close()
        yield address
    finally:
        server.terminate()
        server.wait(timeout=PATIENCE)


def listening(server: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until `server` has written its address into `log`, and return it."""
    for _ in range(600):
        address = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if address is not None:
            return address[0]
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"The server does not listen after a minute: {log.read_text()}")


def commit(project: Project, message: str, *paths: str) -> None:
    """Add `paths`, or all that git does not ignore, and commit."""
    project.run("git", "add", *(paths or (".",)))
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    project.run("git", *who, "commit", "--quiet", "-m", message)


def share(project: Project, url: str, **settings: str) -> None:
    """Publish all that `project` has made, as the pages say."""
    project.run("dvc", "remote", "add", "--default", "lab", url)
    for key, value in settings.items():
        project.run("dvc", "remote", "modify", "lab", key, value)
    commit(project, "Teachers", ".dvc/config", "dvc.lock", "artifacts/metrics")
    project.run("dvc", "push")


def fetch(first: Project, folder: Path) -> Project:
    """Clone the repository of `first` into `folder`, where DVC has no cache yet, and pull."""
    first.run("git", "clone", "--quiet", str(first.folder), str(folder))
    second = Project(folder)
    second.run("dvc", "pull")
    return second


def add_run(params: dict[str, Any]) -> None:
    params["runs"]["cold"] = {"methods": {"kd": {"temperature": 2.0}}, "slots": 2}
    params["distill"].append("ada-sam/cold")


def assert_a_new_student_is_all_that_is_made(second: Project) -> None:
    assert second.run("dvc", "status").strip() == "Data and pipelines are up to date."
    assert second.repro() == set()
    assert second.run("git", "status", "--short") == ""
    second.edit(add_run)
    assert second.repro() == NEW
    assert (second.folder / "artifacts/metrics/students/ada-sam/cold/0.json").exists()
    results = (second.folder / "artifacts/report/results.csv").read_text()
    assert "cold" in results
    assert "kd" in results


def test_a_folder_is_a_remote(first: Project, tmp_path: Path) -> None:
    share(first, str(tmp_path / "remote"))
    assert_a_new_student_is_all_that_is_made(fetch(first, tmp_path / "second"))


def test_s3_is_a_remote(first: Project, endpoint: str, tmp_path: Path) -> None:
    share(first, f"s3://{BUCKET}/stillhouse", endpointurl=endpoint)
    assert_a_new_student_is_all_that_is_made(fetch(first, tmp_path / "second"))
