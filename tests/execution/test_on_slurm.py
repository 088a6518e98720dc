"""Jobs through submitit: into its local executor, and into a stand-in for Slurm's commands."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dvc_project import ONE, make
from execution_fixtures import PATIENCE
from fake_slurm import FakeSlurm

from pipeline.errors import MachineError, ParamsError, UnknownNameError
from pipeline.execution import on_slurm, slurm_node, slurm_queue
from pipeline.execution.done import Mark
from pipeline.execution.job import Ended, Job
from pipeline.execution.on_slurm import SlurmExecutor
from pipeline.execution.slurm_settings import settings

pytestmark = pytest.mark.cpu


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_slurm, "LATENCY", 0.5)
    monkeypatch.setattr(on_slurm, "ASKING", 0.5)


def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: bool | str) -> FakeSlurm:
    (folder / "slurm").mkdir()
    fake = FakeSlurm(folder / "slurm", **options)
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    return fake


@pytest.fixture(params=["slurm", "local"])
def executor(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: None
) -> Iterator[SlurmExecutor]:
    """An executor whose jobs run: both clusters keep the same promises."""
    slurm(tmp_path, monkeypatch)
    made = SlurmExecutor(tmp_path / "run", settings([f"cluster={request.param}"], gpus=False))
    with closing(made):
        yield made


def job(folder: Path, name: str, *commands: str, gpu: bool = False, marks: tuple[Mark, ...] = ()) -> Job:
    log = folder / "logs" / f"{name}.log"
    return Job(name, commands, folder, log, {"STAGE": name}, gpu=gpu, marks=marks)


def ended(executor: SlurmExecutor, number: int, before: Sequence[Ended] = ()) -> dict[str, str | None]:
    """Return why each of `number` jobs has failed, by name, as soon as they have ended.

    Args:
        executor: runs them.
        number: of the jobs.
        before: those that were said to have ended before.
    """
    found = list(before)
    deadline = time.monotonic() + PATIENCE
    while len(found) < number and time.monotonic() < deadline:
        found += executor.wait(0.5)
    return {each.job.name: each.failure for each in found}


def submit(executor: SlurmExecutor, *jobs: Job) -> Sequence[Ended]:
    """Start jobs, let them go into the queue, and return those that have ended by then."""
    for each in jobs:
        assert executor.free(gpu=each.gpu)
        executor.start(each)
    assert executor.wait(0.0) == []  # there may be more of them
    return executor.wait(0.0)


def until(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_array_of_jobs_ends_each_in_its_own_way(executor: SlurmExecutor, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("made")
    mark = Mark(tmp_path / "mark.json", "key", (tmp_path / "out",))
    other = Mark(tmp_path / "other.json", "key", ())
    quick = submit(
        executor,
        job(tmp_path, "good", "echo $STAGE in $PWD", "echo second >&2", marks=(mark,)),
        job(tmp_path, "bad", "echo 'error: no teacher' >&2; exit 3", "touch never", marks=(other,)),
        job(tmp_path, "silent", "exit 3"),
    )

    failures = ended(executor, 3, quick)
    assert failures.pop("silent", "").startswith("exit status 3")
    assert failures == {"good": None, "bad": "no teacher"}
    assert (tmp_path / "logs/good.log").read_text().splitlines()[1:] == [f"good in {tmp_path}", "second"]
    assert mark.holds()
    assert not other.file.exists()
    assert not (tmp_path / "never").exists()
    assert not (tmp_path / "run/slurm.json").exists()  # nothing is left to remember


def test_a_job_that_is_killed_is_one_line_with_its_state_and_log(
    executor: SlurmExecutor, tmp_path: Path
) -> None:
    quick = submit(executor, job(tmp_path, "lost", "echo begun; kill -KILL $PPID"))

    line = ended(executor, 1, quick)["lost"]
    assert line is not None
    assert "\n" not in line
    assert " ended as FAILED" in line or " ended as FINISHED" in line
    assert f"its log is {tmp_path}/logs/lost.log" in line


def test_stop_interrupts_the_commands_and_returns_when_they_are_gone(
    executor: SlurmExecutor, tmp_path: Path
) -> None:
    waiting = "trap 'sleep 1; touch interrupted; exit 1' INT; touch begun; while true; do sleep 0.1; done"
    submit(executor, job(tmp_path, "long", waiting), job(tmp_path, "short", "touch made"))
    until(tmp_path, "begun")
    until(tmp_path / "run/slurm", "*_result.pkl")  # of `short`
    executor.start(job(tmp_path, "late", "touch late"))

    executor.stop()
    assert (tmp_path / "interrupted").exists()
    assert {each.job.name: each.failure for each in executor.wait(0.0)} == {
        "long": "interrupted", "short": None, "late": "interrupted before it was submitted"
    }  # fmt: skip
    assert not (tmp_path / "late").exists()
    assert not (tmp_path / "run/slurm.json").exists()


def test_the_next_run_interrupts_what_a_killed_one_has_left(executor: SlurmExecutor, tmp_path: Path) -> None:
    waiting = "trap 'touch interrupted; exit 1' INT; touch begun; while true; do sleep 0.1; done"
    submit(executor, job(tmp_path, "long", waiting), job(tmp_path, "other", "sleep 0.1"))
    until(tmp_path, "begun")
    assert (tmp_path / "run/slurm.json").exists()
    killed = dict(executor._queued)
    executor._queued.clear()  # nobody stops anything, and the file is still there

    slurm_queue.end_leftovers(tmp_path / "run")
    assert (tmp_path / "interrupted").exists()
    assert not (tmp_path / "run/slurm.json").exists()
    slurm_queue.end_leftovers(tmp_path / "run")  # there is nothing to do
    # A process that is ending has no command line any more, and cannot be waited for yet.
    deadline = time.monotonic() + PATIENCE
    while not all(each.submitted.done() for each in killed.values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_command_starts_interrupts_it(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            until(tmp_path, "begun")
            signal.raise_signal(number)

    started: list[Started] = []
    monkeypatch.setattr(slurm_node.subprocess, "Popen", Started)
    monkeypatch.setattr(slurm_node, "_id", lambda: "1")
    (tmp_path / "logs").mkdir()
    waiting = "trap 'touch interrupted; exit 1' INT; touch begun; while true; do sleep 0.1; done"
    before = {each: signal.signal(each, signal.default_int_handler) for each in slurm_node.ASKING}
    try:
        assert slurm_node.NodeJob(job(tmp_path, "long", waiting))() == "interrupted"
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert started[0].wait(PATIENCE) == 1
    assert (tmp_path / "interrupted").exists()


def test_a_job_whose_node_is_taken_away_is_queued_again(executor: SlurmExecutor, tmp_path: Path) -> None:
    """submitit is signaled; the command is interrupted, may write its checkpoint, and runs again."""
    taken = "trap 'touch checkpoint; exit 1' INT; kill -USR2 $PPID; sleep 60 & wait; exit 9"
    quick = submit(executor, job(tmp_path, "training", f"test -e checkpoint && exit 0; {taken}"))
    assert ended(executor, 1, quick) == {"training": None}
    assert (tmp_path / "checkpoint").exists()


# --- What Slurm is told ---


def test_a_frontier_is_one_array_of_jobs_on_gpus_and_one_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = slurm(tmp_path, monkeypatch, hold=True)
    given = settings(["partition=a,b,time=90", "gpu.mem=32GB", "cpu.cpus_per_task=4,gres=gpu:a100:1"])
    with closing(SlurmExecutor(tmp_path / "run", given)) as executor:
        submit(executor, *(job(tmp_path, f"{k}", "true", gpu=k < 3) for k in range(5)))
        on_gpus, others = fake.scripts
        submit(executor, job(tmp_path, "next", "true"))
        alone = fake.scripts[2]

    assert on_gpus["array"] == "0-2%3"
    assert on_gpus["gres"] == "gpu:a100:1"
    assert on_gpus["mem"] == "32GB"
    assert others["array"] == "0-1%2"
    assert others["cpus-per-task"] == "4"
    assert not {"gres", "mem", "gpus-per-node"} & others.keys()
    assert "array" not in alone
    assert {each["partition"] for each in (on_gpus, others, alone)} == {"a,b"}
    assert {each["time"] for each in (on_gpus, others, alone)} == {"90"}
    assert set(fake.states) == {"CANCELLED by 1000"}  # closing takes back what has not begun


def test_jobs_get_a_gpu_unless_the_run_is_on_cpus() -> None:
    assert settings([]).gpu["gpus_per_node"] == 1
    assert settings(["gpus_per_node=2"]).gpu["gpus_per_node"] == 2
    assert "gpus_per_node" not in settings([]).cpu
    assert "gpus_per_node" not in settings(["gpus_per_node=2"], gpus=False).gpu


def test_a_run_on_cpus_says_so_to_its_jobs(tmp_path: Path) -> None:
    made = SlurmExecutor(tmp_path / "run", settings(["cluster=local"], gpus=False), cpu=True)
    with closing(made) as executor:
        quick = submit(executor, job(tmp_path, "any", "test $STILLHOUSE_DEVICE = cpu", gpu=True))
        assert ended(executor, 1, quick) == {"any": None}


def test_the_queue_takes_as_many_as_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(tmp_path, monkeypatch, hold=True)
    with closing(SlurmExecutor(tmp_path / "run", settings([]), most=2)) as executor:
        submit(executor, job(tmp_path, "a", "true"))
        assert executor.free(gpu=False)
        executor.start(job(tmp_path, "b", "true"))
        assert not executor.free(gpu=False)


# --- One line each ---


def test_what_sbatch_refuses_fails_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(tmp_path, monkeypatch, refuse="sbatch: error: invalid partition specified: gpu")
    with closing(SlurmExecutor(tmp_path / "run", settings(["partition=gpu"]))) as executor:
        [one, _] = submit(executor, job(tmp_path, "a", "true"), job(tmp_path, "b", "true"))
    assert one.failure is not None
    assert "slurm refuses it: sbatch: error: invalid partition specified: gpu" in one.failure
    assert "\n" not in one.failure


def test_a_node_without_the_project_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: None
) -> None:
    slurm(tmp_path, monkeypatch, broken=True)
    with closing(SlurmExecutor(tmp_path / "run", settings([], gpus=False))) as executor:
        quick = submit(executor, job(tmp_path, "a", "true"))
        line = ended(executor, 1, quick)["a"]
    assert line is not None
    assert "on node7 ended as FAILED before it began: the node must have the folder" in line
    assert "execve()" in line
    assert "\n" not in line


def test_a_machine_without_slurm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MachineError, match="no sbatch, srun, sacct, squeue, scancel"):
        SlurmExecutor(tmp_path / "run", settings([]))

    slurm_queue.Queue(tmp_path, "slurm").remember(["12_0", "12_1", "13"])
    with pytest.raises(MachineError, match=r"Jobs 12, 13 of an earlier run .* has no scancel"):
        slurm_queue.end_leftovers(tmp_path)


def test_a_slurm_without_accounting_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = slurm(tmp_path, monkeypatch)
    (fake.bin / "sacct").write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2; exit 1\n")
    with pytest.raises(MachineError, match="sacct says: Slurm accounting storage is disabled"):
        SlurmExecutor(tmp_path / "run", settings([]))


def test_a_job_that_somebody_cancels_in_the_queue_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: None
) -> None:
    slurm(tmp_path, monkeypatch, hold=True)
    with closing(SlurmExecutor(tmp_path / "run", settings([]))) as executor:
        submit(executor, job(tmp_path, "a", "true"))
        subprocess.run(["scancel", "100"], check=True)
        assert "Job 100 on node7 ended as CANCELLED by 1000. See its log" in (ended(executor, 1)["a"] or "")


def test_submitit_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MachineError, match=r'pip install -e "\.\[slurm\]"'):
        settings([])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("partition", "is no setting. Give name=value"),
        ("time=1:00:00", "expected minutes, for instance time=120"),
        ("time=0", "expected minutes"),
        ("partition=a,partition=b", "gives partition twice"),
        ("cluster=condor", "Give slurm, or local"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(text: str, line: str) -> None:
    with pytest.raises(ParamsError, match=line):
        settings([text])


@pytest.mark.parametrize("name", ["partion", "nodes", "tpu.time"])
def test_an_unknown_setting_lists_those_that_there_are(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"Known: account, .*partition"):
        settings([f"{name}=1"])


def test_jobs_that_do_not_leave_the_queue_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = slurm(tmp_path, monkeypatch, hold=True)
    (fake.bin / "scancel").write_text("#!/bin/sh\n")
    monkeypatch.setattr(slurm_queue, "GRACE", 0.0)
    monkeypatch.setattr(slurm_queue, "PATIENCE", 0.0)
    with closing(SlurmExecutor(tmp_path / "run", settings([]))) as executor:
        submit(executor, job(tmp_path, "a", "true"))
    with pytest.raises(MachineError, match="Jobs 100 of an earlier run do not leave Slurm's queue"):
        slurm_queue.end_leftovers(tmp_path / "run")


@pytest.mark.slow
def test_a_project_goes_through_the_queue(tmp_path: Path) -> None:
    project = make(tmp_path, ONE)
    run = (
        "python",
        "-m",
        "stages.run",
        "--executor",
        "slurm",
        "--slurm",
        "cluster=local",
        "--devices",
        "cpu",
    )
    assert "failed" not in project.run(*run, PYTHONPATH=str(tmp_path))
    assert "up to date" in project.run("dvc", "status")
    assert project.repro() == set()
    assert (tmp_path / "artifacts/metrics").exists()
    assert list((tmp_path / ".dvc/tmp/stillhouse/slurm").glob("*_result.pkl"))
