"""What DVC makes of an edit: on a toy pipeline of the real stages, exactly what it changed runs again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc_project import FEATURES, NETWORK, RECIPE, ROOT, Project, make
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Reproduce the toy pipeline once; tests work on copies."""
    project = make(tmp_path_factory.mktemp("finished"))
    ran = project.repro()
    assert ran >= {"train_teacher@ada", "distill@bob-sam/kd-0", "fit_table@ada-moments", "report"}
    assert ran >= {"list_matches@bob-sam", "match_channels@ada-sam-kcd", "distill@ada-sam/kcd-0"}
    assert ran >= {"train_self_taught@copy", "distill@ada-sam/slkd_star-0"}
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    copy = tmp_path / "project"
    shutil.copytree(finished.folder, copy, symlinks=True)
    return Project(copy)


def kd(*pairs: str) -> set[str]:
    return {f"{stage}@{pair}/kd-0" for stage in ("distill", "evaluate") for pair in pairs}


INPUTS = {"inputs@ada-sam", "inputs@bob-sam"}


def test_a_second_repro_runs_nothing_whatever_the_machine_options(project: Project) -> None:
    options = {"STILLHOUSE_DEVICE": "cpu", "STILLHOUSE_BATCH_SIZE": "7", "STILLHOUSE_RESIDENT": "0"}
    assert project.repro(**options) == set()


def test_a_runs_temperature_reruns_its_students_only(project: Project) -> None:
    project.edit(lambda params: params["runs"]["kd"].update(config={"temperature": 2.0}))
    assert project.repro() == {"params", "report"} | INPUTS | kd("ada-sam", "bob-sam")
    project.edit(lambda params: params["runs"]["kd"].pop("config"))
    assert project.repro() == set()  # the run cache has it


def test_spelling_out_a_default_reruns_no_student(project: Project) -> None:
    project.edit(lambda params: params["runs"]["kd"].update(source="cached"))
    project.edit(lambda params: params["teachers"]["ada"].update(seed=0))
    assert project.repro() == {"params"}


def test_a_methods_code_reruns_its_students_only(project: Project) -> None:
    project.append("pipeline/distillation/methods/kd.py", "\nEDITED = True\n")
    star = {"train_self_taught@copy", "distill@ada-sam/slkd_star-0", "evaluate@ada-sam/slkd_star-0"}
    expected = {"params", "student_inputs@sam", "report"} | INPUTS | kd("ada-sam", "bob-sam") | star
    assert project.repro() == expected


def test_comments_and_docstrings_rerun_nothing_dear(project: Project) -> None:
    project.append("pipeline/networks/network.py", "\n# What a network is.\n")
    assert project.repro() == {"params"}


CHEAP = ("params", "student_inputs", "inputs", "list_matches", "evaluate", "report")


def expensive(ran: set[str]) -> set[str]:
    """Return the stages that train, extract, fit, match or distill."""
    return {name for name in ran if not name.startswith(CHEAP)}


def test_the_wording_of_commands_reruns_nothing(project: Project) -> None:
    project.replace("stages/distill.py", "The json of a run and seed", "What a run and seed are made from")
    project.replace("stages/command.py", "interrupted. Run", "interrupted: run")
    project.replace("stages/command.py", "The hyper-parameters.", "All settings.")
    assert project.repro() == {"params"}


def test_an_edit_reruns_what_names_it(project: Project) -> None:
    """Another table, network and encoding than those that are used, a setting of runs, the report, evaluation."""
    for file in (
        "tables/fits/kmeans.py",
        "networks/families/wrn.py",
        "features/encodings/pooled.py",
        "params/runs.py",
        "report/page.py",
        "evaluation/evaluate.py",
    ):
        project.append(f"pipeline/{file}", "\nEDITED = True\n")
    assert expensive(project.repro()) == set()
    project.append("pipeline/tables/fits/moments.py", "\nEDITED = True\n")
    assert expensive(project.repro()) == {
        "fit_table@ada-moments"
    }  # and not LDA's; the same table, so no student


def test_a_shared_module_reruns_what_imports_it(project: Project) -> None:
    project.append("pipeline/features/store.py", "\nEDITED = True\n")
    ran = project.repro()
    assert {"extract_features@ada", "distill@ada-sam/kd-0"} <= ran
    assert not {
        name for name in ran if name.startswith(("train_teacher", "pretrain_student", "prepare_data"))
    }


def test_a_teachers_epochs_rerun_its_chain_only(project: Project) -> None:
    project.edit(lambda params: params["teachers"]["bob"].update(recipe=RECIPE | {"epochs": 2}))
    chain = {
        f"{stage}@bob"
        for stage in ("train_teacher", "evaluate_teacher", "extract_features", "check_features")
    }
    assert project.repro() == {"params", "inputs@bob-sam", "report"} | chain | kd("bob-sam")


