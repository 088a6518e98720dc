"""Jobs on a real Ray cluster: two nodes of one core each, both on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from dvc_project import ONE, make
from execution_fixtures import PATIENCE
from run_fixtures import left, recorded

from pipeline.errors import MachineError
from pipeline.execution import nodes, on_node, on_ray
from pipeline.execution.done import Mark
from pipeline.execution.job import Ended, Job
from pipeline.execution.on_ray import RayExecutor
from pipeline.execution.repository import Repository

SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
# Runs until there is a file named "go", and says how often it was begun.
PATIENT = 'echo $$ >> {name}.begun; while [ ! -e go ]; do sleep 0.1; done; echo "made by $$" > {name}.out'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder in which the project can be imported, and nothing else is."""
    sources = Path(on_ray.__file__).parents[2]
    (tmp_path / "pipeline").symlink_to(sources / "pipeline")
    (tmp_path / "stages").mkdir()
    for name in ("__init__.py", "command.py"):
        (tmp_path / "stages" / name).symlink_to(sources / "stages" / name)
    return tmp_path


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a cluster whose head is a node as others are; its environment is this one's."""
    utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = utils.Cluster(initialize_head=True, head_node_args=SMALL)
    try:
        cluster.add_node(**SMALL)
        yield cluster
    finally:
        cluster.shutdown()


def _job(root: Path, name: str, *commands: str, **more: Any) -> Job:
    return Job(name, commands, root, root / "logs" / f"{name}.log", **more)


def _until(tell: Callable[[], object], executor: RayExecutor | None = None) -> list[Ended]:
    """Wait until something holds, and return the jobs that have ended meanwhile."""
    ended: list[Ended] = []
    deadline = time.monotonic() + PATIENCE
    while not tell():
        assert time.monotonic() < deadline, "it does not happen"
        if executor is None:
            time.sleep(0.2)
        else:
            ended += executor.wait(0.2)
    return ended


def _all(executor: RayExecutor, number: int) -> dict[str, str | None]:
    """Wait for a number of jobs, and return why they have failed."""
    failures: dict[str, str | None] = {}
    deadline = time.monotonic() + PATIENCE
    while len(failures) < number:
        assert time.monotonic() < deadline, "they do not end"
        failures |= {ended.job.name: ended.failure for ended in executor.wait(0.2)}
    return failures


def _gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
def test_jobs_run_on_both_nodes_and_say_how_they_ended(root: Path, cluster: Any) -> None:
    out = root / "out"
    mark = Mark(root / "mark.json", "key", (out,))
    with closing(RayExecutor(root, root / "own", address=cluster.address)) as executor:
        assert executor.free(gpu=True)
        assert executor.start(_job(root, "good", "echo first", f"echo made > {out}", marks=(mark,))) == "ray"
        assert executor.free(gpu=False)
        executor.start(_job(root, "bad", "echo 'error: no such thing.' >&2; exit 3", "touch never"))
        assert not executor.free(gpu=False)  # two cores

        assert _all(executor, 2) == {"good": None, "bad": "no such thing."}
        assert mark.holds()
        assert (root / "logs/good.log").read_text() == "first\n"
        assert not (root / "never").exists()
    assert not list((root / "own").iterdir())


@pytest.mark.slow
def test_the_job_of_a_lost_node_runs_on_another(root: Path, cluster: Any) -> None:
    (lost,) = cluster.worker_nodes
    with closing(RayExecutor(root, root / "own", address=cluster.address)) as executor:
        jobs = [_job(root, name, PATIENT.format(name=name)) for name in ("one", "two")]
        for job in jobs:
            executor.start(job)
        _until(lambda: all(executor.progress(job) for job in jobs), executor)
        there = [job for job in jobs if executor.progress(job).note.endswith(lost.node_id[:6])]
        (job,) = there
        begun = root / f"{job.name}.begun"
        _until(begun.exists, executor)

        cluster.remove_node(lost, allow_graceful=False)
        (process,) = map(int, begun.read_text().split())
        assert not _until(lambda: _gone(process), executor)  # though nobody has told it
        (root / "go").touch()

        assert _all(executor, 2) == {"one": None, "two": None}
        first, second = begun.read_text().split()
        assert first != second
        assert (root / f"{job.name}.out").read_text() == f"made by {second}\n"


