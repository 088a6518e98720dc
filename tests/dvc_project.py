"""A copy of the project with toy params, driven through dvc as a user would."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
        "kcd": {
            "method": "mimicry",
            "slots": 2,
            "config": {"student_tap": "stage2", "teacher_feature": "stage2"},
            "transform": "permutation",
            "transform_config": {"features": ["stage2"]},
        },
        "slkd_star": {
            "method": "kd",
            "slots": 2,
            "schedule": "self_taught",
            "schedule_config": {"names": ["copy"]},
        },
    },
    "distill": ["ada-sam/kd", "ada-sam/fitnet", "ada-sam/kcd", "ada-sam/slkd_star", "bob-sam/kd"],
    "tables": {"moments": {"table": "moments", "config": {"feature": "stage2"}}},
    "fits": {"ada-moments": {"teacher": "ada", "table": "moments"}},
    "derived": {},
    "codes": {},
    "matchings": {"kcd": {"student_tap": "stage2", "teacher_feature": "stage2"}},
    "matches": {"ada-sam-kcd": {"pair": "ada-sam", "teacher": "ada", "student": "sam", "matching": "kcd"}},
    "self_taught": {"copy": {"teacher": "ada", "student": "sam", "slots": 2}},
}
# One of each, as few stages as there can be.
ONE: dict[str, Any] = PARAMS | {
    "teachers": {"ada": PARAMS["teachers"]["ada"]},
    "pairs": {"ada-sam": {"teacher": "ada", "student": "sam"}},
    "runs": {"kd": {"method": "kd", "slots": 2}},
    "distill": ["ada-sam/kd"],
    "matchings": {},
    "matches": {},
    "self_taught": {},
}
# One at least of each section: every stage of dvc.yaml is there.
EACH: dict[str, Any] = PARAMS | {
    "tables": PARAMS["tables"]
    | {
        "lda": {"table": "lda", "config": {"feature": "stage2", "components": 4}},
        "subclasses": {"table": "subclasses", "config": {"feature": "stage2", "per_class": 2}},
    },
    "fits": PARAMS["fits"] | {"ada-lda": {"teacher": "ada", "table": "lda"}},
    "derived": {"ada-subclasses": {"teacher": "ada", "table": "subclasses", "base": "lda"}},
    "codes": {
        "ada-code": {"teacher": "ada", "table": "subclasses", "feature": "stage2:subclass", "slots": 2}
    },
}


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


def make(folder: Path, params: Mapping[str, Any] = PARAMS) -> Project:
    """Make a git and DVC repository of the project's sources in `folder`, with `params`; nothing has run yet."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "artifacts/.gitignore", "data/.gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    apart = json.loads(json.dumps(params))  # what is shared in Python would be an anchor in yaml
    YAML().dump(apart, folder / "params.yaml")
    project = Project(folder)
    project.run("git", "init", "--quiet")
    project.run("dvc", "init", "--quiet")
    return project
