"""Jobs in processes of this machine, with small commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from execution_fixtures import ended, gone, number_in, run, stage, until

from pipeline.artifacts.closure import root
from pipeline.execution import local, server
from pipeline.execution.done import Mark
from pipeline.execution.job import Job
from pipeline.execution.local import LocalExecutor

WAITS = "echo $$ > pid; while :; do sleep 0.05; done"
PROBE = """
import json, os, sys
about = {
    "modules": sorted(sys.modules), "argv": sys.argv, "path": sys.path, "folder": os.getcwd(), "group": os.getpgid(0),
    "pid": os.getpid(), "environment": dict(os.environ), "stdin": sys.stdin.read(), "name": __name__,
}
if "torch" in sys.modules:
    import torch
    about["threads"], about["cuda"] = torch.get_num_threads(), torch.cuda.is_initialized()
open("about.json", "w").write(json.dumps(about))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the working folder of jobs; the server imports little there, and nothing is set for threads."""
    monkeypatch.setattr(server, "PRELOAD", "pipeline.execution.worker")
    monkeypatch.setattr(local, "cores", lambda: 4)
    for name in server.THREADS:
        monkeypatch.delenv(name, raising=False)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("PYTHONPATH", str(root()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    made = LocalExecutor(2)
    yield made
    made.close()


@pytest.fixture
def job(folder: Path) -> Callable[..., Job]:
    def make(*commands: str, name: str = "job", **options: object) -> Job:
        return Job(name, commands, folder, folder / f"logs/{name}.log", **options)

    return make


# ------------------------------------------------------------------ commands and failures


def test_commands_run_in_order_up_to_the_first_that_fails(
    executor: LocalExecutor, job: Callable[..., Job]
) -> None:
    made = job("echo one", "echo two >&2; exit 3", "echo three")
    assert run(executor, made) == {"job": "exit status 3: two"}
    assert made.log.read_text() == "one\ntwo\n"

    assert run(executor, job("echo four")) == {"job": None}
    assert made.log.read_text() == "four\n"


@pytest.mark.parametrize(
    ("command", "failure"),
    [
        ("echo error: first; echo error: second; echo after; exit 1", "second"),
        ("kill -9 $$", "it was killed by SIGKILL (the machine's memory may be full)"),
        ("exit 143", "it was killed by SIGTERM"),
        ("exit 7", "exit status 7"),
        ("exit 255", "exit status 255"),
    ],
)
def test_a_failure_is_one_line(
    command: str, failure: str, executor: LocalExecutor, job: Callable[..., Job]
) -> None:
    assert run(executor, job(command)) == {"job": failure}


def test_a_worker_that_is_killed_takes_with_it_what_it_has_started(
    executor: LocalExecutor, job: Callable[..., Job], folder: Path
) -> None:
    executor.start(job(WAITS))
    shell = number_in(folder / "pid")
    os.kill(os.getpgid(shell), signal.SIGKILL)  # the worker leads the group
    (end,) = ended(executor, 1)
    assert end.failure == "it was killed by SIGKILL (the machine's memory may be full)"
    until(lambda: gone(shell))


def test_a_lost_server_costs_its_jobs_and_the_next_one_has_another(
    executor: LocalExecutor, job: Callable[..., Job], folder: Path
) -> None:
    executor.start(job(WAITS))
    shell = number_in(folder / "pid")
    os.kill(server.forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    (end,) = ended(executor, 1)
    assert end.failure
    until(lambda: gone(shell))
    assert run(executor, job("true")) == {"job": None}


def test_a_server_that_cannot_start_is_an_error_in_one_line(
    job: Callable[..., Job], folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text("raise RuntimeError('no such library')")
    monkeypatch.setattr(server, "PRELOAD", "broken")
    executor = LocalExecutor(1)
    with pytest.raises(server.MachineError, match="has ended at its start"):
        executor.start(job("true"))
    assert "no such library" in capfd.readouterr().err
    executor.close()


def test_two_jobs_run_side_by_side(executor: LocalExecutor, job: Callable[..., Job]) -> None:
    first = "touch {0}; until [ -e {1} ]; do sleep 0.02; done"
    jobs = [job(first.format("a", "b"), name="a"), job(first.format("b", "a"), name="b")]
    assert run(executor, *jobs) == {"a": None, "b": None}


def test_marks_are_left_once_all_commands_have_ended_well(
    executor: LocalExecutor, job: Callable[..., Job], folder: Path
) -> None:
    marks = {
        name: Mark(folder / f"done/{name}.json", "key", (folder / f"{name}.txt",)) for name in ("a", "b", "c")
    }
    run(
        executor,
        job("echo 1 > a.txt", "true", name="a", marks=(marks["a"],)),
        job("echo 1 > b.txt", "false", name="b", marks=(marks["b"],)),
    )
    run(executor, job("true", name="c", marks=(marks["c"],)))  # it has not made its out
    assert {name: mark.holds() for name, mark in marks.items()} == {"a": True, "b": False, "c": False}


# ------------------------------------------------------------------ a stage in a process with its imports


def _about(
    folder: Path, executor: LocalExecutor, job: Callable[..., Job], *arguments: str, **options: object
) -> dict[str, object]:
    command = " ".join([stage(folder, "probe", PROBE), *arguments])
    assert run(executor, job(command, **options)) == {"job": None}
    about: dict[str, object] = json.loads((folder / "about.json").read_text())
    return about


def test_a_stage_runs_as_by_hand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words, folder, variables, places of imports and standard input; and in a group of its own."""
    source = """
import os
from pathlib import Path
from pipeline.execution import server
from pipeline.execution.job import Job
from pipeline.execution.local import LocalExecutor

if __name__ == "__main__":
    server.PRELOAD = "pipeline.execution.worker"
    os.environ["ONCE"] = "1"
    executor, here = LocalExecutor(1), Path.cwd()
    for _ in range(2):
        executor.start(Job("job", ("python -m stages.probe --seed 0",), here, here / "job.log", {"DVC_STAGE": "a"}))
        (end,) = executor.wait(1000)
        assert end.failure is None, end.failure
        os.environ.pop("ONCE", None)  # the server has it still
"""
    stage(folder, "probe", PROBE)
    # What C libraries of pytest have put beside os.environ is not handed on.
    subprocess.run(stage(folder, "parent", source).split(), env=dict(os.environ), check=True)
    warm = json.loads((folder / "about.json").read_text())
    command = ["python", "-m", "stages.probe", "--seed", "0"]
    environment = os.environ | {"DVC_STAGE": "a"}
    subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL)
    by_hand = json.loads((folder / "about.json").read_text())

    assert "multiprocessing.forkserver" in warm["modules"]
    assert warm["group"] == warm["pid"]
    for about in (warm, by_hand):
        for part in ("modules", "group", "pid"):
            del about[part]
    assert warm == by_hand


