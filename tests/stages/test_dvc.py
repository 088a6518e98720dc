"""What DVC makes of an edit: on a toy pipeline of the real stages, exactly what it changed runs again.

A stage takes seconds here, so edits that have nothing to do with each other share a `repro`, and a few tests name
targets. Every assertion is of a whole set of stages: what is not in it has not run.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dvc_project import EACH, FEATURES, NETWORK, ONE, ROOT, Project, make
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Finished:
    """The toy pipeline, reproduced.

    Attributes:
        project: where it lies; tests work on copies.
        target: the stages that ran for one student alone, in an empty project.
        rest: those that ran for everything else.
    """

    project: Project
    target: set[str]
    rest: set[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Reproduce the toy pipeline once: first one student, then all."""
    project = make(tmp_path_factory.mktemp("finished"))
    return Finished(project, project.repro("distill@bob-sam/kd-0"), project.repro())


@pytest.fixture
def project(finished: Finished, tmp_path: Path) -> Project:
    copy = tmp_path / "project"
    shutil.copytree(finished.project.folder, copy, symlinks=True)
    return Project(copy)


def of(name: str, *stages: str) -> set[str]:
    return {f"{stage}@{name}" for stage in stages}


def students(*names: str) -> set[str]:
    """Return the stages of distilled students, by "pair/run"."""
    return {stage for name in names for stage in of(f"{name}-0", "distill", "evaluate")}


TEACHER = ("train_teacher", "evaluate_teacher", "extract_features", "check_features", "teacher_inputs")
INPUTS = {"inputs@ada-sam", "inputs@bob-sam"}
TABLES = ("moments", "words")


# ------------------------------------------------------------------ what is made


def test_one_student_builds_only_what_it_needs(finished: Finished) -> None:
    """To the grain of a teacher and of a pair.

    The pair's own matchings are one stage, and the teacher's tables one cell each, whether a run asks for them or not.
    So the student alone, which matchings are made with, is among what is built. The other teacher, all evaluations of
    students and the report are not.
    """
    cells = {f"{stage}@bob-{table}" for stage in ("fit_table", "encode_views") for table in TABLES}
    pair = {"match_channels@bob-sam", "inputs@bob-sam", "distill@bob-sam/kd-0"}
    alone = {"student_inputs@sam", "pretrain_student@sam-0"}
    assert finished.target == {"params", "prepare_data@digits"} | of("bob", *TEACHER) | cells | alone | pair


def test_the_rest_is_made_once(finished: Finished) -> None:
    cells = {f"{stage}@ada-{table}" for stage in ("fit_table", "encode_views") for table in TABLES}
    pair = {"match_channels@ada-sam", "inputs@ada-sam", "train_copy@copy"}
    runs = students(*(f"ada-sam/{run}" for run in ("kd", "both", "letkd", "kcd", "slkd_star")))
    others = {"evaluate_pretrained@sam-0", "evaluate@bob-sam/kd-0", "report"}
    assert finished.rest == of("ada", *TEACHER) | cells | pair | runs | others


def test_a_table_that_nobody_asks_for_is_an_empty_cell(finished: Finished) -> None:
    artifacts = finished.project.folder / "artifacts"
    asked = {("ada", "moments"), ("ada", "words")}
    for teacher in ("ada", "bob"):
        for table in TABLES:
            size = (artifacts / f"tables/{teacher}/{table}.npz").stat().st_size
            assert (size > 0) == ((teacher, table) in asked)
            measured = json.loads((artifacts / f"metrics/tables/{teacher}/{table}.json").read_text())
            assert (measured != {}) == ((teacher, table) in asked)
            coded = list((artifacts / f"codes/{teacher}/{table}").iterdir())
            assert [path.name for path in coded] == ["nearest.zarr"] * ((teacher, table) == ("ada", "words"))


