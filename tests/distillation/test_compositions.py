"""Compositions of the papers that none of them has: each a block of params, trained on digits."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from training_fixtures import PARAMS, VIEWS, World, make_world

from pipeline.data.dataset import DatasetConfig
from pipeline.data.datasets import digits
from pipeline.data.preparation import prepare
from pipeline.networks.network import build
from pipeline.params.project import merged
from pipeline.runs.inputs import RunInputs

pytestmark = pytest.mark.usefixtures("device")

FINAL = {"student_tap": "final", "teacher_feature": "final"}
LAST = {"map": "final", "teacher_feature": "final"}
RUNS: dict[str, dict[str, Any]] = {
    "slkd_dskd": {"method": "dskd", "config": LAST, "schedule": "self_learning"},
    "kcd_dskd": {"method": "dskd", "config": LAST, "transform": "permutation"},
    "kcd_fitnet": {"method": "fitnet", "config": FINAL, "transform": "permutation"},
    "letkd1_slkd": {"method": "letkd", "schedule": "self_learning"},
    "kcd_with_layer": {"method": "mimicry", "transform": "permutation", "config": {"insert": {"final": {"kd_layer": {"words": 12}}}}},
}  # fmt: skip
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
    from stages import fit_table

    recipe = {"epochs": 2, "batch_size": 64, "learning_rate": 0.05, "milestones": [1]}
    changes = {
        "seeds": [0],
        "datasets": {"toy": {"views": VIEWS.model_dump(mode="json")}},
        "teachers": {"big": {"recipe": recipe, "extract": {"features": {"final": {}}}}},
        "students": {"small": {"recipe": recipe}},
        "runs": RUNS,
        "tables": {"words": {"table": "kmeans", "config": {"feature": "final", "clusters": 12}}},
        "fits": {"big-words": {"teacher": "big", "table": "words"}},
        "matchings": {"kcd": FINAL},
        "distill": [f"pair/{run}" for run in RUNS],
    }
    made = make_world(
        tmp_path_factory.mktemp("world"), merged(PARAMS, changes), runs=False, prepare_data=prepare_digits
    )
    fit_table.main(
        made.path("artifacts/params/fits/big-words.json"),
        prepared=made.path("data/prepared"),
        store=made.path("artifacts/features/big.zarr"),
        out=made.path("artifacts/tables/big/words.npz"),
        metrics=made.path("artifacts/metrics/words.json"),
    )
    made.resolve(made.path("artifacts/inputs/pairs/pair"))
    return made


@pytest.mark.parametrize("run", RUNS)
def test_it_learns_and_leaves_its_helpers_behind(world: World, run: str) -> None:
    inputs: RunInputs = world.inputs(run)
    assert inputs.source == "cached"
    folder = world.distil(run, inputs)
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
