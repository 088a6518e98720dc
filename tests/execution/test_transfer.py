"""What stages read and make goes through a remote, and what does not compute on a GPU stays here."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from error_fixtures import one_line

from pipeline.errors import MachineError, ParamsError
from pipeline.execution import apart, nodes, remote_store
from pipeline.execution.divided import DividedExecutor
from pipeline.execution.done import Mark
from pipeline.execution.job import Ended, Job, Progress
from pipeline.execution.on_ray import RayExecutor
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
    here: Any, node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = sender(here)
    sent = sending.send(job(tmp_path / "here", "third"))
    assert sent["cached"].keys() == {"made", "folder", "inputs.json"}
    assert sent["files"] == {"metrics.json": b'["metrics.json"]'}

    monkeypatch.chdir(node)
    with sending.probe() as probe:
        assert apart.look(str(node), "store", sending.config, probe) is None
    assert "cannot read the DVC remote 'store'" in str(apart.look(str(node), "store", sending.config, probe))
    assert not list((tmp_path / "store").rglob("stillhouse*"))
    with apart.repository(node, "store", sending.config) as repo:
        remote_store.pull(repo, repo.index.outs, sent, "store")
        for name in ("made", "metrics.json", "folder/list.json", "folder/deep/file", "inputs.json"):
            assert (node / name).read_bytes() == (tmp_path / "here" / name).read_bytes()

        (node / "end").write_text("the end")
        made = apart._kept(
            repo, [stage for stage in repo.index.stages if stage.addressing == "third"], "store"
        )
    sending.receive(job(tmp_path / "here", "third"), made)
    assert (tmp_path / "here" / "end").read_text() == "the end"


@pytest.fixture
def node(here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a node's process, as it is before its first job."""
    folder = tmp_path / "node" / "work" / "host" / "1"
    folder.mkdir(parents=True)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    monkeypatch.setattr(apart, "_opened", [])
    return folder


