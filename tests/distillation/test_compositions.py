"""Compositions of the papers that none of them has: each a block of params, trained on digits."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from device_fixtures import current, here
from safetensors.torch import load_file
from training_fixtures import PARAMS, World, clock, make_world

from pipeline.data.dataset import DatasetConfig
from pipeline.data.datasets import digits
from pipeline.data.preparation import prepare
from pipeline.networks.network import build
from pipeline.networks.weights import load
from pipeline.params.recipe import Epoch
from pipeline.params.sections import merged
from pipeline.runs.inputs import RunInputs
from pipeline.runs.sources import Sources
from pipeline.training.batches import Views
from pipeline.training.distill import line_up
from pipeline.training.setting import Setting

pytestmark = pytest.mark.usefixtures("device")

FINAL = {"student_tap": "final", "teacher_feature": "final"}
LAST = {"map": "final", "teacher_feature": "final"}
STAGES = [f"stage{k}" for k in (1, 2, 3)]
FEATURES = ["final", "pooled", *STAGES, *(f"{stage}_pre" for stage in STAGES)]
LAYER = {"final": {"kd_layer": {"words": 12}}}
LONGER = {
    "epochs": 5,
    "milestones": [4],
}  # the first epochs of a weight of 1000, and of a memory of noise, go astray
RUNS: dict[str, dict[str, Any]] = {
    "slkd_dskd": {"methods": {"dskd": LAST}, "schedule": "self_learning"},
    "kcd_dskd": {"methods": {"dskd": LAST}, "transform": "permutation"},
    "kcd_fitnet": {"methods": {"fitnet": FINAL}, "transform": "permutation"},
    "letkd1_slkd": {"methods": "letkd", "schedule": "self_learning"},
    "kcd_with_layer": {"methods": {"mimicry": {"insert": LAYER}}, "transform": "permutation"},
    # Rows of DSKD's and letKD's tables: a method beside KD, and in KCD's: under the permutation, and with L2.
    "at_kd": {"methods": {"at": {}, "kd": {"weights": {"kd": 1.0}}}, "recipe": LONGER},
    "vid_kd": {"methods": {"vid": {}, "kd": {"weights": {"kd": 1.0}}}},
    "crd_kd": {"methods": {"crd": {"negatives": 100}, "kd": {"weights": {"kd": 1.0}}}, "recipe": LONGER},
    "kcd_rkd": {"methods": {"rkd": {}, "mimicry": {}}, "transform": "permutation"},
    "kcd_ab": {
        "methods": {"ab": {"epochs": 0, "weights": {"boundary": 10.0}}, "mimicry": {}},
        "transform": {"permutation": {"features": ["final", "stage3_pre"]}},
    },
    "kcd_rco": {
        "methods": "mimicry",
        "schedule": {"anchors": {"anchors": ["anchor_050", "last"]}},
        "transform": "permutation",
    },
    "ofd": {"methods": "ofd"},
    "sdd": {"methods": {"sdd": {"base": "nkd", "scales": [1, 2], "warmup": 0}}},
    "ab_rco": {
        "methods": {"ab": {"epochs": 2}},
        "schedule": {"anchors": {"anchors": ["anchor_050", "last"]}},
    },
    "fitnet_letkd": {"methods": {"fitnet": {"teacher_feature": "stage2"}, "letkd": {}}},
    "simkd": {"methods": "simkd"},
    "reviewkd_dkd": {"methods": {"reviewkd": {}, "dkd": {}}},
    "standardized_dkd": {"methods": "dkd", "transform": "logit_standardization"},
    # Several lessons a step: each sees the memories.
    "crd_slkd": {
        "methods": {"kd": {}, "crd": {"negatives": 50}},
        "schedule": {
            "self_learning": {"lesson": "method", "student_weights": {"ce": 1.0, "kd": 1.0, "contrast": 0.8}}
        },
        "recipe": LONGER,
    },
    "tdd_crd": {"methods": {"tdd": {}, "crd": {"negatives": 100}}, "recipe": LONGER},
}
EXPECTED = {
    "slkd_dskd": {"ce", "kd", "kd_shallow", "map", "map_shallow", "slt1_kd", "slt2_kd", "fused_kd"},
    "kcd_dskd": {"ce", "kd", "kd_shallow", "map", "map_shallow"},
    "kcd_fitnet": {"ce", "hint"},
    "letkd1_slkd": {"ce", "words", "slt1_kd", "slt2_kd", "fused_kd", "distance.student-self"},
    "kcd_with_layer": {"ce", "mimic"},
    "at_kd": {"ce", "attention", "kd"},
    "vid_kd": {"ce", "information", "kd"},
    "crd_kd": {"ce", "contrast", "kd"},
    "kcd_rkd": {"ce", "distance", "angle", "mimic"},
    "kcd_ab": {"ce", "boundary", "mimic"},
    "kcd_rco": {"ce", "mimic"},
    "ofd": {"ce", "overhaul"},
    "sdd": {"ce", "consistent", "complementary"},
    "ab_rco": {"boundary", "ce"},
    "fitnet_letkd": {"ce", "hint", "words"},
    "simkd": {"map"},
    "reviewkd_dkd": {"ce", "review", "target", "others"},
    "standardized_dkd": {"ce", "target", "others"},
    "crd_slkd": {"ce", "kd", "contrast"},
    "tdd_crd": {"ce", "kd", "coarse", "contrast"},
}


def prepare_digits(folder: Path) -> None:
    prepare(digits.open_source(digits.Config()), "digits", DatasetConfig(), folder)


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    recipe = {"epochs": 2, "batch_size": 64, "learning_rate": 0.05, "milestones": [1]}
    changes = {
        "seeds": [0],
        "recipes": {"quick": recipe},
        "teachers": {"big": {"features": {name: {} for name in FEATURES}}},
        "runs": RUNS,
        "tables": {
            "words": {"kmeans": {"feature": "final", "clusters": 12}},
            **{f"coarse{k}": {"coarse": {"feature": f"stage{k}", "threshold": 0.7}} for k in (1, 2, 3)},
        },
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
        values = [float(row[name]) for row in history if row[name]]  # a phase may lack it
        assert values, name
        assert all(map(math.isfinite, values)), name
    last_phase = [row for row in history if row["phase"] == history[-1]["phase"]]
    assert float(last_phase[-1]["loss"]) < float(last_phase[0]["loss"])
    assert float(history[-1]["top1"]) > 30  # of ten classes
    init, last = (set(load_file(folder / f"weights/{name}.safetensors")) for name in ("init", "last"))
    layers = {name for name in last if name.startswith("inserted.final.")}
    assert init == last
    assert bool(layers) == ("layer" in run or "letkd" in run or run == "simkd")
    assert last - layers == set(build(inputs.network, 0).state_dict())  # no head, no copy


@pytest.mark.parametrize("run", ["kcd_ab", "kcd_rco", "kcd_fitnet", "kcd_rkd"])
def test_a_method_sees_the_channels_in_the_one_order_of_the_final_teacher(world: World, run: str) -> None:
    """Of every anchor in the same, and of a map before its ReLU in that of the map behind it."""
    inputs: RunInputs = world.inputs(run)
    sources = Sources.of(inputs, current())
    (matching,) = sources.matchings.values()
    assert matching.recipe.teacher_checkpoint == "last"
    permutation = here(torch.from_numpy(matching.arrays["permutation"])[0])
    assert sorted(permutation.tolist()) == list(range(64)) != permutation.tolist()

    batches = Setting.of(world.prepared, inputs.views, current()).batches(inputs.recipe, 0, inputs.slots)
    objective = here(line_up(inputs, sources, batches.labels.cpu(), current()).objective)
    given, seen = list[Any](), list[Any]()
    objective.transform.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    objective.method.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1].teacher))

    index = torch.arange(20)
    views = Views(here(torch.tensor(0)), here(index), here(torch.zeros(20, 1, 8, 8)), batches.labels[:20])
    for number in (0, 1):
        objective.start(Epoch("main", number, 2))
        objective(views, objective.begin(0, index)(), clock(number))
    for before, after in zip(given, seen, strict=True):
        for name, x in before.items():
            changed = name == "final" or (run == "kcd_ab" and name == "stage3_pre")
            assert torch.equal(after[name], x[:, permutation] if changed else x), name
    assert torch.equal(given[0]["final"], given[1]["final"]) == (run != "kcd_rco")
    if run == "kcd_ab":
        torch.testing.assert_close(seen[0]["stage3_pre"].relu(), seen[0]["final"], rtol=1e-2, atol=1e-2)


def test_simkd_keeps_the_teachers_classifier_and_is_a_student_of_its_own(world: World) -> None:
    folder = world.distill("classifier", world.inputs("simkd"))
    teacher = load_file(world.path("artifacts/teachers/big/weights/last.safetensors"))
    for name in ("init", "best", "last"):
        student = load_file(folder / f"weights/{name}.safetensors")
        for part in ("weight", "bias"):
            assert torch.equal(student[f"classifier.{part}"], teacher[f"classifier.{part}"]), name
    network, spec = load(folder / "weights")  # with nothing of the teacher's at hand
    assert spec.classifier_width == 64
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
