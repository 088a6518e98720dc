"""Chains of assistants (TAKD, DGKD): each learns from those before it, and students learn from the chain."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current, here
from error_fixtures import one_line
from graph_fixtures import StandIn
from safetensors.torch import load_file
from torch import Tensor, nn
from training_fixtures import (
    CLASSES,
    PARAMS,
    STUDENT,
    FixedSource,
    World,
    assemble,
    changed,
    clock,
    cut_off_after,
    job,
    make_world,
    views_of,
    watched_features,
)

from pipeline import seeding
from pipeline.artifacts import publish
from pipeline.artifacts.hashing import content_hash, file_hash
from pipeline.compute import graphs
from pipeline.compute.machine import Machine
from pipeline.distillation.method import Batch, Context
from pipeline.distillation.methods import kd
from pipeline.distillation.schedule import Teaching
from pipeline.distillation.schedules.assistants import DRAW, Config, Schedule
from pipeline.errors import MissingArtifactError, StaleArtifactError, StillhouseError
from pipeline.features import manifest as manifests
from pipeline.features.store import StoredArray, array_path
from pipeline.networks.network import Network, build
from pipeline.networks.taught import Taught
from pipeline.networks.weights import load
from pipeline.params import checks
from pipeline.params.recipe import Recipe
from pipeline.runs import check
from pipeline.runs.inputs import RunInputs
from pipeline.runs.planning import plan
from pipeline.training import copies, distill
from pipeline.training.distill import Distillation
from pipeline.training.loop import Training
from stages import train_copy

pytestmark = pytest.mark.usefixtures("device")

FIRST = {"teacher": "big", "network": "resnet8", "recipe": "quick", "follows": "teacher"}
SECOND = FIRST | {"network": "resnet8x0.25", "recipe": {"quick": {"epochs": 3}}, "follows": "a1"}
DENSE = SECOND | {"learns_from": ["teacher", "a1"], "drop": 1}
CHAIN = {"a1": FIRST, "a2": DENSE}


def command(world: World, name: str, chain: dict[str, Any] | None = None, **update: Any) -> dict[str, Any]:
    """Return the arguments of the stage."""
    return world.copying(f"assistants/{name}", assistants=chain or CHAIN) | update


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    made = make_world(tmp_path_factory.mktemp("world"))
    for name in CHAIN:
        train_copy.main(**command(made, name))
    return made


def resolved(world: World, name: str, settings: dict[str, Any], **run: Any) -> RunInputs:
    """Resolve a run of these settings."""
    runs = {name: {"methods": "kd", "schedule": {"assistants": settings}} | run}
    pair = world.blocks(assistants=CHAIN, runs=runs, distill=[f"pair/{name}"]) / "pairs/pair.json"
    inputs = world.resolve(world.path(f"changed/{name}-out"), block=pair)
    return RunInputs.model_validate_json(inputs[name])


def about(folder: Path) -> Taught:
    return Taught.model_validate_json((folder / "copy.json").read_text())


def logits_of(store: Path) -> str:
    """Return the hash of the logits that a store holds."""
    return manifests.read(store, "dvc repro").features["logits"].digest["last/train"]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------ the lesson, by hand

NAMES = [("a",), ("teacher", "a"), ("teacher", "a", "b"), ("b", "teacher", "a", "c")]
TEMPERATURE, CE, KD = 3.0, 0.3, 0.8


class Logits(nn.Module):
    """Stands for a student that is nothing but its logits (B, K)."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        x = torch.randn(size, classes, generator=seeding.generator("student", size, classes))
        self.logits = nn.Parameter(x)

    def record(self, image: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        return {"logits": self.logits}


def batch_of(names: tuple[str, ...], size: int, classes: int, step: int) -> Batch:
    """Return a batch with logits of all that teach."""
    generator = seeding.generator("teachers", size, classes)
    logits = {
        "logits" if name == "teacher" else f"{name}/logits": here(
            2 * torch.randn(size, classes, generator=generator)
        )
        for name in names
    }
    found, now = assemble("kd").batch(size), clock(step=step)
    label = here(torch.arange(size) % classes)
    return replace(found, label=label, teacher=logits, epoch=now.epoch, step=now.step)


def objective_of(config: Config, student: Any, batch: Batch, classes: int) -> tuple[Distillation, Schedule]:
    context = Context(classes, batch.label.cpu(), student, {"logits": (classes,)}, {"logits": (classes,)})
    method = kd.Method(kd.Config(temperature=TEMPERATURE, weights={"ce": CE, "kd": KD}), context)
    schedule = Schedule(config, context)
    own = {name: x for name, x in batch.teacher.items() if "/" not in name}
    sources = {name: FixedSource({"logits": batch.teacher[f"{name}/logits"]}) for name in config.assistants}
    objective = Distillation(
        student, method, schedule, None, FixedSource(own), current(), 0, copies=sources, taps=("logits",)
    )
    return objective.to(current().device), schedule


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    e = [math.exp(v / temperature) for v in row]
    return [v / sum(e) for v in e]


def by_hand(
    s: list[list[float]], teachers: list[list[list[float]]], label: list[int]
) -> tuple[float, list[list[float]]]:
    """Return loss and gradient: CE once, and KD from each of those that are left, sample by sample."""
    size, loss = len(s), 0.0
    gradient = [[0.0] * len(row) for row in s]
    for i, row in enumerate(s):
        p = softmax(row)
        loss -= CE * math.log(p[label[i]]) / size
        for k, value in enumerate(p):
            gradient[i][k] += CE * (value - (k == label[i])) / size
        q = softmax(row, TEMPERATURE)
        for teacher in teachers:
            t = softmax(teacher[i], TEMPERATURE)
            for k in range(len(row)):
                loss += KD * TEMPERATURE**2 * t[k] * math.log(t[k] / q[k]) / size
                gradient[i][k] += KD * TEMPERATURE * (q[k] - t[k]) / size
    return loss, gradient


def left(draws: list[float], drop: float) -> list[int]:
    """Return which of those that teach are left."""
    if isinstance(drop, int):
        lowest = sorted(range(len(draws)), key=lambda number: draws[number])[:drop]
        return [number for number in range(len(draws)) if number not in lowest]
    kept = [number for number, draw in enumerate(draws) if draw >= drop]
    return kept or [draws.index(max(draws))]


@pytest.mark.parametrize(
    ("names", "drop"),
    [(names, drop) for names in NAMES for drop in (0, 1, 2, 0.4, 0.9) if drop < len(names)],
)
@pytest.mark.parametrize(("size", "classes"), [(1, 2), (2, 10), (7, 3)])
def test_loss_and_gradient_are_the_formula(
    names: tuple[str, ...], drop: float, size: int, classes: int
) -> None:
    config = Config(names=names, drop=drop)
    for step in range(4):
        student = Logits(size, classes)
        batch = batch_of(names, size, classes, step)
        objective, _ = objective_of(config, student, batch, classes)
        loss, terms = objective(views_of(batch), {}, clock(step=step))
        loss.backward()

        draws = batch.uniform(len(names), draw=DRAW).tolist()
        teachers = [
            batch.teacher["logits" if names[i] == "teacher" else f"{names[i]}/logits"].double().tolist()
            for i in (left(draws, drop) if drop else range(len(names)))
        ]
        expected, gradient = by_hand(student.logits.double().tolist(), teachers, batch.label.tolist())
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert student.logits.grad is not None
        found = student.logits.grad.double().cpu()
        torch.testing.assert_close(found, torch.tensor(gradient, dtype=torch.float64), rtol=1e-5, atol=1e-6)
        columns = {"kd"} if len(names) == 1 else {f"{name}_kd" for name in names}
        assert terms.keys() == {"ce"} | columns


def test_of_several_a_number_is_dropped_each_as_often_as_the_others() -> None:
    names, steps = ("teacher", "a", "b"), 900
    batch = batch_of(names, 2, 3, 0)
    for drop, rate in ((1, 1 / 3), (2, 2 / 3)):
        objective, schedule = objective_of(Config(names=names, drop=drop), Logits(2, 3), batch, 3)
        taught = np.array([weights(schedule(objective.student.record(batch.image, ()), at(batch, step)))
                           for step in range(steps)])  # fmt: skip
        assert (taught.sum(axis=1) == 3 - drop).all()
        # Five standard deviations of a binomial.
        bound = 5 * math.sqrt(rate * (1 - rate) / steps)
        assert np.abs(1 - taught.mean(axis=0) - rate).max() < bound


def test_of_a_share_each_is_dropped_by_itself_and_one_is_always_left() -> None:
    names, steps = ("teacher", "a", "b"), 900
    batch = batch_of(names, 2, 3, 0)
    _, schedule = objective_of(Config(names=names, drop=0.25), Logits(2, 3), batch, 3)
    taught = np.array([weights(schedule({}, at(batch, step))) for step in range(steps)])
    assert set(taught.sum(axis=1)) == {1, 2, 3}
    rate = 0.25 - 0.25**3 / 3  # the last one is left
    assert np.abs(1 - taught.mean(axis=0) - rate).max() < 5 * math.sqrt(rate * (1 - rate) / steps)

    _, schedule = objective_of(Config(names=names, drop=0.99), Logits(2, 3), batch, 3)
    assert all(sum(weights(schedule({}, at(batch, step)))) >= 1 for step in range(50))


def test_who_is_dropped_follows_from_seed_and_step_alone() -> None:
    names = ("teacher", "a", "b", "c")
    batch = batch_of(names, 2, 3, 0)
    _, schedule = objective_of(Config(names=names, drop=2), Logits(2, 3), batch, 3)
    first = [weights(schedule({}, at(batch, step))) for step in range(20)]
    assert first == [weights(schedule({}, at(batch, step))) for step in range(20)]
    assert first != [weights(schedule({}, replace(at(batch, step), seed=1))) for step in range(20)]


def at(batch: Batch, step: int) -> Batch:
    return replace(batch, step=clock(step=step).step)


def weights(teaching: Teaching) -> list[float]:
    return [float(lesson.weight) for lesson in teaching.lessons]


def test_gradients_reach_the_student_and_nothing_else() -> None:
    names = ("teacher", "a")
    batch = batch_of(names, 5, CLASSES, 0)
    student: Network = build(STUDENT, 0).to(current().device)
    objective, schedule = objective_of(Config(names=names), student, batch, CLASSES)
    loss, _ = objective(views_of(batch), {}, clock())
    loss.backward()
    assert all(x.grad is not None for x in student.parameters())
    assert {id(x) for x in objective.parameters()} == {id(x) for x in student.parameters()}
    assert not any(x.requires_grad for x in batch.teacher.values())
    assert not schedule.state_dict()


# ------------------------------------------------------------------ the chain


def test_an_assistant_is_its_own_network_trained_from_the_teachers_logits(world: World) -> None:
    folder = world.path("artifacts/copies/big/a1")
    network, spec = load(folder / "weights")
    assert spec == STUDENT  # not the teacher's network
    assert network.state_dict().keys() == build(STUDENT, 0).state_dict().keys()
    rows = history(folder)
    assert len(rows) == 2
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    for row in rows:
        total = 0.1 * float(row["ce"]) + 0.9 * float(row["kd"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)


def test_a_second_one_learns_from_both_before_it(world: World) -> None:
    folder = world.path("artifacts/copies/big/a2")
    rows = history(folder)
    assert len(rows) == 3  # its own recipe
    assert load(folder / "weights")[1].network == "resnet8x0.25"
    assert {"ce", "teacher_kd", "a1_kd", "loss"} <= rows[0].keys()
    for row in rows:
        ce, teacher, first = (float(row[name]) for name in ("ce", "teacher_kd", "a1_kd"))
        # One of the two is dropped at every step.
        total = float(row["loss"])
        assert 0.1 * ce < total < 0.1 * ce + 0.9 * (teacher + first)
    stored = StoredArray(array_path(folder / "store.zarr", "last", "train", "logits")).all()
    assert stored.shape == (1 + 9, 100, CLASSES)


def test_an_assistant_sees_what_the_one_before_it_says_of_the_same_views(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched_features(monkeypatch)
    siblings = world.path("artifacts/copies/big")
    for chain in (CHAIN, {"a1": FIRST, "a2": SECOND}):  # DGKD, TAKD
        seen.clear()
        train_copy.main(**command(world, "a2", chain, out=tmp_path / "a2", copies=siblings))
        first = load(siblings / "a1/weights")[0]
        for views, fetched in (seen[0], seen[-1]):
            assert fetched.keys() == ({"logits", "a1/logits"} if chain is CHAIN else {"a1/logits"})
            with torch.no_grad():
                live = first(views.image.cpu())
            torch.testing.assert_close(fetched["a1/logits"].cpu(), live, rtol=1e-4, atol=1e-4)


def test_its_json_names_all_that_it_learned_from(world: World) -> None:
    copied = world.path("artifacts/copies/big")
    teacher = logits_of(world.path("artifacts/features/big.zarr"))
    first, second = about(copied / "a1"), about(copied / "a2")
    assert first.learned_from == {"teacher": teacher}
    assert second.learned_from == {"teacher": teacher, "a1": logits_of(copied / "a1/store.zarr")}
    assert second.logits == logits_of(copied / "a2/store.zarr")
    assert second.weights == file_hash(world.path("artifacts/teachers/big/weights/last.safetensors"))
    assert second.made_by == "train_assistant@a2"
    block = json.loads((world.blocks(assistants=CHAIN) / "assistants/a2.json").read_text())
    assert second.settings == content_hash(block)
    # How good it is.
    assert second.top1 == float(history(copied / "a2")[-1]["top1"])


def test_the_json_of_the_last_changes_with_the_first(world: World, tmp_path: Path) -> None:
    """DVC looks at the json of the one before alone."""
    edited = {
        "a1": FIRST | {"temperature": 2.0},
        "a2": DENSE,
        "a3": SECOND | {"follows": "a2", "learns_from": ["a1", "a2"]},
    }
    jsons = []
    for folder, chain in ((tmp_path / "before", edited | {"a1": FIRST}), (tmp_path / "after", edited)):
        for name in chain:
            train_copy.main(**command(world, name, chain, out=folder / name))
        jsons.append([(folder / name / "copy.json").read_text() for name in chain])
    assert all(before != after for before, after in zip(*jsons, strict=True))
    blocks = [world.blocks(assistants=chain) for chain in (edited | {"a1": FIRST}, edited)]
    same = [(blocks[0] / f"assistants/{name}.json").read_text() == (blocks[1] / f"assistants/{name}.json").read_text()
            for name in edited]  # fmt: skip
    assert same == [False, True, True]


@pytest.mark.cpu
def test_an_assistant_takes_what_was_planned(world: World) -> None:
    planned = plan(check.project(PARAMS | {"assistants": CHAIN}), {"toy": world.prepared.meta})
    items = {item.name: item for item in planned.items if item.kind == "assistant"}
    for name in CHAIN:
        folder = world.path(f"artifacts/copies/big/{name}")
        files = [path for path in folder.rglob("*") if path.is_file()]
        item = items[f"big/{name}"]
        assert item.stages == (f"train_assistant@{name}",)
        assert item.files == len(files)
        # Names and hashes of weights are not planned, and most of what a network as small as the second is.
        assert item.bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.2)


def test_an_assistant_that_is_interrupted_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = world.path("artifacts/copies/big/a2"), tmp_path / "a2"
    arguments = command(world, "a2", out=out, copies=whole.parent)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.loop.CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Training, "_keep", cut_off_after(Training._keep, 1))
        with pytest.raises(KeyboardInterrupt):
            train_copy.main(**arguments)
    assert (publish.scratch(out) / "checkpoint.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setattr(copies, "fill", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_copy.main(**arguments)
    monkeypatch.setattr(Training, "run", lambda self: pytest.fail("trained again"))
    train_copy.main(**arguments)
    assert load_file(out / "weights/last.safetensors").keys()
    assert (out / "weights/last.safetensors").read_bytes() == (
        whole / "weights/last.safetensors"
    ).read_bytes()
    assert about(out) == about(whole)


# ------------------------------------------------------------------ its students


def test_students_of_a_chain_read_it_and_are_plain(world: World) -> None:
    for name, settings, columns in (
        ("takd", {"names": ["a2"]}, {"ce", "kd"}),
        ("dgkd", {"names": ["teacher", "a1", "a2"], "drop": 0.25}, {"ce", "teacher_kd", "a1_kd", "a2_kd"}),
    ):
        inputs = resolved(world, name, settings)
        assert set(inputs.copies) == set(settings["names"]) - {"teacher"}
        assert inputs.copies["a2"].digest == {
            "last/train": about(world.path("artifacts/copies/big/a2")).logits
        }
        folder = world.distill(name, inputs)
        rows = history(folder)
        assert columns <= rows[0].keys()
        assert all(math.isfinite(float(row["loss"])) for row in rows)
        held = load_file(folder / "weights/init.safetensors")
        plain = build(STUDENT, 0).state_dict()
        assert held.keys() == plain.keys()
        assert all(torch.equal(x, plain[key]) for key, x in held.items())


def test_the_teacher_alone_teaches_as_it_does_without_a_schedule(world: World) -> None:
    folders = [
        world.distill("alone", resolved(world, "alone", {"names": ["teacher"]})),
        world.distill("plain", world.inputs("kd")),
    ]
    last = [(folder / "weights/last.safetensors").read_bytes() for folder in folders]
    assert last[0] == last[1]


def test_captured_steps_drop_whom_eager_ones_do(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=3, batch_size=24, learning_rate=0.05, milestones=(2,))
    inputs = resolved(world, "captured", {"names": ["teacher", "a1", "a2"], "drop": 1})
    inputs = inputs.model_copy(update={"recipe": recipe})
    monkeypatch.setattr(StandIn, "made", 0)
    monkeypatch.setattr(StandIn, "replayed", 0)
    if current().device.type == "cpu":
        monkeypatch.setattr(graphs, "Graph", StandIn)

    distill.distill(inputs, job(tmp_path / "captured", machine=replace(current(), captured=True)))
    if current().device.type == "cpu":
        assert (StandIn.made, StandIn.replayed) == (1, 12 - 3)  # whole batches; Python took the first three
    monkeypatch.setattr(Machine, "fused", property(lambda self: True))
    distill.distill(inputs, job(tmp_path / "eager"))
    last = [tmp_path / name / "weights/last.safetensors" for name in ("captured", "eager")]
    assert last[0].read_bytes() == last[1].read_bytes()


# ------------------------------------------------------------------ what is refused


@pytest.fixture
def moved(world: World, tmp_path: Path) -> Path:
    """Return a copy of the teacher's assistants that a test may damage."""
    folder = tmp_path / "big"
    shutil.copytree(world.path("artifacts/copies/big"), folder)
    return folder


def edit(folder: Path, **update: Any) -> None:
    path = folder / "copy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | update))


@pytest.mark.cpu
@pytest.mark.parametrize("name", ["a1", "a2"])
def test_an_assistant_of_another_teacher_is_refused(world: World, moved: Path, name: str) -> None:
    edit(moved / name, weights="0")
    pair = block_of(world, "refused")
    with pytest.raises(StaleArtifactError, match=rf"of another teacher.*train_assistant@{name}") as error:
        world.resolve(moved / "out", block=pair, copies=moved)
    one_line(error)


@pytest.mark.cpu
def test_a_chain_whose_first_has_changed_is_refused(world: World, moved: Path) -> None:
    edit(moved / "a1", logits="0")
    pair = block_of(world, "refused")
    with pytest.raises(StaleArtifactError, match=r"learned from another 'a1'.*train_assistant@a2") as error:
        world.resolve(moved / "out", block=pair, copies=moved)
    one_line(error)
    shutil.rmtree(moved / "a1")
    with pytest.raises(MissingArtifactError, match=r"copy\.json does not exist.*train_assistant@a1"):
        world.resolve(moved / "out", block=pair, copies=moved)


def block_of(world: World, name: str) -> Path:
    """Return the block of the pair with a run by the chain."""
    runs = {name: {"methods": "kd", "schedule": {"assistants": {"names": ["a2"]}}}}
    return world.blocks(assistants=CHAIN, runs=runs, distill=[f"pair/{name}"]) / "pairs/pair.json"


@pytest.mark.cpu
def test_an_assistant_does_not_learn_from_what_is_of_another_teacher(
    world: World, moved: Path, tmp_path: Path
) -> None:
    edit(moved / "a1", weights="0")
    with pytest.raises(StaleArtifactError, match=r"of another teacher.*train_assistant@a1") as error:
        train_copy.main(**command(world, "a2", out=tmp_path / "a2", copies=moved))
    one_line(error)
    assert not (tmp_path / "a2").exists()


OTHER = changed(PARAMS, "teachers.other", PARAMS["teachers"]["big"])
MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    ({"a1": FIRST | {"teacher": "nobody"}}, ["Unknown teacher of assistants.a1: 'nobody'"]),
    (
        {"a1": FIRST | {"follows": "a0"}},
        ["Unknown assistant that assistants.a1 follows: 'a0'", "Known: a1, teacher"],
    ),
    ({"a1": FIRST | {"follows": "a1"}}, ["assistants.a1 follows 'a1', so a1 go round in a circle"]),
    (
        {"a1": FIRST | {"follows": "a3"}, "a2": SECOND, "a3": SECOND | {"follows": "a2"}},
        ["go round in a circle", "Let one follow teacher"],
    ),
    (
        {"a1": FIRST | {"teacher": "other"}, "a2": SECOND},
        ["assistants.a2 follows 'a1', which has another teacher than 'big'", "or teacher."],
    ),
    (
        {"a1": FIRST, "a2": SECOND, "a3": SECOND | {"learns_from": ["a1", "a2"]}},
        [
            "Unknown entry of assistants.a3.learns_from: 'a2'",
            "Known: a1, teacher",
            "those that come before it",
        ],
    ),
    ({"a1": FIRST, "a2": SECOND | {"learns_from": ["teacher"]}}, ["assistants.a2.learns_from lacks 'a1'"]),
    ({"a1": FIRST, "a2": SECOND | {"learns_from": ["a1", "a1"]}}, ["It has 'a1' twice"]),
    ({"a1": FIRST | {"drop": 1}}, ["drop is 1, and 1 teach", "so that one is left"]),
    ({"a1": FIRST | {"drop": 1.5}}, ["'assistants.a1.drop' is 1.5", "less than 1"]),
    ({"a1": FIRST | {"drop": -1}}, ["'assistants.a1.drop' is -1", "greater than or equal to 0"]),
    ({"teacher": FIRST}, ["assistants.teacher has the name of another folder"]),
    ({"a1": FIRST, "A1": SECOND}, ["differ by case alone"]),
    ({"ONE": FIRST}, ["assistants.ONE and copies.one have one name", "Rename one"]),
    ({"a1": FIRST | {"recipe": "long"}}, ["Unknown recipe of assistants.a1.recipe: 'long'"]),
    ({"a1": FIRST | {"student": "small"}}, ["unknown key 'assistants.a1.student'"]),
    (
        {"a1": {key: x for key, x in FIRST.items() if key != "follows"}},
        ["'assistants.a1.follows' is missing"],
    ),
]


@pytest.mark.cpu
@pytest.mark.parametrize(("chain", "parts"), MISTAKES)
def test_chains_that_cannot_be_are_reported(chain: dict[str, Any], parts: list[str]) -> None:
    own = {"one": {"teacher": "big", "student": "small"}}
    with pytest.raises(StillhouseError) as error:
        checks.check(OTHER | {"assistants": chain, "copies": own})
    one_line(error)
    for part in parts:
        assert part in str(error.value)


RUNS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (
        {"a1": FIRST},
        {"methods": "fitnet"},
        ["The methods read stage2 of the teacher, and assistants have logits alone"],
    ),
    ({"a1": FIRST}, {"methods": {"kd": {}, "fitnet": {}}}, ["The methods read stage2"]),
    ({"a1": FIRST}, {"methods": "dsn"}, ["The methods read nothing of the teacher"]),
    (
        {"a2": FIRST},
        {"methods": "kd"},
        ["Unknown copy or assistant of teacher 'big' of runs.x: 'a1'", "Known: a2"],
    ),
    (
        {"a1": FIRST | {"slots": 2}},
        {"methods": "kd"},
        ["runs.x shows 9 view slots, and assistants.a1.slots is 2"],
    ),
    (
        {"a1": FIRST | {"slots": 2}, "a2": SECOND},
        {"methods": "kd", "slots": 2},
        ["assistants.a2 sees 9 view slots, and assistants.a1.slots is 2", "or lower assistants.a2.slots."],
    ),
    ({"a1": FIRST | {"network": "resnet9000"}}, {"methods": "kd"}, ["assistants.a1.network", "resnet9000"]),
]


