"""What stages read and make goes through a remote, and what does not compute on a GPU stays here."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from error_fixtures import one_line

from pipeline.errors import MachineError, ParamsError
from pipeline.execution import apart, nodes, transfer
from pipeline.execution.divided import DividedExecutor
from pipeline.execution.job import Ended, Job, Progress
from pipeline.execution.transfer import Transfer

# DVC's own, of its tries.
pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")]

DVC_YAML = """
stages:
  first:
    cmd: make
    outs: [made, folder]
    metrics: [{metrics.json: {cache: false}}]
  second:
    cmd: read a json that names the outs of `first`
    deps: [folder/list.json]
    outs: [inputs.json]
  third:
    cmd: read what inputs.json names
    deps: [inputs.json]
    outs: [end]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a repository in which two stages have been made, with a remote."""
    from dvc.repo import Repo

    folder = tmp_path / "here"
    (folder / "pipeline").mkdir(parents=True)
    monkeypatch.chdir(folder)
    (folder / "pipeline" / "source.py").write_text("pass\n")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "folder" / "deep").mkdir(parents=True)
    (folder / "folder" / "deep" / "file").write_text("deep")
    for name in ("made", "metrics.json", "folder/list.json", "inputs.json"):
        (folder / name).write_text(f"[{name!r}]".replace("'", '"'))
    Repo.init(str(folder), no_scm=True).close()
    with Repo(str(folder)) as repo:
        with repo.config.edit() as config:
            config["remote"]["store"] = {"url": str(tmp_path / "store")}
        repo.commit("first", force=True)
        repo.commit("second", force=True)
    with Repo(str(folder)) as repo:
        yield repo


def sender(repo: Any, remote: str = "store") -> Transfer:
    return Transfer(repo, {stage.addressing: stage for stage in repo.index.stages}, repo.index.graph, remote)


def job(folder: Path, *stages: str, gpu: bool = True) -> Job:
    return Job("job", ("true",), folder, folder / "job.log", gpu=gpu, stages=stages)


def test_all_that_stages_before_a_job_have_made_arrives_elsewhere(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = sender(here)
    sent = sending.send(job(tmp_path / "here", "third"))
    assert sent["cached"].keys() == {"made", "folder", "inputs.json"}
    assert sent["files"] == {"metrics.json": b'["metrics.json"]'}

    there = tmp_path / "node" / "work" / "host" / "1"
    there.mkdir(parents=True)
    (there / "dvc.yaml").write_text(DVC_YAML)
    monkeypatch.setattr(apart, "_opened", [])
    monkeypatch.chdir(there)
    assert apart.look(str(there), "store", sending.config, sending.probe) is None
    with apart.repository(there, "store", sending.config) as repo:
        transfer.pull(repo, repo.index.outs, sent, "store")
        for name in ("made", "metrics.json", "folder/list.json", "folder/deep/file", "inputs.json"):
            assert (there / name).read_bytes() == (tmp_path / "here" / name).read_bytes()

        (there / "end").write_text("the end")
        made = apart._kept(
            repo, [stage for stage in repo.index.stages if stage.addressing == "third"], "store"
        )
    sending.receive(job(tmp_path / "here", "third"), made)
    assert (tmp_path / "here" / "end").read_text() == "the end"

    sending.close()
    assert apart.look(str(there), "store", sending.config, sending.probe) is not None
    assert not list((tmp_path / "store").glob("**/stillhouse*"))


def test_a_file_that_the_remote_has_lost_is_one_line(here: Any, tmp_path: Path) -> None:
    sending = sender(here)
    sent = sending.send(job(tmp_path / "here", "second"))
    (_, digest) = sent["cached"]["made"][0].popitem()
    (tmp_path / "store/files/md5" / digest[:2] / digest[2:]).unlink()
    (tmp_path / "here/.dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    (tmp_path / "here/made").unlink()
    sent["cached"]["made"] = ({"md5": digest}, {})
    with pytest.raises(MachineError) as error:
        transfer.pull(here, here.index.outs, sent, "store")
    assert "1 of its files are missing" in one_line(error.value)


def test_outs_that_nobody_has_made_cannot_be_sent(here: Any, tmp_path: Path) -> None:
    (tmp_path / "here/dvc.lock").unlink()
    from dvc.repo import Repo

    with Repo(str(tmp_path / "here")) as repo, pytest.raises(MachineError) as error:
        sender(repo).send(job(tmp_path / "here", "second"))
    assert "Make it with: dvc repro first" in one_line(error.value)


@pytest.mark.parametrize(
    ("remote", "told"),
    [("stroe", "DVC has no remote 'stroe'; there is store."), ("store", "Nothing can be written")],
)
def test_a_remote_that_cannot_be_used_is_told_at_once(
    remote: str, told: str, here: Any, tmp_path: Path
) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises((MachineError, ParamsError)) as error:
        sender(here, remote)
    assert told in one_line(error.value)


def test_a_node_unpacks_the_sources_once_and_takes_away_what_has_ended(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(nodes.CACHE, str(tmp_path / "node"))
    monkeypatch.setattr(nodes.socket, "gethostname", lambda: "one.host-2")
    work = tmp_path / "node/work"
    ended, alive, elsewhere, others = (
        work / name
        for name in ("one.host-2/999999999-a", f"one.host-2/{os.getppid()}-a", "two/999999999-a", "one.host-2/note")
    )  # fmt: skip
    for folder in (ended, alive, elsewhere, others):
        folder.mkdir(parents=True)
    (tmp_path / "linked.py").write_text("pass\n")
    (tmp_path / "here/pipeline/linked.py").symlink_to(tmp_path / "linked.py")
    archive = sender(here).archive()
    with tarfile.open(fileobj=BytesIO(archive)) as content:
        names = sorted(content.getnames())
    assert names == [".dvcignore", "dvc.yaml", "pipeline/linked.py", "pipeline/source.py"]

    folder = Path(nodes.workspace(archive))
    assert (folder / "pipeline/source.py").read_text() == "pass\n"
    assert (folder / "pipeline/linked.py").read_text() == "pass\n"
    assert folder.stat().st_mode & 0o077 == 0
    assert not ended.exists()
    assert alive.exists()
    assert elsewhere.exists()
    assert others.exists()
    (folder / "kept").touch()
    assert nodes.workspace(archive) == str(folder)
    assert (folder / "kept").exists()


def test_other_sources_are_never_those_of_an_earlier_process_of_this_number(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(nodes.CACHE, str(tmp_path / "node"))
    sending = sender(here)
    before = Path(nodes.workspace(sending.archive()))
    (tmp_path / "here/pipeline/source.py").write_text("edited\n")
    after = Path(nodes.workspace(sending.archive()))
    assert (after / "pipeline/source.py").read_text() == "edited\n"
    assert not before.exists()


class Place:
    """An executor whose jobs end at once."""

    places = 3

    def __init__(self, name: str) -> None:
        self.name, self.jobs, self.calls = name, list[Job](), list[str]()

    def free(self, *, gpu: bool) -> bool:
        return not self.jobs

    def start(self, job: Job) -> str:
        self.jobs.append(job)
        return self.name

    def wait(self, seconds: float) -> Sequence[Ended]:
        ended = [Ended(job, self.name) for job in self.jobs]
        self.jobs.clear()
        return ended

    def progress(self, job: Job) -> Progress | None:
        return Progress(self.name, 0, 1)

    def stop(self) -> None:
        self.calls.append("stop")

    def close(self) -> None:
        self.calls.append("close")


def test_jobs_on_gpus_go_there_and_others_stay_here(tmp_path: Path) -> None:
    here, there = Place("here"), Place("there")
    executor = DividedExecutor(here, there)
    mine, theirs = job(tmp_path, gpu=False), job(tmp_path)
    assert executor.places == 3
    assert executor.wait(0.0) == []
    assert (executor.start(mine), executor.start(theirs)) == ("here", "there")
    assert not executor.free(gpu=False)
    assert executor.progress(theirs) == Progress("there", 0, 1)
    assert executor.wait(60.0) == [Ended(mine, "here"), Ended(theirs, "there")]
    assert executor.free(gpu=True)
    executor.stop()
    executor.close()
    assert here.calls == there.calls == ["stop", "close"]