def test_another_feature_leaves_the_students_of_the_others(project: Project) -> None:
    features = FEATURES | {"stage3:attention": {"slots": 0}}
    project.edit(lambda params: params["teachers"]["ada"]["extract"].update(features=features))
    ran = project.repro()
    assert "extract_features@ada" in ran
    assert not {name for name in ran if name.startswith(("train", "distill", "pretrain"))}


def test_a_seed_a_pair_and_a_method_are_added_by_params(project: Project) -> None:
    project.edit(lambda params: params.update(seeds=[0, 1], distill=["ada-sam/kd"]))
    students = {f"{stage}@ada-sam/kd-1" for stage in ("distill", "evaluate")}
    alone = {f"{stage}@sam-1" for stage in ("pretrain_student", "evaluate_pretrained")}
    alone.add("match_channels@ada-sam-kcd")
    assert project.repro() == {"params", "report"} | INPUTS | students | alone

    method = (
        (project.folder / "pipeline/distillation/methods/kd.py").read_text().replace('"ce": 0.1', '"ce": 1.0')
    )
    (project.folder / "pipeline/distillation/methods/ours.py").write_text(method)

    def add(params: dict[str, Any]) -> None:
        params["students"]["sue"] = NETWORK
        params["pairs"]["ada-sue"] = {"teacher": "ada", "student": "sue"}
        params["runs"]["ours"] = {"method": "ours", "slots": 2}
        params.update(seeds=[0], distill=["ada-sam/kd", "ada-sue/ours"])

    project.edit(add)
    ran = project.repro()
    assert {"distill@ada-sue/ours-0", "evaluate@ada-sue/ours-0", "pretrain_student@sue-0"} <= ran
    assert not {name for name in ran if name.startswith(("train_teacher", "extract", "distill@ada-sam"))}


def test_one_student_builds_only_what_it_needs(tmp_path: Path) -> None:
    ran = make(tmp_path).repro("distill@bob-sam/kd-0")
    teacher = {
        f"{stage}@bob"
        for stage in ("train_teacher", "evaluate_teacher", "extract_features", "check_features")
    }
    assert (
        ran
        == {"params", "prepare_data@digits", "list_matches@bob-sam", "inputs@bob-sam"}
        | {"distill@bob-sam/kd-0"}
        | teacher
    )


def test_a_measure_reruns_the_students_that_are_matched_by_it(project: Project) -> None:
    project.edit(lambda params: params["matchings"]["kcd"].update(measure="l2"))
    students = {f"{stage}@ada-sam/kcd-0" for stage in ("distill", "evaluate")}
    expected = {"params", "match_channels@ada-sam-kcd", "inputs@ada-sam", "report"} | students
    assert project.repro() == expected


def test_a_copys_temperature_reruns_it_and_the_students_that_it_teaches(project: Project) -> None:
    project.edit(lambda params: params["self_taught"]["copy"].update(temperature=2.0))
    students = {f"{stage}@ada-sam/slkd_star-0" for stage in ("distill", "evaluate")}
    assert project.repro() == {"params", "train_self_taught@copy", "inputs@ada-sam", "report"} | students


def test_what_is_pictured_retrains_nothing(project: Project) -> None:
    project.edit(lambda params: params["matchings"]["kcd"].update(pictured=3))
    assert project.repro() == {"params", "match_channels@ada-sam-kcd", "inputs@ada-sam", "report"}


def test_every_stage_depends_on_its_own_code(finished: Project) -> None:
    """By the hash in its block where it costs something, by that of its closure where it does not."""
    stages = YAML(typ="safe").load(finished.folder / "dvc.lock")["stages"]
    for name, stage in stages.items():
        if name == "params":
            assert {"pipeline", "stages"} <= {dep["path"] for dep in stage["deps"]}
            continue
        command = stage["cmd"] if isinstance(stage["cmd"], str) else stage["cmd"][-1]
        module = re.match(r"python -m stages\.(\w+)", command)
        assert module is not None, name
        paths = {dep["path"] for dep in stage["deps"]}
        blocks = [finished.folder / path for path in paths if path.startswith("artifacts/params/")]
        blocks = [
            path for path in blocks if path.name != "passed.json"
        ]  # which says that params.yaml has passed
        coded = any(json.loads(path.read_text()).get("code_hash") for path in blocks)
        assert coded or paths & {f"artifacts/code/stages/{module[1]}.json", "artifacts/code"}, name


def test_params_yaml_can_be_read_and_every_stage_resolved() -> None:
    program = Path(sys.executable).parent / "dvc"
    done = subprocess.run([program, "stage", "list"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
