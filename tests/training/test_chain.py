"""Students through the stages: several methods at once, settings as they were resolved, the comparison."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from device_fixtures import current
from training_fixtures import PARAMS, RECIPE, World, make_world, weights

from pipeline.errors import ParamsError
from pipeline.params.recipe import Recipe
from pipeline.runs.composition import Composition
from pipeline.runs.inputs import RunInputs
from stages import distill, evaluate

pytestmark = pytest.mark.usefixtures("device")

BOTH: dict[str, Any] = {"methods": {"kd": {}, "fitnet": {}}}


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def resolved(world: World, name: str, **run: Any) -> Path:
    """Resolve a run, and return its json of seed 0."""
    pair = world.blocks(runs={name: run}, distill=[f"pair/{name}"]) / "pairs/pair.json"
    out = world.path(f"changed/{name}")
    world.resolve(out, block=pair)
    return out / name / "0.json"


def read(path: Path) -> RunInputs:
    return RunInputs.model_validate_json(path.read_bytes())


def distilled(world: World, name: str, inputs: Path) -> Path:
    """Run the stage `distill`, and return what it leaves."""
    out = world.path(f"artifacts/students/pair/{name}/0")
    distill.main([inputs], out=[out], device=str(current().device))
    return out


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(row[name]) for name in ("loss", "ce", "kd", "hint") if name in row} for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------ several methods


def test_the_terms_of_several_methods_add_up(world: World) -> None:
    path = resolved(world, "both", **BOTH)
    inputs = read(path)
    assert [plug.name for plug in inputs.methods] == ["kd", "fitnet"]
    assert set(inputs.stored) == set(inputs.features) == {"logits", "stage2"}
    named = {f"pipeline/distillation/methods/{name}.py" for name in ("kd", "fitnet")}
    assert named <= inputs.code.keys()

    kd, fitnet = (plug.settings["weights"] for plug in inputs.methods)
    assert kd["ce"] != fitnet["ce"]
    folder = distilled(world, "both", path)
    rows = history(folder)
    assert len(rows) == RECIPE.epochs
    for row in rows:
        assert row.keys() == {"loss", "ce", "kd", "hint"}
        expected = kd["ce"] * row["ce"] + kd["kd"] * row["kd"] + fitnet["hint"] * row["hint"]
        assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert json.loads((folder / "inputs.json").read_text()) == json.loads(path.read_text())

    out, predictions = world.path("metrics/both.json"), world.path("predictions/both.npz")
    evaluate.main(folder, out=out, predictions=predictions, device=str(current().device))
    metrics = json.loads(out.read_text())
    assert metrics["methods"] == "kd + fitnet"
    assert {"top1", "teacher_kl", "teacher_l2"} <= metrics.keys()  # the latter of FitNet's two maps


def test_a_method_starts_as_it_does_alone(world: World) -> None:
    """In one step the terms of both are those of each alone: same init, batch, views, regressor."""
    one_step = Recipe(epochs=1, batch_size=100)
    folder = world.distill("first-both", read(resolved(world, "first-both", **BOTH)).model_copy(
        update={"recipe": one_step}
    ))  # fmt: skip
    (both,) = history(folder)
    for run, term in (("kd", "kd"), ("fitnet", "hint")):
        (alone,) = history(world.distill(f"first-{run}", world.inputs(run, recipe=one_step)))
        assert both[term] == alone[term]
        assert both["ce"] == alone["ce"]


def test_a_method_of_no_weight_changes_no_bit_of_the_other_ones_student(world: World) -> None:
    alone = world.distill("alone", world.inputs("kd"))
    silent = {"methods": {"kd": {}, "fitnet": {"weights": {"hint": 0.0}}}}
    beside = distilled(world, "silent", resolved(world, "silent", **silent))
    for name in ("init", "last", "best"):
        path = f"weights/{name}.safetensors"
        assert (beside / path).read_bytes() == (alone / path).read_bytes(), name
    assert "hint" in history(beside)[0]
    both = distilled(world, "loud", resolved(world, "loud", **BOTH))
    assert (both / "weights/last.safetensors").read_bytes() != (
        alone / "weights/last.safetensors"
    ).read_bytes()


def test_a_run_of_one_method_is_written_in_two_ways_and_is_one_student(world: World) -> None:
    plain, mapped = (
        read(resolved(world, name, methods=methods)) for name, methods in (("p", "kd"), ("m", {"kd": {}}))
    )
    assert plain.model_copy(update={"run": "m"}) == mapped
    assert plain.model_copy(update={"run": "kd"}) == world.inputs("kd")


# ------------------------------------------------------------------ settings as they were resolved


def test_a_training_is_composed_of_the_settings_in_its_inputs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = {"student_tap": "last", "teacher_feature": "last"}
    path = resolved(world, "last", methods={"fitnet": last}, source="online")
    (plug,) = read(path).methods
    taps = {name: plug.settings[name] for name in last}
    assert taps == {"student_tap": "stage3", "teacher_feature": "stage3"}

    seen: list[Composition] = []
    of = Composition.of

    def noted(run: Any, where: str) -> Composition:  # of no networks: nothing is filled in again
        seen.append(of(run, where))
        return seen[-1]

    monkeypatch.setattr(Composition, "of", noted)
    distilled(world, "last", path)
    ((config,),) = (composition.methods.values() for composition in seen)  # asked once
    assert config.model_dump(mode="json") == plug.settings
    assert seen[0].needs.student == ("logits", "stage3")


def test_last_is_the_stage_that_it_means(world: World) -> None:
    last, written = (
        distilled(
            world,
            name,
            resolved(
                world,
                name,
                methods={"fitnet": {"student_tap": tap, "teacher_feature": tap}},
                source="online",
            ),
        )
        for name, tap in (("by-last", "last"), ("by-name", "stage3"))
    )
    assert (last / "weights/last.safetensors").read_bytes() == (
        written / "weights/last.safetensors"
    ).read_bytes()


def test_a_setting_in_the_inputs_is_the_one_that_trains(world: World) -> None:
    one = world.distill("cool", world.inputs("kd"))
    path = resolved(world, "hot", methods={"kd": {"temperature": 8.0}})
    two = distilled(world, "hot", path)
    assert not torch.equal(weights(one)["classifier.weight"], weights(two)["classifier.weight"])


# ------------------------------------------------------------------ the comparison


@pytest.mark.cpu
def test_an_edit_of_the_comparison_touches_no_student(world: World) -> None:
    code = world.path("artifacts/code/stages")
    measured = {f"pipeline/{name}.py" for name in ("runs/comparison", "evaluation/distance")}
    for stage in ("distill", "train_copy", "pretrain_student", "train_teacher", "inputs"):
        assert not measured & json.loads((code / f"{stage}.json").read_text()).keys(), stage
    assert measured <= json.loads((code / "evaluate.json").read_text()).keys()
    for run in world.params["runs"]:
        assert not measured & world.inputs(run).code.keys(), run


def test_evaluating_leaves_a_student_as_it_is(world: World) -> None:
    path = world.path("artifacts/inputs/pairs/pair/kcd/0.json")
    folder = distilled(world, "kcd", path)
    before = files(folder)
    assert {name for name in before if "/" not in name} == {"history.csv", "training.json", "inputs.json"}
    found = []
    for number in range(2):
        out, predictions = world.path(f"metrics/{number}.json"), world.path(f"predictions/{number}.npz")
        evaluate.main(folder, out=out, predictions=predictions, device=str(current().device))
        metrics = json.loads(out.read_text())
        found.append({name: metrics[name] for name in ("top1", "teacher_kl", "teacher_l2")})
    assert found[0] == found[1]
    assert files(folder) == before


@pytest.mark.cpu
def test_too_few_epochs_for_the_checkpoints_are_a_line_when_the_images_are_counted(world: World) -> None:
    rco = PARAMS["runs"]["rco"]
    # An epoch of five steps, and one more.
    resolved(world, "rco", **rco, recipe={"iterations": 6, "milestones": []})
    with pytest.raises(ParamsError, match="pair/rco learns from 2 checkpoints in 1 epochs"):
        resolved(world, "rco", **rco, recipe={"iterations": 5, "milestones": []})
