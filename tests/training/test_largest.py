"""Students of a teacher whose store keeps the largest logits alone: cached, online and of a copy."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from device_fixtures import current
from training_fixtures import CLASSES, PARAMS, World, changed, make_world

from pipeline.features import contents
from pipeline.features.contents import StoredTop
from stages import distill, evaluate, train_copy

pytestmark = pytest.mark.usefixtures("device")

COPIES = {"one": {"teacher": "big", "student": "small", "slots": 2}}
# Students of one order of views and one init: only where the logits come from differs.
RUNS: dict[str, Any] = {
    "cached": {"methods": "kd"},
    "online": {"methods": "kd", "source": "online"},
}
LARGEST = StoredTop(kept=2, dtype="float32", classes=CLASSES)


def params() -> dict[str, Any]:
    content = {"runs": RUNS, "distill": [f"pair/{run}" for run in RUNS], "copies": COPIES}
    plain = PARAMS | content | {"tables": {}, "matchings": {}, "seeds": [0]}
    return changed(plain, "teachers.big.features", {"logits": {"dtype": "float32", "top": LARGEST.kept}})


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("largest"), params())


def taught(world: World, run: str) -> tuple[list[list[float]], dict[str, float]]:
    """Return the losses of a student of seed 0, epoch by epoch, and how far it is from its teacher."""
    out: Path = world.path(f"artifacts/students/pair/{run}/0")
    device = str(current().device)
    distill.main([world.path(f"artifacts/inputs/pairs/pair/{run}/0.json")], out=[out], device=device)
    with (out / "history.csv").open(newline="") as file:
        losses = [[float(row[name]) for name in ("loss", "ce", "kd")] for row in csv.DictReader(file)]

    metrics = world.path(f"{run}.json")
    evaluate.main(out, out=metrics, predictions=world.path(f"{run}.npz"), device=device)
    measured = json.loads(metrics.read_text())
    return losses, {name: measured[name] for name in ("top1", "teacher_kl")}


def test_cached_and_online_students_are_one(world: World) -> None:
    assert world.inputs("online").model_dump(mode="json")["largest"] == {
        "logits": {"kept": 2, "dtype": "float32"}
    }
    assert "largest" not in world.inputs("cached").model_dump(mode="json")

    (cached, near), (online, far) = taught(world, "cached"), taught(world, "online")
    # float32 stores: batches of other sizes differ in the last bits.
    for ours, theirs in zip(cached, online, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert near == pytest.approx(far, rel=1e-3)


def test_a_copy_stores_its_logits_as_its_teacher_does(world: World) -> None:
    train_copy.main(**world.copying("copies/one", copies=COPIES))
    store = world.path("artifacts/copies/big/one/store.zarr")
    stored = contents.read(store, "dvc repro").features["logits"]
    assert stored.top == LARGEST
    assert (stored.dtype, stored.shape) == ("uint16", (LARGEST.width,))
