"""Where a report says that it comes from: git, dvc.lock, versions and the machine."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest
from report_fixtures import Links, Project
from ruamel.yaml import YAML

from pipeline.report import provenance
from pipeline.report.sections import provenance as shown


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "params.yaml").write_text("seeds: [0]\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def test_a_clean_tree_has_its_commit_and_no_changes(repository: Path) -> None:
    found = provenance.gather(repository)
    assert found.commit == git(repository, "rev-parse", "HEAD")
    assert (found.changed, found.git) == ((), "")
    assert f"commit {found.commit[:10]};" in found.line


def test_changed_and_new_files_are_named_but_not_what_the_pipeline_writes(repository: Path) -> None:
    (repository / "params.yaml").write_text("seeds: [1]\n")
    (repository / "new plug-in.py").write_text("x = 1\n")
    (repository / "dvc.lock").write_text("schema: '2.0'\n")
    for name in ("artifacts", "data"):
        (repository / name).mkdir()
        (repository / name / "made").write_text("x")
    found = provenance.gather(repository)
    assert found.changed == ("new plug-in.py", "params.yaml")
    assert "with uncommitted changes" in found.line


def test_a_folder_within_a_repository_is_its_own_project(repository: Path) -> None:
    inner = repository / "inner"
    inner.mkdir()
    (repository / "params.yaml").write_text("seeds: [1]\n")
    assert provenance.gather(inner).changed == ()


def test_a_folder_without_git_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = provenance.gather(tmp_path)
    assert (found.commit, found.changed, found.git) == ("", (), "not in a git repository")
    assert "not in a git repository" in found.line


def test_a_repository_without_commits_says_so(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert provenance.gather(tmp_path).git == "no commit yet"


def test_a_machine_without_git_is_no_error(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository / "nothing"))
    assert provenance.gather(repository).git == "not in a git repository"


def lock(folder: Path, stages: dict[str, str]) -> str:
    content = {
        "schema": "2.0",
        "stages": {name: {"cmd": "x", "outs": [{"md5": md5}]} for name, md5 in stages.items()},
    }
    with (folder / "dvc.lock").open("w") as file:
        YAML(typ="safe").dump(content, file)
    return provenance.gather(folder).lock


def test_the_hash_of_dvc_lock_is_of_all_but_the_report_itself(tmp_path: Path) -> None:
    before = lock(tmp_path, {"distill@a": "1"})
    assert re.fullmatch("[0-9a-f]{32}", before)
    assert lock(tmp_path, {"distill@a": "1", "report": "2"}) == before
    assert lock(tmp_path, {"report": "3", "distill@a": "1"}) == before
    assert lock(tmp_path, {"distill@a": "2", "report": "2"}) != before


@pytest.mark.parametrize("content", [None, "", "a: [", "[1]", "stages: 3"])
def test_no_dvc_lock_is_no_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "dvc.lock").write_text(content)
    assert provenance.gather(tmp_path).lock == ""


def test_time_versions_and_machine(tmp_path: Path) -> None:
    found = provenance.gather(tmp_path)
    made = datetime.strptime(found.made, "%Y-%m-%d %H:%M UTC").replace(tzinfo=UTC)
    assert timedelta() <= datetime.now(UTC) - made < timedelta(minutes=3)
    for name in ("torch", "numpy", "zarr", "dvc", "scikit-learn"):
        assert found.versions[name] == metadata.version(name)
    assert {"Python", "stillhouse", "torchvision"} <= found.versions.keys()
    assert all(found.machine[name] for name in ("CPU", "cores", "memory", "system"))


def test_a_package_that_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("stillhouse", "torch", "no-such-package"))
    assert provenance.gather(tmp_path).versions["no-such-package"] == "not installed"


def test_the_page_ends_with_all_of_it(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.training("students/big-small/kd/0", device="cuda: a fast one")
    out = project.run()
    content = json.loads((out / "provenance.json").read_text())
    html = (out / "index.html").read_text()
    assert html.rindex("<h2>") == html.index("<h2>Provenance</h2>")
    part = Links(html[html.index('<section id="provenance">') : html.index("</main>")]).text
    for words in (
        content["made"],
        content["commit"],
        *content["versions"].values(),
        *content["machine"].values(),
    ):
        assert words in part
    # One teacher, three seeds alone and of two runs.
    assert "9 networks on cpu; 1 network on cuda: a fast one" in part
    header = Links(html[html.index("<header>") : html.index("</header>")])
    assert content["made"] in header.text
    assert header.targets == ["#provenance"]


def test_a_student_alone_of_two_pairs_is_counted_once(tmp_path: Path) -> None:
    results = Project(tmp_path, {"big-small": ["kd"], "other": ["kd"]}, (0, 1)).collect()
    assert "7 networks on cpu" in str(shown.section(results))  # a teacher, two alone, two runs of two seeds
