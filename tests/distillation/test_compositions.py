"""Compositions of the papers that none of them has: each a block of params, trained on digits."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from training_fixtures import PARAMS, World, make_world

from pipeline.data.dataset import DatasetConfig
from pipeline.data.datasets import digits
from pipeline.data.preparation import prepare
from pipeline.networks.network import build
from pipeline.params.sections import merged
from pipeline.runs.inputs import RunInputs

pytestmark = pytest.mark.usefixtures("device")

FINAL = {"student_tap": "final", "teacher_feature": "final"}
LAST = {"map": "final", "teacher_feature": "final"}
LAYER = {"final": {"kd_layer": {"words": 12}}}
RUNS: dict[str, dict[str, Any]] = {
    "slkd_dskd": {"methods": {"dskd": LAST}, "schedule": "self_learning"},
    "kcd_dskd": {"methods": {"dskd": LAST}, "transform": "permutation"},
    "kcd_fitnet": {"methods": {"fitnet": FINAL}, "transform": "permutation"},
    "letkd1_slkd": {"methods": "letkd", "schedule": "self_learning"},
    "kcd_with_layer": {"methods": {"mimicry": {"insert": LAYER}}, "transform": "permutation"},
}
EXPECTED = {
    "slkd_dskd": {"ce", "kd", "kd_shallow", "map", "map_shallow", "slt1_kd", "slt2_kd", "fused_kd"},
    "kcd_dskd": {"ce", "kd", "kd_shallow", "map", "map_shallow"},
    "kcd_fitnet": {"ce", "hint"},
    "letkd1_slkd": {"ce", "words", "slt1_kd", "slt2_kd", "fused_kd", "distance.student-self"},
    "kcd_with_layer": {"ce", "mimic"},
}


def prepare_digits(folder: Path) -> None:
    prepare(digits.open_source(digits.Config()), "digits", DatasetConfig(), folder)


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    recipe = {"epochs": 2, "batch_size": 64, "learning_rate": 0.05, "milestones": [1]}
    changes = {
        "seeds": [0],
        "recipes": {"quick": recipe},
        "teachers": {"big": {"features": {"final": {}}}},
        "runs": RUNS,
        "tables": {"words": {"kmeans": {"feature": "final", "clusters": 12}}},
        "matchings": {"kcd": FINAL},
        "distill": [f"pair/{run}" for run in RUNS],
    }
    root = tmp_path_factory.mktemp("world")
    return make_world(root, merged(PARAMS, changes), prepare_data=prepare_digits)


@pytest.mark.parametrize("run", RUNS)
def test_it_learns_and_leaves_its_helpers_behind(world: World, run: str) -> None:
    inputs: RunInputs = world.inputs(run)
    assert inputs.source == "cached"
    folder = world.distill(run, inputs)
    with (folder / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    assert EXPECTED[run] <= history[0].keys()
    for name in EXPECTED[run]:
        assert all(math.isfinite(float(row[name])) for row in history), name
    assert float(history[-1]["loss"]) < float(history[0]["loss"])
    assert float(history[-1]["top1"]) > 30  # of ten classes
    init, last = (set(load_file(folder / f"weights/{name}.safetensors")) for name in ("init", "last"))
    layers = {name for name in last if name.startswith("inserted.final.")}
    assert init == last
    assert bool(layers) == ("layer" in run or "letkd" in run)
    assert last - layers == set(build(inputs.network, 0).state_dict())  # no head, no copy
