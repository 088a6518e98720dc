"""What DVC makes of an edit: on a toy pipeline of the real stages, exactly what it changed runs again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]

RECIPE = {"epochs": 1, "batch_size": 128, "learning_rate": 0.05, "milestones": []}
NETWORK = {"dataset": "digits", "family": "resnet", "network": "resnet8", "recipe": RECIPE}
FEATURES = {"logits": {"slots": 2, "dtype": "float32"}, "stage2": {"slots": 2}}
PARAMS: dict[str, Any] = {
    "seeds": [0],
    "datasets": {
        "digits": {"source": "digits", "views": {"space": "crop_flip", "padding": 1, "flip": False}}
    },
    "teachers": {name: NETWORK | {"extract": {"features": FEATURES}} for name in ("ada", "bob")},
    "students": {"sam": NETWORK},
    "pairs": {
        "ada-sam": {"teacher": "ada", "student": "sam"},
        "bob-sam": {"teacher": "bob", "student": "sam"},
    },
    "runs": {
        "kd": {"method": "kd", "slots": 2},
        "fitnet": {"method": "fitnet", "slots": 2, "config": {"standardise": "moments"}},
    },
    "distill": ["ada-sam/kd", "ada-sam/fitnet", "bob-sam/kd"],
    "tables": {"moments": {"table": "moments", "config": {"feature": "stage2"}}},
    "fits": {"ada-moments": {"teacher": "ada", "table": "moments"}},
}

pytestmark = pytest.mark.slow


class Project:
    """A copy of the project with toy params."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, **environment: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def repro(self, *targets: str, **environment: str) -> set[str]:
        """Reproduce, and return the names of the stages that ran."""
        return set(
            re.findall(r"^Running stage '(.+)':$", self.run("dvc", "repro", *targets, **environment), re.M)
        )

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        params = YAML(typ="safe").load(self.folder / "params.yaml")
        change(params)
        YAML().dump(params, self.folder / "params.yaml")

    def append(self, file: str, text: str) -> None:
        with (self.folder / file).open("a") as source:
            source.write(text)


def make(folder: Path) -> Project:
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    YAML().dump(PARAMS, folder / "params.yaml")
    project = Project(folder)
    project.run("git", "init", "--quiet")
    project.run("dvc", "init", "--quiet")
    return project


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Reproduce the toy pipeline once; tests work on copies."""
    project = make(tmp_path_factory.mktemp("finished"))
    ran = project.repro()
    assert ran >= {"train_teacher@ada", "distill@bob-sam/kd-0", "fit_table@ada-moments", "report"}
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
    assert project.repro() == {"params", "report"}


def test_a_methods_code_reruns_its_students_only(project: Project) -> None:
    project.append("pipeline/methods/kd.py", "\nEDITED = True\n")
    expected = {"code", "student_inputs@sam", "report"} | INPUTS | kd("ada-sam", "bob-sam")
    assert project.repro() == expected


def test_comments_and_docstrings_rerun_nothing_dear(project: Project) -> None:
    project.append("pipeline/network.py", "\n# What a network is.\n")
    assert project.repro() == {"code"}


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


def test_a_tolerance_retrains_nothing(project: Project) -> None:
    project.edit(lambda params: params["teachers"]["bob"]["extract"].update(tolerance=0.01))
    ran = project.repro()
    assert "check_features@bob" in ran
    assert not {name for name in ran if name.startswith(("train", "extract", "distill", "pretrain"))}


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
    assert project.repro() == {"params", "report"} | INPUTS | students | alone

    method = (project.folder / "pipeline/methods/kd.py").read_text().replace('"ce": 0.1', '"ce": 1.0')
    (project.folder / "pipeline/methods/ours.py").write_text(method)

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
        ran == {"code", "params", "prepare_data@digits", "inputs@bob-sam", "distill@bob-sam/kd-0"} | teacher
    )


def test_every_stage_depends_on_its_own_code(finished: Project) -> None:
    stages = YAML(typ="safe").load(finished.folder / "dvc.lock")["stages"]
    for name, stage in stages.items():
        module = re.match(r"python -m stages\.(\w+)", stage["cmd"])
        assert module is not None, name
        paths = {dep["path"] for dep in stage["deps"]}
        if name != "code":
            assert paths & {f"artifacts/code/stages/{module[1]}.json", "artifacts/code"}, name
        assert name != "code" or {"pipeline", "stages"} <= paths


def test_params_yaml_can_be_read_and_every_stage_resolved() -> None:
    program = Path(sys.executable).parent / "dvc"
    done = subprocess.run([program, "stage", "list"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
