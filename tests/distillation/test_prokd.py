"""Runs that follow checkpoints of the teacher: Pro-KD, held to a plain loop, and ESKD's single one."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from baseline_fixtures import CLASSES, EXACT, SIZES, batch, method, taps
from device_fixtures import current
from safetensors.torch import load_file
from torch import Tensor
from training_fixtures import PARAMS, STUDENT, World, assemble, changed, make_world

from pipeline import plugin
from pipeline.distillation.method import Batch
from pipeline.distillation.methods import prokd
from pipeline.errors import ParamsError
from pipeline.networks.network import build
from pipeline.networks.weights import load
from pipeline.params.base import validate
from pipeline.params.recipe import Epoch, Phase, Recipe
from pipeline.training.setting import Setting

pytestmark = pytest.mark.usefixtures("device")

EPOCHS = 30  # of a phase of `batch`


# ------------------------------------------------------------------ the terms


def in_epoch(now: Batch, number: int, phase: str = "general") -> Batch:
    return replace(now, epoch=torch.tensor(number), phase=phase)


def squares(s: Tensor, t: Tensor, factor: float) -> Tensor:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for own, taught in zip(s, t, strict=True):
        for one, other in zip(own, taught, strict=True):
            total, count = total + (one - factor * other) ** 2, count + 1
    return total / count


@pytest.mark.cpu
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("size", SIZES)
def test_the_general_step_is_the_formula(classes: int, size: int) -> None:
    """In its first, middle and last epochs of thirty: tenths, three epochs each."""
    shapes = {"logits": (classes,)}
    found = method("prokd", shapes, shapes, classes)
    given, now = taps(shapes, size, "student"), batch(taps(shapes, size, "teacher"), classes)
    for number, factor in ((0, 0.1), (2, 0.1), (3, 0.2), (14, 0.5), (26, 0.9), (27, 1.0), (29, 1.0)):
        terms = found(given, in_epoch(now, number))
        assert terms.keys() == {"logits"}  # no label
        expected = squares(given["logits"], now.teacher["logits"], factor)
        torch.testing.assert_close(terms["logits"], expected, **EXACT)
        own, loop = (torch.autograd.grad(x, given["logits"])[0] for x in (terms["logits"], expected))
        torch.testing.assert_close(own, loop, **EXACT)


@pytest.mark.cpu
@pytest.mark.parametrize(("epochs", "temperatures"), [(10, 10), (25, 10), (240, 10), (7, 10), (3, 1), (1, 4)])
def test_the_factors_grow_from_the_first_to_the_whole(epochs: int, temperatures: int) -> None:
    shapes = {"logits": (3,)}
    found = method("prokd", shapes, shapes, 3, temperatures=temperatures)
    given = {"logits": torch.zeros(2, 3, dtype=torch.float64)}
    now = batch({"logits": torch.ones(2, 3, dtype=torch.float64)}, 3)
    factors = [
        found(given, replace(in_epoch(now, number), epochs=epochs))["logits"].sqrt().item()
        for number in range(epochs)
    ]
    assert factors[0] == pytest.approx(1 / temperatures)
    assert factors == sorted(factors)
    assert factors[-1] <= 1
    if epochs >= temperatures:
        assert factors[-1] == 1
        assert len(set(factors)) == temperatures


@pytest.mark.cpu
def test_the_labels_phase_reads_nothing_of_the_teacher() -> None:
    shapes = {"logits": (5,)}
    found = method("prokd", shapes, shapes)
    given, now = taps(shapes, 4, "student"), batch(taps(shapes, 4, "teacher"))
    terms = found(given, replace(in_epoch(now, 0, "main"), teacher={}))
    assert terms.keys() == {"ce"}
    torch.testing.assert_close(terms["ce"], F.cross_entropy(given["logits"], now.label))


def test_both_phases_reach_the_whole_student() -> None:
    found = assemble("prokd")
    for phase in ("general", "main"):
        now = found.batch(phase=phase)
        found.student.zero_grad()
        (term,) = found.method(found.taps(now), now).values()
        term.backward()
        assert all(x.grad is not None and x.grad.any() for x in found.student.parameters()), phase
    assert not list(found.method.parameters())


# ------------------------------------------------------------------ the phases


@pytest.mark.cpu
def test_the_phases_are_the_recipe_and_half_of_it() -> None:
    recipe = Recipe(epochs=200, milestones=(100, 150), warmup=10, learning_rate=0.1)
    general, labels = assemble("prokd").method.phases(recipe)
    assert general == Phase("general", recipe)
    assert labels == Phase(
        "main", recipe.model_copy(update={"epochs": 100, "milestones": (50, 75), "warmup": 5}), taught=False
    )
    (_, third) = assemble("prokd", {"labels": 0.25}).method.phases(recipe)
    assert (third.recipe.epochs, third.recipe.milestones) == (50, (25, 38))


@pytest.mark.cpu
def test_a_recipe_of_no_epochs_stays_one() -> None:
    assert [phase.recipe.epochs for phase in assemble("prokd").method.phases(Recipe(epochs=0))] == [0, 0]
    assert [phase.recipe.epochs for phase in assemble("prokd").method.phases(Recipe(epochs=1))] == [1, 1]


@pytest.mark.cpu
@pytest.mark.parametrize("settings", [{"labels": 0}, {"labels": 1.5}, {"temperatures": 0}])
def test_settings_without_a_phase_or_a_factor_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ParamsError, match=rf"runs\.x\.prokd\.{next(iter(settings))}"):
        validate(prokd.Config, settings, "runs.x.prokd")


def taught(phases: tuple[Phase, ...], anchors: tuple[str, ...]) -> list[str]:
    """Return the checkpoint of every epoch."""
    module = plugin.load("schedules", "anchors")
    schedule = module.Schedule(module.Config(anchors=anchors), assemble("kd").context)
    return [
        schedule.checkpoint(Epoch.of(phases, place, number, steps=1))
        for place, phase in enumerate(phases)
        for number in range(phase.recipe.num_epochs(1))
    ]


def phase(epochs: int, *, taught: bool = True) -> Phase:
    return Phase("any", Recipe(epochs=epochs), taught=taught)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ((phase(6),), "aabbcc"),
        ((phase(3), phase(6)), "aaabbbccc"),  # AB's phases, over both of which the anchors are spread
        ((phase(6), phase(3, taught=False)), "aabbccccc"),
        ((phase(2, taught=False), phase(6)), "aaaabbcc"),
        ((phase(3), phase(2, taught=False), phase(3)), "aabbbbcc"),
        ((phase(2, taught=False),), "aa"),
        ((phase(0), phase(6)), "aabbcc"),
    ],
    ids=str,
)
def test_anchors_are_spread_over_the_phases_in_which_they_take_turns(
    phases: tuple[Phase, ...], expected: str
) -> None:
    assert "".join(taught(phases, ("a", "b", "c"))) == expected


# ------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    runs = {
        "prokd": {
            "methods": "prokd",
            "schedule": {"anchors": {"anchors": ["anchor_050", "last"]}},
            "recipe": {"epochs": 4, "milestones": [3]},
        },
        "eskd": {"methods": "kd", "schedule": {"anchors": {"anchors": ["anchor_050"]}}},
        "kd": {"methods": "kd"},
    }
    params = changed(changed(PARAMS, "runs", runs), "distill", [f"pair/{run}" for run in runs])
    params = changed(changed(params, "matchings", {}), "tables", {})
    return make_world(tmp_path_factory.mktemp("world"), params)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the checkpoints whose features are read, batch by batch."""
    from pipeline.features.source import CachedSource

    checkpoints: list[str] = []
    begin = CachedSource.begin

    def noted(self: CachedSource, checkpoint: str, *batch: Any) -> Any:
        checkpoints.append(checkpoint)
        return begin(self, checkpoint, *batch)

    monkeypatch.setattr(CachedSource, "begin", noted)
    return checkpoints


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_prokd_follows_the_checkpoints_and_then_the_labels(world: World, asked: list[str]) -> None:
    folder = world.distill("prokd", world.inputs("prokd"))
    rows = history(folder)
    assert [row["phase"] for row in rows] == ["general"] * 4 + ["main"] * 2
    assert asked == ["anchor_050"] * 10 + ["last"] * 10 + ["last"] * 10  # five batches an epoch
    for row in rows:
        learned, other = ("logits", "ce") if row["phase"] == "general" else ("ce", "logits")
        assert float(row[learned]) == pytest.approx(float(row["loss"]))
        assert not row.get(other)
    assert float(rows[5]["loss"]) < float(rows[4]["loss"])
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(
        [0.05, 0.05, 0.05, 0.005, 0.05, 0.05]
    )
    assert set(load_file(folder / "weights/last.safetensors")) == set(build(STUDENT, 0).state_dict())