@pytest.mark.slow
def test_stop_interrupts_what_runs_and_what_waits(root: Path, cluster: Any) -> None:
    (root / "stages" / "saving.py").write_text(
        "import time\n"
        "try:\n"
        "    print('runs', flush=True)\n"
        "    time.sleep(600)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(1)\n"
        "    open('saved', 'w').close()\n"
        "    raise\n"
    )
    with closing(RayExecutor(root, root / "own", address=cluster.address, jobs=3)) as executor:
        job = _job(root, "saving", "python -m stages.saving")
        executor.start(job)
        _until(lambda: job.log.exists() and "runs" in job.log.read_text(), executor)
        for name in ("other", "waiting"):  # there is a core for one of them
            executor.start(_job(root, name, "sleep 600"))
        executor.stop()

        ended = {each.job.name: each.failure for each in executor.wait(0.0)}
        assert ended.keys() == {"saving", "other", "waiting"}
        assert None not in ended.values()
        assert (root / "saved").exists()


@pytest.mark.slow
def test_a_lost_run_leaves_no_process(root: Path, cluster: Any) -> None:
    program = (
        "import time, sys; from pathlib import Path\n"
        "from pipeline.execution.job import Job; from pipeline.execution.on_ray import RayExecutor\n"
        f"root = Path({str(root)!r}); executor = RayExecutor(root, root / 'own', address={cluster.address!r})\n"
        "executor.start(Job('one', (sys.argv[1],), root, root / 'one.log'))\n"
        "while True: executor.wait(1.0)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program, PATIENT.format(name="one")], cwd=root)
    try:
        begun = root / "one.begun"
        _until(lambda: begun.exists() or run.poll() is not None)
        process = int(begun.read_text())
        assert not _gone(process)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    _until(lambda: _gone(process))
    assert not (root / "one.out").exists()


@pytest.mark.slow
def test_a_node_without_the_environment_is_named(root: Path, cluster: Any, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1\n")
    python.chmod(0o755)
    node = cluster.add_node(**SMALL, env_vars={"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"})

    with pytest.raises(MachineError) as raised:
        RayExecutor(root, root / "own", address=cluster.address)
    text = str(raised.value)
    assert f"/{node.node_id[:6]} has a `python` that cannot import the project: ModuleNotFoundError" in text
    assert text.count("/") == text.count(str(root)) * str(root).count("/") + 1  # no other node is named
    assert not list((root / "own").iterdir())


@pytest.mark.slow
def test_a_node_with_a_folder_of_its_own_is_named(
    root: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All nodes are on this machine, so one of them is made to look for the project elsewhere."""
    (lost,) = cluster.worker_nodes
    number, shared = lost.node_id, nodes._shared
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()

    def look(root: str, folder: str) -> str | None:
        import ray

        if ray.get_runtime_context().get_node_id() != number:
            return shared(root, folder)
        return shared(str(elsewhere), folder.replace(root, str(elsewhere)))

    monkeypatch.setattr(nodes, "_shared", look)
    with pytest.raises(MachineError, match=f"{number[:6]} has another folder .*elsewhere than this machine"):
        RayExecutor(root, root / "own", address=cluster.address)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Return a cluster whose nodes have caches of their own, and whose processes start in no project."""
    utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.chdir(tmp_path)
    first, second = ({"env_vars": {nodes.CACHE: str(tmp_path / name)}} for name in ("first", "second"))
    cluster = utils.Cluster(initialize_head=True, head_node_args=SMALL | first)
    try:
        cluster.add_node(**SMALL, **second)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_nodes_without_the_folder_run_a_project_through_a_remote(tmp_path: Path, apart: Any) -> None:
    """One of them is lost in the middle."""
    (tmp_path / "project").mkdir()
    project = make(tmp_path / "project", ONE)
    project.run("dvc", "remote", "add", "store", str(tmp_path / "remote"))
    with pytest.raises(AssertionError, match=r"error: DVC has no remote 'stroe'; there is store\."):
        project.run("python", "-m", "stages.run", "--executor", "ray", "--through", "stroe")

    (lost,) = apart.worker_nodes
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(
            project.run, "python", "-m", "stages.run", "--executor", "ray", "--address", apart.address,
            "--through", "store",
        )  # fmt: skip
        _until(lambda: run.done() or list(tmp_path.glob("second/work/*/*/logs/*")))
        assert not run.done(), run.result()
        apart.remove_node(lost, allow_graceful=False)
        assert "15 ran" in run.result()

    # The nodes have worked where the project is not, and nothing of theirs is left in the remote.
    assert list(tmp_path.glob("first/work/*/*/artifacts/teachers/ada"))
    assert not list((tmp_path / "remote").rglob("stillhouse-*"))
    assert not list(project.folder.rglob("ray-*"))
    assert "up to date" in project.run("dvc", "status")
    assert project.repro() == set()

    (tmp_path / "other").mkdir()
    by_dvc = make(tmp_path / "other", ONE)
    by_dvc.repro()
    assert recorded(project) == recorded(by_dvc)
    assert left(project) == left(by_dvc)


@pytest.mark.slow
def test_a_project_runs_on_ray_as_by_dvc_repro(tmp_path: Path) -> None:
    project = make(tmp_path, ONE)
    printed = project.run("python", "-m", "stages.run", "--executor", "ray")
    assert "15 ran" in printed
    assert "up to date" in project.run("dvc", "status")
    assert project.repro() == set()


def test_a_folder_is_shared_where_the_run_s_own_is_seen(tmp_path: Path) -> None:
    own = tmp_path / "ray-1"
    assert nodes._shared(str(tmp_path / "none"), str(own)) == f"has no folder {tmp_path / 'none'}"
    assert "it is not shared" in (nodes._shared(str(tmp_path), str(own)) or "")
    own.mkdir()
    assert nodes._shared(str(tmp_path), str(own)) is None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:9", "No Ray cluster answers at '127.0.0.1:9'"),
        ("nowhere.invalid:6379", "No Ray cluster answers at 'nowhere.invalid:6379'"),
        ("127.0.0.1:99999", "No Ray cluster answers at '127.0.0.1:99999'"),
        ("127.0.0.1", "Give HOST:PORT"),
        ("ray://127.0.0.1:10001", "Give HOST:PORT"),
    ],
)
def test_an_address_where_nothing_is(address: str, expected: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(MachineError, match=expected):
        RayExecutor(tmp_path, tmp_path / "own", address=address)


def test_a_retry_waits_while_a_lost_node_still_writes_its_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, notes = tmp_path / "note.json", ["third", "second"]
    on_node._wait_for_lost(note)  # nobody has begun the job

    note.write_text("first")
    monkeypatch.setattr(on_node.time, "sleep", lambda seconds: notes and note.write_text(notes.pop()))
    on_node._wait_for_lost(note)
    assert notes == []
    assert note.read_text() == "third"


def test_ray_chooses_the_gpus(tmp_path: Path) -> None:
    from stages.run import _executor, _Options

    options = _Options(
        jobs=None, devices="0,1", cohort=None, executor="ray", address="127.0.0.1:9", gpu_share=1.0, through=None,
        slurm=[], keep_going=False, force=False,
    )  # fmt: skip
    with pytest.raises(MachineError, match="--devices is '0,1', but Ray chooses"):
        _executor(cast(Repository, SimpleNamespace(folder=tmp_path)), options)


def test_ray_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MachineError, match=r'pip install -e "\.\[ray\]"'):
        RayExecutor(tmp_path, tmp_path / "own")


def test_nodes_of_one_host_are_told_apart() -> None:
    listed = [
        {"NodeID": number, "NodeManagerHostname": host}
        for number, host in (("aaaaaaaa", "a"), ("bbbbbbbb", "b"), ("cccccccc", "b"))
    ]
    assert list(nodes._names(listed).values()) == ["a", "b/bbbbbb", "b/cccccc"]