def test_of_several_in_one_process_those_come_back_that_ended_well(
    here: Any, node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node's raw files are where it says, and the run may have been called in a subfolder."""
    root = tmp_path / "here"
    monkeypatch.chdir(root / "folder")
    sending = sender(here)
    both = replace(
        job(root, "../dvc.yaml:second", "../dvc.yaml:third"),
        environment={"STILLHOUSE_RAW": "/here", "OMP_NUM_THREADS": "1"},
        marks=(Mark(root / "mark.json", "key", (root / "end",)),),
    )
    sent = sending.send(both)
    monkeypatch.chdir(node)
    seen: list[Job] = []

    def run(job: Job, note: Path | None) -> str | None:
        seen.append(job)
        job.log.parent.mkdir(exist_ok=True)
        job.log.write_text("error: no luck.")
        (job.folder / "end").write_text("the end")
        if len(seen) == 2:
            (job.folder / "inputs.json").write_text("[]")
        return None if len(seen) == 2 else "no luck."

    monkeypatch.setattr(apart.on_node, "run", run)
    monkeypatch.setenv("STILLHOUSE_RAW", "/there")
    executor = object.__new__(RayExecutor)  # of no cluster
    (root / "inputs.json").unlink()

    result = apart.run(str(root), node, both, sent, ("store", sending.config))
    assert executor._received(both, result, sending) == "no luck."
    assert seen[0].folder == node
    assert seen[0].environment["STILLHOUSE_RAW"] == "/there"
    assert seen[0].environment["DVC_ROOT"] == str(node)
    assert both.log.read_text() == "error: no luck."
    assert (root / "end").read_text() == "the end"
    assert not (root / "inputs.json").exists()
    assert not both.marks[0].holds()

    # One that fails alone brings nothing, whatever it has left; a retry brings all.
    alone = replace(both, stages=("../dvc.yaml:third",))
    (root / "end").unlink()
    seen.clear()
    result = apart.run(str(root), node, alone, sent, ("store", sending.config))
    assert result["sent"] == {"cached": {}, "files": {}}
    result = apart.run(str(root), node, both, sent, ("store", sending.config))
    assert executor._received(both, result, sending) is None
    assert both.marks[0].holds()

    # What the remote has lost meanwhile is no result.
    both.marks[0].file.unlink()
    for cache in (tmp_path / "store", root / ".dvc/cache"):
        shutil.rmtree(cache)
    assert "Outs cannot be pulled from" in str(executor._received(both, result, sending))
    assert not both.marks[0].file.exists()


def test_the_remote_is_asked_once_for_what_it_has(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[set[str]] = []
    monkeypatch.setattr(
        remote_store,
        "push",
        lambda repo, outs, remote: pushed.append({str(out) for out in outs if out.use_cache}),
    )
    sending = sender(here)
    first = sending.send(job(tmp_path / "here", "second"))
    assert sending.send(job(tmp_path / "here", "second")) == first
    sending.send(job(tmp_path / "here", "third"))
    assert pushed == [{"made", "folder"}, set(), {"inputs.json"}]


def test_a_stage_of_another_file_is_told(here: Any, tmp_path: Path) -> None:
    """Nodes get the project's dvc.yaml alone."""
    from dvc.repo import Repo

    (tmp_path / "here/sub").mkdir()
    (tmp_path / "here/sub/dvc.yaml").write_text("stages: {other: {cmd: make, outs: [made]}}\n")
    with Repo(here.root_dir) as repo, pytest.raises(MachineError) as error:
        sender(repo).send(job(tmp_path / "here", "sub/dvc.yaml:other"))
    assert "sub/dvc.yaml:other is no stage of" in one_line(error.value)


def test_a_file_that_the_remote_has_lost_is_one_line(here: Any, tmp_path: Path) -> None:
    sending = sender(here)
    sent = sending.send(job(tmp_path / "here", "second"))
    (_, digest) = sent["cached"]["made"][0].popitem()
    (tmp_path / "store/files/md5" / digest[:2] / digest[2:]).unlink()
    (tmp_path / "here/.dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    (tmp_path / "here/made").unlink()
    sent["cached"]["made"] = ({"md5": digest}, {})
    with pytest.raises(MachineError) as error:
        remote_store.pull(here, here.index.outs, sent, "store")
    assert "1 of its files are missing" in one_line(error.value)


def test_outs_that_nobody_has_made_cannot_be_sent(here: Any, tmp_path: Path) -> None:
    (tmp_path / "here/dvc.lock").unlink()
    from dvc.repo import Repo

    with Repo(str(tmp_path / "here")) as repo, pytest.raises(MachineError) as error:
        sender(repo).send(job(tmp_path / "here", "second"))
    assert "Make it with: dvc repro first" in one_line(error.value)


def configure(repo: Any, **remotes: dict[str, Any]) -> Any:
    """Return the repository as it is with other remotes."""
    from dvc.repo import Repo

    with repo.config.edit() as config:
        config["remote"] |= remotes
    return Repo(repo.root_dir)


def test_an_unknown_remote_is_told_at_once(here: Any) -> None:
    with pytest.raises(ParamsError) as error:
        sender(here, "stroe")
    assert "DVC has no remote 'stroe'; there is store." in one_line(error.value)


def test_a_remote_that_nothing_can_be_written_to_is_told(here: Any, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(MachineError) as error, sender(here).probe():
        pass
    assert "Nothing can be written to the DVC remote 'store'" in one_line(error.value)


def test_what_the_library_of_a_store_raises_is_one_line(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boto's errors, for instance, are neither the system's nor DVC's."""
    pytest.importorskip("dvc_s3")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with configure(here, s3={"url": "s3://bucket/x", "endpointurl": "http://127.0.0.1:9"}) as repo:
        with pytest.raises(MachineError) as error, sender(repo, "s3").probe():
            pass
        assert "'s3': Unable to locate credentials" in one_line(error.value)
        assert "cannot read the DVC remote 's3'" in str(remote_store.unusable(repo, "s3", "bucket/x/probe"))
        with pytest.raises(MachineError) as error:
            sender(repo, "s3").send(job(tmp_path / "here", "second"))
        assert "Unable to locate credentials" in one_line(error.value)

    with configure(here, ssh={"url": "ssh://nobody.invalid/x"}) as repo:
        monkeypatch.setitem(sys.modules, "dvc_ssh", None)
        with pytest.raises(MachineError) as error, sender(repo, "ssh").probe():
            pass
        assert "dvc-ssh" in one_line(error.value)


def test_a_remote_that_a_node_can_read_alone_is_told(here: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("stillhouse")
    with configure(here, store={"url": str(tmp_path / "file" / "below")}) as repo:
        fault = remote_store.unusable(repo, "store", str(tmp_path / "file"))
    assert "cannot write to the DVC remote 'store'" in str(fault)


def test_a_remote_s_settings_are_whole_and_of_python_s_own_types(here: Any, tmp_path: Path) -> None:
    """A node gets them before it can import DVC, and has another working folder."""
    with configure(here, near={"url": "../store"}) as repo:
        config = sender(repo, "near").config
    assert config["url"] == str(tmp_path / "store")
    assert {type(value) for value in config.values()} <= {str, int, bool}


def test_the_default_remote_is_dvc_s(here: Any) -> None:
    with pytest.raises(ParamsError):
        sender(here, "default")
    with here.config.edit() as config:
        config["core"]["remote"] = "store"
    from dvc.repo import Repo

    with Repo(here.root_dir) as repo:
        assert sender(repo, "default").remote == "store"


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
