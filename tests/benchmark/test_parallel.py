"""`stages.run` beside `dvc repro`: what is run, where, and what is made of it. Nothing is timed here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_benchmark import TINY

from pipeline.artifacts.closure import root
from pipeline.benchmark import parallel, scratch
from pipeline.benchmark.material import Bench
from pipeline.benchmark.record import Record
from pipeline.benchmark.scratch import Done, Scratch
from pipeline.compute.machine import Machine
from pipeline.errors import MachineError
from pipeline.params import document
from pipeline.params.sections import Sections
from pipeline.runs.check import check

SHIPPED = root() / "params.yaml"
CPU = ("--devices", "cpu")


class Runner:
    """Stands for all commands: what one takes and prints is looked up by its last words."""

    def __init__(self, answers: Mapping[str, Done] | None = None) -> None:
        self.answers = answers or {}
        self.calls: list[tuple[str, Path, Mapping[str, str]]] = []

    def __call__(self, folder: Path, command: Sequence[str], variables: Mapping[str, str]) -> Done:
        words = " ".join(command).replace(f"{sys.executable} -m ", "")
        self.calls.append((words, folder, variables))
        found = [done for name, done in self.answers.items() if words.startswith(name)]
        return found[-1] if found else Done(1.0, "")

    @property
    def words(self) -> list[str]:
        return [words for words, _, _ in self.calls]


def begun(tmp_path: Path, runner: Runner) -> Scratch:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "params.yaml").touch()
    return Scratch(tmp_path / "job", {"A": "1"}, runner)


def by_name(records: Sequence[Record]) -> dict[str, Record]:
    return {each.name.removeprefix("parallel/"): each for each in records}


# Jobs.

PRINTED = "[1/3] params: ran in 2.0 s\n[2/3] distill@p/kd-0: ran in 5.5 s\n[3/3] report: ran in 0.2 s\n3 ran; 0:09.\n"


def test_a_job_is_compared_and_so_is_a_no_op(tmp_path: Path) -> None:
    runner = Runner(
        {
            "dvc repro": Done(40.0, ""),
            "stages.run": Done(10.0, ""),
            "stages.run --jobs 1": Done(9.2, PRINTED),
        }
    )
    found = by_name(parallel.compare_jobs(begun(tmp_path, runner), CPU, 1, 2))
    assert found["job/dvc_repro"].value == pytest.approx(40)
    assert found["job/stages_run"].value == pytest.approx(10)
    assert found["job/ratio"].value == pytest.approx(0.25)
    assert found["job/overhead"].value == pytest.approx((9.2 - 7.7) / 3 + 0.2)
    assert found["no_op/ratio"].value == pytest.approx(0.25)
    assert {name for name, each in found.items() if each.target} == {
        "job/ratio",
        "job/overhead",
        "no_op/ratio",
    }
    assert {each.note for name, each in found.items() if name != "job/overhead"} == {"3 stages"}


def test_each_job_begins_in_a_copy_of_its_own_and_no_ops_follow_that_of_stages_run(tmp_path: Path) -> None:
    runner = Runner({"stages.run --jobs 1": Done(9.2, PRINTED)})
    parallel.compare_jobs(begun(tmp_path, runner), CPU, 2, 1)
    jobs, idle = runner.calls[:6], runner.calls[6:]
    assert len({folder for _, folder, _ in jobs}) == 6
    assert all((folder / "params.yaml").exists() and folder.name != "job" for _, folder, _ in jobs)
    assert all(variables == {"A": "1"} for _, _, variables in runner.calls)
    (last,) = {folder for _, folder, _ in idle}
    assert [words for words, folder, _ in jobs if folder == last] == ["stages.run --devices cpu"]
    assert {words for words, _, _ in idle} == {"dvc repro", "stages.run --devices cpu"}


def test_a_stage_costs_its_share_of_the_rest_and_the_shortest_process() -> None:
    assert parallel.cost(Done(9.2, PRINTED)) == pytest.approx(0.7)
    skipped = "[1/5] a: restored\n[2/5] b: failed in 3.0 s: no\n"
    assert parallel.cost(Done(9.2, skipped + PRINTED)) == pytest.approx(0.7)
    long = "[1/2] a: ran in 1:05\n[2/2] b: ran in 1:00:00\n"
    assert parallel.cost(Done(3667.0, long)) == pytest.approx((3667 - 3665) / 2 + 65)


def test_the_small_job_has_fewer_seeds_and_epochs_and_all_else() -> None:
    params = document.read(SHIPPED)
    small = check(parallel.smaller(params))
    whole = check(params)
    assert len(small.seeds) < len(whole.seeds)
    assert {name: each.epochs for name, each in small.recipes.items()} == {"sixty": 6}
    changed = {"seeds", "recipes"}
    for name in Sections.model_fields.keys() - changed:
        assert getattr(small, name) == getattr(whole, name)


def test_iterations_stay_in_a_small_job() -> None:
    recipes = {"long": {"epochs": 60, "milestones": [30]}, "steps": {"iterations": 9}}
    small = parallel.smaller({"seeds": [0], "recipes": recipes})
    assert small["recipes"] == {"long": {"epochs": 6, "milestones": []}, "steps": {"iterations": 9}}


# Students.


def test_students_two_at_a_time_have_one_thread_each(tmp_path: Path) -> None:
    runner = Runner({"stages.run --jobs 1": Done(60.0, ""), "stages.run --jobs 2": Done(30.0, "")})
    found = by_name(parallel.compare_slots(begun(tmp_path, runner), 2, 3))
    assert found["slots/ratio"].value == pytest.approx(2)
    assert found["slots/ratio"].holds
    threads = {words.split()[2]: variables.get("OMP_NUM_THREADS") for words, _, variables in runner.calls}
    assert threads == {"1": None, "2": "1"}


def test_slots_need_two_cores(tmp_path: Path) -> None:
    runner = Runner()
    (found,) = parallel.compare_slots(begun(tmp_path, runner), 1, 3)
    assert found.note == "not measured: there is one core"
    assert runner.calls == []


def test_a_cohort_is_compared_on_a_gpu_alone(tmp_path: Path) -> None:
    runner = Runner({"dvc repro": Done(60.0, ""), "stages.run": Done(10.0, "")})
    here = begun(tmp_path, runner)
    (none,) = parallel.compare_cohort(here, 3, gpu=False)
    assert none.note == "not measured: the device is no GPU"
    assert runner.calls == []

    found = by_name(parallel.compare_cohort(here, 1, gpu=True))
    assert found["cohort/ratio"].value == pytest.approx(6)
    assert sorted(runner.words) == [
        "dvc repro --force --single-item pretrain_student",
        "stages.run --cohort 12 --force --single-item pretrain_student",
    ]


@pytest.mark.parametrize("gpu", [False, True])
def test_the_twelve_students_pass_the_check(gpu: bool) -> None:
    sections = check(parallel.twelve(gpu=gpu))
    assert len(sections.seeds) * len(sections.students) == 12


# Copies of the project.


def bench(tmp_path: Path) -> Bench:
    return Bench(replace(TINY, small_job=True), Machine(torch.device("cpu")), tmp_path)


def test_a_copy_has_the_sources_and_params_of_its_own(tmp_path: Path) -> None:
    runner = Runner()
    made = Scratch.make(tmp_path / "new", {"seeds": [3]}, {}, runner)
    assert document.read(made.folder / "params.yaml") == {"seeds": [3]}
    for name in ("dvc.yaml", ".dvcignore", "stages/run.py", "pipeline/report/published.csv"):
        assert (made.folder / name).read_bytes() == (root() / name).read_bytes()
    assert {path.name for path in (made.folder / "artifacts").iterdir()} == {".gitignore"}
    assert runner.words == ["git init --quiet", "dvc init --quiet", "compileall -q pipeline stages"]


def test_without_a_dvc_yaml_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "root", lambda: tmp_path)
    (found,) = parallel.parallel(bench(tmp_path))
    assert found.note.startswith("not measured: no dvc.yaml in ")


def test_a_job_of_other_data_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params: dict[str, Any] = {"datasets": {"a": {"source": "digits"}, "b": {"source": {"cifar": {}}}}}
    monkeypatch.setattr(document, "read", lambda path: params)
    (found,) = parallel.job(bench(tmp_path))
    assert found.note == "not measured: params.yaml has data other than the digits"
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_fails_is_told_in_a_line(tmp_path: Path) -> None:
    code = "import sys; print('error: no\\nroom', file=sys.stderr); sys.exit(3)"
    with pytest.raises(
        MachineError, match=r"`python -c .*` has failed in a copy of the project: error: no room$"
    ):
        scratch.execute(tmp_path, (sys.executable, "-c", code), {})


def test_commands_see_nobodys_settings_of_dvc(tmp_path: Path) -> None:
    code = "import os; print(os.environ['DVC_GLOBAL_CONFIG_DIR'], os.environ['MINE'])"
    done = scratch.execute(tmp_path, (sys.executable, "-c", code), {"MINE": "yes"})
    assert done.output.split() == [str(tmp_path / ".away"), "yes"]
    assert done.seconds > 0