def test_several_methods_in_one_run_distill(finished: Finished) -> None:
    folder = finished.project.folder / "artifacts/students/ada-sam/both/0"
    inputs = json.loads((folder / "inputs.json").read_text())
    assert [name for plug in inputs["methods"] for name in plug] == ["kd", "fitnet"]
    assert set(inputs["tables"]) == {"moments"}
    with (folder / "history.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row.keys() >= {"ce", "kd", "hint", "loss", "top1"}
    assert float(row["kd"]) > 0
    assert float(row["hint"]) > 0


def test_every_stage_depends_on_its_own_code(finished: Finished) -> None:
    """By the hash in its block where it costs something, by that of its closure where it does not."""
    folder = finished.project.folder
    stages = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    assert stages.keys() == finished.target | finished.rest
    for name, stage in stages.items():
        if name == "params":
            assert {"pipeline", "stages"} <= {dep["path"] for dep in stage["deps"]}
            continue
        command = stage["cmd"] if isinstance(stage["cmd"], str) else stage["cmd"][-1]
        module = re.match(r"python -m stages\.(\w+)", command)
        assert module is not None, name
        paths = {dep["path"] for dep in stage["deps"]}
        jsons = {path for path in paths if path.endswith(".json")}
        blocks = [json.loads((folder / path).read_text()) for path in jsons]
        coded = [block for block in blocks if isinstance(block, dict) and block.get("stage") == name]
        if coded and coded[0]["code_hash"]:
            continue
        empty = None in blocks or (coded and coded[0].get("recipes") == {})  # nobody asks for what it makes
        assert empty or paths & {f"artifacts/code/stages/{module[1]}.json", "artifacts/code"}, name


def test_params_yaml_can_be_read_and_every_stage_resolved() -> None:
    program = Path(sys.executable).parent / "dvc"
    done = subprocess.run([program, "stage", "list"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------ what reruns nothing


def test_machine_options_wording_and_defaults_rerun_nothing(project: Project) -> None:
    options = {"STILLHOUSE_DEVICE": "cpu", "STILLHOUSE_BATCH_SIZE": "7", "STILLHOUSE_RESIDENT": "0"}
    assert project.repro(**options) == set()

    project.append("pipeline/networks/network.py", "\n# What a network is.\n")
    project.replace("pipeline/tables/fits/moments.py", "Mean and standard deviation", "Moments")
    project.replace("stages/distill.py", "The json of a run and seed", "What a run and seed are made from")
    project.replace("stages/command.py", "interrupted. Run", "interrupted: run")
    project.replace("stages/command.py", "The hyper-parameters.", "All settings.")
    project.edit(lambda params: params["runs"]["kd"].update(source="cached"))
    project.edit(lambda params: params["teachers"]["ada"].update(seed=0))
    assert project.repro() == {"params"}


# ------------------------------------------------------------------ settings


def test_settings_rerun_what_they_change(project: Project) -> None:
    """A new K, a run's temperature, a copy's temperature, and what is pictured of matchings; then all back."""

    def change(params: dict[str, Any]) -> None:
        params["tables"]["words"]["kmeans"]["clusters"] = 5
        params["runs"]["kd"]["methods"] = {"kd": {"temperature": 2.0}}
        params["copies"]["copy"]["temperature"] = 2.0
        params["matchings"]["kcd"]["pictured"] = 3

    before = (project.folder / "params.yaml").read_text()
    project.edit(change)
    table = {"teacher_inputs@ada", "fit_table@ada-words", "encode_views@ada-words"}
    others = {"train_copy@copy", "match_channels@ada-sam"}
    again = {
        f"distill@{name}-0" for name in ("ada-sam/letkd", "ada-sam/kd", "bob-sam/kd", "ada-sam/slkd_star")
    }
    # Pictures are no part of a matching, so its student stays. No cell that is empty runs, and no other table.
    assert project.repro("distill") == {"params"} | table | others | INPUTS | again

    (project.folder / "params.yaml").write_text(before)
    assert project.repro("distill") == set()  # the run cache has it


def test_a_teacher_reruns_its_chain_and_another_feature_reruns_no_fit(project: Project) -> None:
    """Teacher bob is trained for longer; the store of ada holds one more feature, of which nobody reads anything."""

    def change(params: dict[str, Any]) -> None:
        params["teachers"]["bob"]["recipe"] = {"quick": {"epochs": 2}}
        params["teachers"]["ada"]["features"] = FEATURES | {"stage3:attention": {"slots": 0}}

    project.edit(change)
    bob = of("bob", *TEACHER) | students("bob-sam/kd")  # its tables are empty, so they stay
    ada = of("ada", "extract_features", "check_features", "teacher_inputs")
    assert project.repro() == {"params", "report"} | INPUTS | bob | ada


def test_a_seed_and_a_measure_rerun_what_they_are_for(project: Project) -> None:
    def change(params: dict[str, Any]) -> None:
        params["seeds"] = [0, 1]
        params["matchings"]["kcd"]["measure"] = "l2"

    project.edit(change)
    matched = {"match_channels@ada-sam", "inputs@ada-sam", "distill@ada-sam/kcd-0"}
    new = {"pretrain_student@sam-1", "distill@ada-sam/kd-1"}
    ran = project.repro("distill@ada-sam/kd-0", "distill@ada-sam/kd-1", "distill@ada-sam/kcd-0")
    assert ran == {"params"} | matched | new


def test_runs_methods_students_and_pairs_are_added_by_params(project: Project) -> None:
    """A file in a catalogue is a method; a run that begins to ask for a table makes it."""
    method = (project.folder / "pipeline/distillation/methods/kd.py").read_text()
    assert '"ce": 0.1' in method
    ours = project.folder / "pipeline/distillation/methods/ours.py"
    ours.write_text(method.replace('"ce": 0.1', '"ce": 1.0'))

    def add(params: dict[str, Any]) -> None:
        params["students"]["sue"] = NETWORK
        params["pairs"]["bob-sue"] = {"teacher": "bob", "student": "sue"}
        params["runs"]["ours"] = {"methods": {"ours": {}, "fitnet": {"standardize": "moments"}}, "slots": 2}
        params["distill"].append("bob-sue/ours")

    project.edit(add)
    # Codes wait for their table, also where there are none of it.
    table = {"teacher_inputs@bob", "fit_table@bob-moments", "encode_views@bob-moments"}
    sue = {"student_inputs@sue", "pretrain_student@sue-0", "match_channels@bob-sue", "inputs@bob-sue"}
    # The listing of the code has one more entry.
    listed = {"params", "student_inputs@sam"} | INPUTS
    assert project.repro("distill") == listed | table | sue | {"distill@bob-sue/ours-0"}
    assert (project.folder / "artifacts/tables/bob/moments.npz").stat().st_size > 0


def test_an_edit_of_an_assistant_reruns_what_comes_after_it(tmp_path: Path) -> None:
    """The chain ada, first, second, and a student of each of the two."""

    def runs(name: str) -> dict[str, Any]:
        return {"methods": "kd", "slots": 2, "schedule": {"assistants": {"names": [name]}}}

    names = ("first", "second")
    params = ONE | {
        "assistants": {name: EACH["assistants"][name] for name in names},
        "runs": {name: runs(name) for name in names},
        "distill": [f"ada-sam/{name}" for name in names],
    }
    project = make(tmp_path / "project", params)
    assert {f"train_assistant@{name}" for name in names} <= project.repro()
    assert project.repro() == set()

    def warm(name: str) -> set[str]:
        project.edit(lambda params: params["assistants"][name].update(temperature=2.0))
        return project.repro()

    changed = {"params", "inputs@ada-sam", "report"}
    assert warm("second") == changed | {"train_assistant@second"} | students("ada-sam/second")
    every = {f"train_assistant@{name}" for name in names}
    assert warm("first") == changed | every | students("ada-sam/first", "ada-sam/second")
    # What else the teacher's store holds is nothing to them.
    project.edit(lambda params: params["teachers"]["ada"]["features"].update(final={"slots": 0}))
    store = of("ada", "extract_features", "check_features", "teacher_inputs")
    assert project.repro() == {"params", "inputs@ada-sam", "report"} | store


# ------------------------------------------------------------------ code


def test_an_export_reruns_with_its_students_and_its_settings_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    runs = {"kd": ONE["runs"]["kd"], "hot": {"methods": {"kd": {"temperature": 3.0}}, "slots": 2}}
    project = make(
        tmp_path,
        ONE | {"runs": runs, "distill": ["ada-sam/kd", "ada-sam/hot"], "exports": {"ada-sam/kd": None}},
    )
    assert {"export@ada-sam/kd", "report"} <= project.repro()
    folder = project.folder / "artifacts/exports/ada-sam/kd"
    assert {path.name for path in folder.iterdir()} == {"export.json", "int8", "onnx", "program"}

    # Another run's students, and what spells out a default.
    project.edit(lambda params: params["runs"]["hot"]["methods"].update(kd={"temperature": 2.0}))
    project.edit(lambda params: params["exports"].update({"ada-sam/kd": {"seed": "best"}}))
    ran = project.repro()
    assert "distill@ada-sam/hot-0" in ran
    assert not {name for name in ran if name.startswith("export")}

    project.edit(lambda params: params["exports"].update({"ada-sam/kd": {"formats": ["program"]}}))
    # The report shows params.yaml as it is.
    assert project.repro() == {"params", "export@ada-sam/kd", "report"}
    assert {path.name for path in folder.iterdir()} == {"export.json", "program"}

    project.edit(lambda params: params["students"]["sam"].update(recipe={"quick": {"epochs": 2}}))
    assert "export@ada-sam/kd" in project.repro("export@ada-sam/kd")
    project.append("pipeline/export/gate.py", "\n\nNOTED = True\n")
    # The jsons of inputs are made after any edit of code, and come out alike.
    inputs = {"student_inputs@sam", "inputs@ada-sam"}
    assert project.repro("export@ada-sam/kd") == {"params", "export@ada-sam/kd"} | inputs


def test_code_reruns_what_names_it(project: Project) -> None:
    """Plug-ins that nobody names, one table, one encoding, one method; a setting of runs; what is measured."""
    for file in (
        "tables/fits/lda.py",
        "networks/families/wrn.py",
        "features/encodings/pooled.py",
        "report/page.py",
        "tables/fits/moments.py",
        "features/encodings/nearest.py",
        "distillation/methods/kd.py",
        "evaluation/evaluate.py",
        "runs/comparison.py",
    ):
        project.append(f"pipeline/{file}", "\nEDITED = True\n")
    project.append("pipeline/params/runs.py", '    remark: str = ""\n')

    runs = ("kd", "kcd", "letkd")
    ran = project.repro(
        *(f"distill@ada-sam/{run}-0" for run in runs), "evaluate_pretrained@sam-0", "train_copy@copy"
    )
    listed = {"params", "student_inputs@sam", "inputs@ada-sam"}
    # The table comes out the same. Of the edits, two are of what students are trained by: one method, one encoding.
    table = {"teacher_inputs@ada", "fit_table@ada-moments", "encode_views@ada-words"}
    trained = {"distill@ada-sam/kd-0", "distill@ada-sam/letkd-0", "train_copy@copy"}
    measured = {"evaluate_teacher@ada", "evaluate_pretrained@sam-0"}
    assert ran == listed | table | trained | measured


def test_shared_code_reruns_what_imports_it(project: Project) -> None:
    project.append("pipeline/features/store.py", "\nEDITED = True\n")
    ran = project.repro("train_teacher@bob", "extract_features@ada", "pretrain_student@sam-0")
    assert ran == {"params", "student_inputs@sam", "extract_features@ada"}


# ------------------------------------------------------------------ empty sections


def test_a_project_without_tables_has_no_stage_for_them(project: Project) -> None:
    def drop(params: dict[str, Any]) -> None:
        params.update(tables={}, distill=["ada-sam/kd"])

    assert "fit_table@ada-words" in project.run("dvc", "stage", "list", "--name-only").split()
    project.edit(drop)
    names = project.run("dvc", "stage", "list", "--name-only").split()
    assert "distill@ada-sam/kd-0" in names
    assert not {name for name in names if name.startswith(("fit_table", "encode_views"))}


def test_params_of_nothing_reproduce(tmp_path: Path) -> None:
    project = make(tmp_path, {"seeds": [], "distill": []})
    assert project.repro() == {"params", "report"}
    page = (tmp_path / "artifacts/report/index.html").read_text()
    assert "There is nothing to report" in page
    assert "params.yaml has no seeds" in page
    assert project.repro() == set()