def test_torch_is_there_already_with_a_share_of_the_threads(
    job: Callable[..., Job], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PRELOAD", "torch")
    about = _about(folder, LocalExecutor(2), job)
    assert "torch" in about["modules"]
    assert about["threads"] == 2
    assert about["cuda"] is False
    # What the user has not chosen is left to the stage: a small network takes one thread, as by hand.
    assert not {*server.THREADS} & {*about["environment"]}


def test_another_number_of_slots_has_other_threads(job: Callable[..., Job]) -> None:
    printing = "echo threads: $OMP_NUM_THREADS $MKL_NUM_THREADS $OPENBLAS_NUM_THREADS"
    texts = {}
    for slots in (2, 4, 9, 1):
        made = job(printing)
        assert run(LocalExecutor(slots), made) == {"job": None}
        texts[slots] = made.log.read_text()
    assert texts == {
        2: "threads: 2 2 2\n", 4: "threads: 1 1 1\n", 9: "threads: 1 1 1\n", 1: "threads:\n"
    }  # fmt: skip


@pytest.mark.parametrize(("cores", "slots"), [(1, 1), (2, 2), (4, 4), (8, 4), (16, 4), (64, 16)])
def test_of_many_cores_a_stage_has_several(cores: int, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores", lambda: cores)
    assert local.slots() == slots


def test_the_user_s_own_number_of_threads_is_kept(
    job: Callable[..., Job], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    about = _about(folder, LocalExecutor(2), job)
    environment = about["environment"]
    assert isinstance(environment, dict)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in environment


def test_two_executors_at_work_with_other_threads_are_refused(
    executor: LocalExecutor, job: Callable[..., Job], folder: Path
) -> None:
    executor.start(job(WAITS))
    number_in(folder / "pid")
    with pytest.raises(RuntimeError, match="another number of threads"):
        LocalExecutor(4).start(job("true", name="other"))


def test_stages_of_one_job_know_nothing_of_each_other(
    executor: LocalExecutor, job: Callable[..., Job], folder: Path
) -> None:
    source = """
import json, os, sys
assert not hasattr(json, "left")
assert "LEFT" not in os.environ
json.left = os.environ["LEFT"] = "here"
print(os.getpid())
"""
    command = stage(folder, "leaves", source)
    made = job(command, command)
    assert run(executor, made) == {"job": None}
    first, second = made.log.read_text().split()
    assert first != second


@pytest.mark.parametrize(
    ("end", "failure"),
    [
        ("sys.exit('what it is')", "exit status 1: what it is"),
        ("sys.exit(4)", "exit status 4"),
        ("sys.exit()", None),
        ("1 / 0", "exit status 1: ZeroDivisionError: division by zero"),
        ("print('error: it says so', file=sys.stderr); sys.exit(1)", "it says so"),
        ("os.kill(os.getpid(), 15)", "it was killed by SIGTERM"),
    ],
)
def test_a_stage_s_status_is_its_own(
    end: str, failure: str | None, executor: LocalExecutor, job: Callable[..., Job], folder: Path
) -> None:
    command = stage(folder, "ends", f"import os, sys\n{end}\n")
    assert run(executor, job(command)) == {"job": failure}


def test_progress_arrives_and_stops_no_stage_that_nobody_listens_to(
    executor: LocalExecutor, job: Callable[..., Job], folder: Path
) -> None:
    source = """
from pathlib import Path
from pipeline.progress import bar
with bar("count", 5000) as advance:
    for _ in range(5000):
        advance(note="n" * 100)
for _ in range(5000):
    with bar("short", 1) as advance:
        advance()
Path("done").touch()
with bar("last", 3) as advance:
    advance(2, "loss 0.1")
    while not Path("seen").exists():
        advance(0)
"""
    made = job(stage(folder, "counts", source))
    executor.start(made)
    until((folder / "done").exists)  # the pipe holds 64 KiB: it is full

    def last() -> bool:
        assert executor.wait(0.02) == []
        progress = executor.progress(made)
        return progress is not None and (progress.title, progress.done, progress.total) == ("last", 2, 3)

    until(last)
    progress = executor.progress(made)
    assert progress is not None
    assert progress.note == "loss 0.1"
    (folder / "seen").touch()
    assert [end.failure for end in ended(executor, 1)] == [None]


def test_the_python_of_another_environment_is_run_by_the_shell(
    executor: LocalExecutor, job: Callable[..., Job], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(folder / "other", with_pip=False, symlinks=True)
    command = stage(folder, "names", "import sys; print(sys.prefix, 'multiprocessing' in sys.modules)")
    path = f"{folder}/other/bin{os.pathsep}{os.environ['PATH']}"
    made = job(command, environment={"PATH": path})
    assert run(executor, made) == {"job": None}
    assert made.log.read_text() == f"{folder}/other False\n"


def test_a_stage_of_another_folder_is_run_by_the_shell(
    executor: LocalExecutor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = folder / "other"
    other.mkdir()
    command = stage(other, "names", "import os, sys; print(os.getcwd(), 'multiprocessing' in sys.modules)")
    made = Job("job", (command,), other, folder / "job.log")
    assert run(executor, made) == {"job": None}
    assert made.log.read_text() == f"{other} False\n"


def test_the_shell_is_the_user_s(
    executor: LocalExecutor, job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job('echo "$BASH_VERSION" | cut -c1')
    for shell, printed in {shutil.which("bash"): True, "": False}.items():
        monkeypatch.setenv("SHELL", shell or "")
        assert run(executor, made) == {"job": None}
        assert made.log.read_text().strip().isdecimal() == (printed or _is_bash("/bin/sh"))


@contextmanager
def interrupted_soon() -> Iterator[None]:
    """Interrupt this process once it waits for another within the block."""
    waiting = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell in the background has it ignored
    waiting.start()
    try:
        yield
    finally:
        waiting.join()
        signal.signal(signal.SIGINT, before)


def _is_bash(shell: str) -> bool:
    return bool(
        subprocess.run([shell, "-c", 'echo "$BASH_VERSION"'], check=False, capture_output=True).stdout.strip()
    )


# ------------------------------------------------------------------ places


def test_a_gpu_is_one_job_s(job: Callable[..., Job], folder: Path) -> None:
    executor = LocalExecutor(4, ["0", "GPU-5"])
    assert executor.free(gpu=True)
    for name, gpu, place in [("a", True, "GPU 0"), ("b", True, "GPU GPU-5"), ("c", False, "cpu")]:
        command = (
            f"echo $CUDA_VISIBLE_DEVICES: $STILLHOUSE_DEVICE > {name}; until [ -e end ]; do sleep 0.02; done"
        )
        assert executor.start(job(command, name=name, gpu=gpu)) == place
    assert not executor.free(gpu=True)
    assert executor.free(gpu=False)

    (folder / "end").touch()
    ended(executor, 3)
    assert executor.free(gpu=True)
    assert [(folder / name).read_text() for name in "ab"] == ["0: cuda\n", "GPU-5: cuda\n"]


def test_without_gpus_a_job_computes_on_the_cpu_if_the_user_says_so(
    job: Callable[..., Job], folder: Path
) -> None:
    for cpu in (False, True):
        made = job("echo device: $STILLHOUSE_DEVICE", gpu=True)
        executor = LocalExecutor(2, cpu=cpu)
        assert executor.start(made) == "cpu"
        ended(executor, 1)
        assert made.log.read_text() == "device: cpu\n" if cpu else "device:\n"


# ------------------------------------------------------------------ the end


def test_stop_interrupts(executor: LocalExecutor, job: Callable[..., Job], folder: Path) -> None:
    source = """
import time
open("pid", "w").write("1\\n")
try:
    time.sleep(1000)
except KeyboardInterrupt:
    print("kept")
    raise SystemExit(130)
"""
    made = job(stage(folder, "waits", source), "echo next")
    executor.start(made)
    number_in(folder / "pid")
    executor.stop()
    (end,) = executor.wait(0.0)
    assert end.failure == "it was killed by SIGINT: kept"
    assert made.log.read_text() == "kept\n"
    assert executor.free(gpu=False)


def test_a_job_whose_command_ends_well_at_a_stop_has_not_ended_well(
    executor: LocalExecutor, job: Callable[..., Job], folder: Path
) -> None:
    executor.start(
        job("trap 'exit 0' INT; echo 1 > pid; while :; do sleep 0.05; done", "echo 2 > pid", name="two")
    )
    number_in(folder / "pid")
    executor.stop()
    assert [end.failure for end in executor.wait(0.0)] == ["it was interrupted"]

    (folder / "pid").unlink()
    executor.start(job("trap 'exit 0' INT; echo 1 > pid; while :; do sleep 0.05; done", name="one"))
    number_in(folder / "pid")
    executor.stop()
    assert [end.failure for end in executor.wait(0.0)] == [None]


def test_a_job_that_heeds_no_interrupt_is_killed(
    executor: LocalExecutor, job: Callable[..., Job], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE", 0.2)
    executor.start(job(f"trap '' INT; {WAITS}", "echo next"))
    shell = number_in(folder / "pid")
    executor.stop()
    (end,) = executor.wait(0.0)
    assert end.failure == "it was killed by SIGKILL (the machine's memory may be full)"
    until(lambda: gone(shell))


def test_a_second_stop_does_not_wait(
    executor: LocalExecutor, job: Callable[..., Job], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor.start(job(f"trap '' INT; {WAITS}"))
    shell = number_in(folder / "pid")
    monkeypatch.setattr(local, "GRACE", 1e6)
    with interrupted_soon(), pytest.raises(KeyboardInterrupt):
        executor.stop()
    executor.close()
    until(lambda: gone(shell))


def test_what_a_shell_has_started_in_the_background_ends_with_it(
    executor: LocalExecutor, job: Callable[..., Job], folder: Path
) -> None:
    executor.start(job("sleep 1000 & echo $! > pid; wait"))  # a shell has it ignore interrupts
    background = number_in(folder / "pid")
    executor.stop()
    until(lambda: gone(background))


def test_a_parent_that_is_killed_leaves_nobody_behind(folder: Path) -> None:
    stage(folder, "waits", "import os, time; open('stage', 'w').write(f'{os.getpid()}\\n'); time.sleep(1000)")
    source = """
import multiprocessing.forkserver as f, multiprocessing.resource_tracker as r
from pathlib import Path
from pipeline.execution import server
from pipeline.execution.job import Job
from pipeline.execution.local import LocalExecutor

if __name__ == "__main__":
    server.PRELOAD = "pipeline.execution.worker"
    executor = LocalExecutor(2)
    here = Path.cwd()
    executor.start(Job("a", ("sleep 1000 & echo $! > background; echo $$ > shell; wait",), here, here / "a.log"))
    executor.start(Job("b", ("python -m stages.waits",), here, here / "b.log"))
    Path("server").write_text(f"{f._forkserver._forkserver_pid}\\n")
    Path("tracker").write_text(f"{r._resource_tracker._pid}\\n")
    executor.wait(1000)
"""
    stage(folder, "parent", source)
    parent = subprocess.Popen([sys.executable, "-m", "stages.parent"])
    names = ("background", "shell", "stage", "server", "tracker")
    pids = {name: number_in(folder / name) for name in names}
    assert not any(gone(pid) for pid in pids.values())
    parent.kill()
    parent.wait()
    until(lambda: all(gone(pid) for pid in pids.values()))


@pytest.mark.parametrize("request_", [b"", b"\x80\x05\x95"])
def test_a_parent_that_is_killed_amid_a_request_has_nothing_printed(request_: bytes, folder: Path) -> None:
    source = f"""
import os
from multiprocessing import forkserver
from pipeline.execution import server

if __name__ == "__main__":
    server._serve({{}})
    status, request = forkserver.connect_to_new_process([])
    os.write(request, {request_!r})
    os.close(request)
    pid, code = forkserver.read_signed(status), forkserver.read_signed(status)
    print(code)
"""
    stage(folder, "parent", source)
    done = subprocess.run([sys.executable, "-m", "stages.parent"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")