def test_eskd_learns_from_the_early_checkpoint_alone(world: World, asked: list[str]) -> None:
    """ESKD is KD from a teacher whose training was stopped early; its first step is that of the anchor's logits."""
    inputs = world.inputs("eskd")
    assert set(inputs.stored["logits"].digest) == {"anchor_050/train"}
    world.distill("eskd", inputs)
    assert set(asked) == {"anchor_050"}

    once = inputs.model_copy(update={"recipe": Recipe(epochs=1, batch_size=100)})
    row = history(world.distill("eskd-once", once))[0]
    early, last = (
        load(world.path("artifacts/teachers/big/weights"), name)[0] for name in ("anchor_050", "last")
    )
    setting = Setting.of(world.prepared, inputs.views, current())
    (views,) = setting.batches(once.recipe, 0, inputs.slots).epoch(0)
    image = views.image.cpu()
    with torch.no_grad():
        s, t, other = build(STUDENT, 0)(image), early(image), last(image)

    def kd(teacher: Tensor) -> float:
        p, q = (teacher / 4).softmax(1), (s / 4).softmax(1)
        return float(16 * (p * (p / q).log()).sum(1).mean())

    assert float(row["kd"]) == pytest.approx(kd(t), rel=1e-4)
    assert float(row["kd"]) != pytest.approx(kd(other), rel=1e-2)