@pytest.mark.cpu
@pytest.mark.parametrize(("chain", "run", "parts"), RUNS)
def test_runs_that_a_chain_cannot_teach_are_reported(
    chain: dict[str, Any], run: dict[str, Any], parts: list[str]
) -> None:
    runs = PARAMS["runs"] | {"x": run | {"schedule": {"assistants": {"names": ["a1"]}}}}
    with pytest.raises(StillhouseError) as error:
        check.check(PARAMS | {"assistants": chain, "runs": runs, "distill": ["pair/x"]})
    one_line(error)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.cpu
def test_a_method_without_a_teacher_is_refused_where_several_teach() -> None:
    """Its terms would count once for each of them."""

    def checked(names: list[str]) -> None:
        run = {"methods": {"kd": {}, "dsn": {}}, "schedule": {"assistants": {"names": names}}}
        runs = PARAMS["runs"] | {"x": run}
        check.check(PARAMS | {"assistants": {"a1": FIRST}, "runs": runs, "distill": ["pair/x"]})

    checked(["a1"])
    with pytest.raises(StillhouseError) as error:
        checked(["teacher", "a1"])
    assert "'dsn', which learns from no teacher" in one_line(error)


@pytest.mark.cpu
def test_any_method_learns_where_the_teacher_alone_is_named() -> None:
    runs = PARAMS["runs"] | {"x": {"methods": "fitnet", "schedule": {"assistants": {"names": ["teacher"]}}}}
    check.check(PARAMS | {"runs": runs, "distill": ["pair/x"]})


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"names": []}, "at least 1"),
        ({"names": ["a", "a"]}, "twice"),
        ({"names": ["a.b", "a_b"]}, "alike but for a dot"),
        ({"names": ["a", "b"], "drop": 2}, "drop is 2, and 2 teach"),
        ({"names": ["a", "b"], "drop": 1.0}, "less than 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Config.model_validate_json(json.dumps(settings))
