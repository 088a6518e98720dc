"""The training loop: against a plain loop, interrupted and resumed, diverging, in phases."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from device_fixtures import current, here
from error_fixtures import one_line
from safetensors.torch import load_file
from torch import Tensor, nn
from training_fixtures import RECIPE, STUDENT, TIMES, VIEWS, job, plain_epoch, prepared_data

from pipeline import seeding
from pipeline.artifacts.hashing import file_hash
from pipeline.compute.machine import machine
from pipeline.data.images import ResidentImages
from pipeline.data.prepared import Prepared
from pipeline.data.views import view_space
from pipeline.errors import DamagedArtifactError, DivergedError, ParamsError, StillhouseError
from pipeline.networks.network import Taps, build
from pipeline.networks.weights import load
from pipeline.params.recipe import Epoch, Phase, Recipe
from pipeline.params.views import Plain
from pipeline.training import checkpoint, loop, result
from pipeline.training.alone import train
from pipeline.training.batches import Batches, Feed, Views
from pipeline.training.loop import Training
from pipeline.training.optimizer import recipe_optimizer
from pipeline.training.setting import Setting, all_slots
from pipeline.training.step import Clock

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_data(tmp_path_factory.mktemp("data") / "toy")


def alone(scratch: Path, prepared: Prepared, recipe: Recipe = RECIPE, **options: Any) -> Path:
    where = job(scratch, identity=options.pop("identity", "a"))
    train(where, STUDENT, recipe, VIEWS, prepared, options.pop("seed", 3), **options)
    return scratch


def history(scratch: Path) -> list[dict[str, str]]:
    with (scratch / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def kept(scratch: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((scratch / "weights").iterdir())}


# ------------------------------------------------------------------ against a plain loop


@pytest.mark.parametrize(
    ("nesterov", "size"),
    [
        pytest.param(False, 32, id="32-32-32-4"),
        pytest.param(True, 32, id="nesterov"),
        pytest.param(False, 33, id="33-33-34"),
    ],
)
def test_training_alone_is_a_plain_loop(
    tmp_path: Path, prepared: Prepared, nesterov: bool, size: int
) -> None:
    recipe = RECIPE.model_copy(update={"nesterov": nesterov, "batch_size": size, "weight_decay": 1e-2})
    scratch = alone(tmp_path / "a", prepared, recipe)
    network = build(STUDENT, 3)
    velocity: dict[str, Tensor] = {}
    losses = []
    for epoch, rate in enumerate([0.05, 0.005]):
        steps = []
        for image, label in plain_epoch(prepared, 3, epoch, size):
            network.zero_grad()
            loss = F.cross_entropy(network(image), label)
            loss.backward()
            steps.append(loss.item())
            with torch.no_grad():
                for name, x in network.named_parameters():
                    assert x.grad is not None
                    step = x.grad + 1e-2 * x  # weight decay on every parameter, BN's included
                    velocity[name] = 0.9 * velocity[name] + step if name in velocity else step.clone()
                    x -= rate * (step + 0.9 * velocity[name] if nesterov else velocity[name])
        losses.append(sum(steps) / len(steps))
    found = load_file(scratch / "weights/last.safetensors")
    # float32; the normalization and the update round in another order.
    for name, x in network.state_dict().items():
        torch.testing.assert_close(found[name], x, rtol=1e-4, atol=2e-5, msg=name)
    for row, loss_ in zip(history(scratch), losses, strict=True):
        assert float(row["loss"]) == float(row["ce"]) == pytest.approx(loss_, abs=1e-4)
    moved = (found["classifier.weight"] - build(STUDENT, 3).classifier.weight).abs().max()
    assert moved > 1e-2  # the tolerance is far below what the training does


@pytest.mark.cpu
def test_the_init_is_a_function_of_the_seed(tmp_path: Path, prepared: Prepared) -> None:
    none = RECIPE.model_copy(update={"epochs": 0})
    one, same, other = (alone(tmp_path / str(n), prepared, none, seed=s) for n, s in enumerate([3, 3, 4]))
    assert kept(one)["init.safetensors"] == kept(same)["init.safetensors"]
    assert kept(one)["init.safetensors"] != kept(other)["init.safetensors"]


def test_training_twice_gives_the_same_bytes(tmp_path: Path, prepared: Prepared) -> None:
    torch.manual_seed(1)
    one = alone(tmp_path / "a", prepared)
    torch.manual_seed(2)  # nothing draws from the global generator
    other = alone(tmp_path / "b", prepared)
    assert kept(one) == kept(other)
    assert history(one) == history(other)


@pytest.mark.cpu
def test_no_epochs_keep_the_init(tmp_path: Path, prepared: Prepared) -> None:
    scratch = alone(
        tmp_path / "a", prepared, RECIPE.model_copy(update={"epochs": 0}), anchors={"anchor_050": 0.5}
    )
    found = kept(scratch)
    assert found["init.safetensors"] == found["last.safetensors"] == found["best.safetensors"]
    assert not (scratch / "history.csv").exists()
    summary = json.loads((scratch / "training.json").read_text())
    assert (summary["epochs"], summary["best_epoch"], summary["images_per_second"]) == (0, 0, 0.0)


def test_loss_falls_on_patterns(tmp_path: Path, prepared: Prepared) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 6, "milestones": (4,)})
    rows = history(alone(tmp_path / "a", prepared, recipe))
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert float(rows[-1]["top1"]) > 75


# ------------------------------------------------------------------ recipe


@pytest.mark.cpu
def test_learning_rate_drops_after_the_milestones() -> None:
    rates = {epoch: Recipe().rate(epoch - 1) for epoch in range(1, 241)}  # by epoch, counted from 1
    expected = {e: 0.05 if e < 151 else 0.005 if e < 181 else 0.0005 if e < 211 else 0.00005 for e in rates}
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.cpu
def test_learning_rate_warms_up_linearly() -> None:
    recipe = Recipe(learning_rate=0.1, warmup=4, milestones=(2, 6))
    expected = [0.025, 0.05, 0.1 * 0.75 * 0.1, 0.01, 0.01, 0.01, 0.001]
    assert [recipe.rate(epoch) for epoch in range(7)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.cpu
def test_history_reports_the_rate_of_every_epoch(tmp_path: Path, prepared: Prepared) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 3, "milestones": (1, 2)})
    rows = history(alone(tmp_path / "a", prepared, recipe))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.05, 0.005, 0.0005], rel=1e-12)


@pytest.mark.parametrize(("drop", "sizes"), [(False, [32, 32, 32, 4]), (True, [32, 32, 32])])
def test_last_batch(prepared: Prepared, drop: bool, sizes: list[int]) -> None:
    setting = Setting.of(prepared, VIEWS, current())
    recipe = RECIPE.model_copy(update={"batch_size": 32, "drop_last": drop})
    batches = setting.batches(recipe, 0, 9)
    found = list(batches.epoch(0))
    assert [len(views.label) for views in found] == sizes
    assert len(batches) == len(sizes)
    index = torch.cat([views.index for views in found])
    assert len(index.unique()) == len(index)  # every sample once


@pytest.mark.cpu
def test_dropping_the_only_batch_is_reported_in_one_line(tmp_path: Path, prepared: Prepared) -> None:
    recipe = RECIPE.model_copy(update={"batch_size": 128, "drop_last": True})
    with pytest.raises(ParamsError, match="100 training samples make no batch of 128") as error:
        alone(tmp_path / "a", prepared, recipe)
    one_line(error)


def test_order_and_views_change_with_epoch_and_seed(prepared: Prepared) -> None:
    setting = Setting.of(prepared, VIEWS, current())
    first = next(setting.batches(RECIPE, 0, 9).epoch(0))
    for seed, epoch in ((0, 1), (1, 0)):
        other = next(setting.batches(RECIPE, seed, 9).epoch(epoch))
        assert not torch.equal(first.index, other.index)
    slots = {next(setting.batches(RECIPE, 0, 9).epoch(epoch)).slot.item() for epoch in range(9)}
    assert slots == set(range(1, 10))  # all views before one repeats


@pytest.mark.cpu
def test_all_slots_of_an_endless_space_is_none() -> None:
    space = view_space(VIEWS)
    assert all_slots(space, "all", "x") == 9
    assert all_slots(space, 4, "x") == 4
    assert all_slots(view_space(Plain(space="plain")), "all", "x") == 1
    space.count = None
    assert all_slots(space, "all", "x") is None


# ------------------------------------------------------------------ anchors, best epoch, hold-out


def test_anchors_are_the_weights_at_their_epoch(tmp_path: Path, prepared: Prepared) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 4, "milestones": ()})
    shares = {"anchor_025": 0.25, "anchor_050": 0.5, "anchor_001": 0.01}
    found = kept(alone(tmp_path / "a", prepared, recipe, anchors=shares))
    for name, epochs in (("anchor_025", 1), ("anchor_050", 2), ("anchor_001", 1)):
        short = alone(tmp_path / name, prepared, recipe.model_copy(update={"epochs": epochs}))
        assert found[f"{name}.safetensors"] == kept(short)["last.safetensors"]


def top1_by_hand(folder: Path, name: str, prepared: Prepared, split: str) -> float:
    network, _ = load(folder / "weights", name)
    data, meta = prepared.split(split), prepared.meta
    images = (np.array(data.images, dtype=np.float32) / 255 - meta.mean[0]) / meta.std[0]
    with torch.no_grad():
        predicted = network(torch.from_numpy(images.astype(np.float32))).argmax(1).numpy()
    return float(100 * (predicted == data.labels).mean())


@pytest.mark.parametrize(("share", "split"), [(0.0, "test"), (0.3, "holdout")])
def test_best_epoch_is_picked_on_the_holdout(tmp_path: Path, share: float, split: str) -> None:
    prepared = prepared_data(tmp_path / "toy", samples=160, holdout=share)
    recipe = RECIPE.model_copy(update={"epochs": 4, "learning_rate": 0.1, "milestones": ()})
    scratch = alone(tmp_path / "a", prepared, recipe)
    rows = history(scratch)
    scores = [float(row["top1"]) for row in rows]
    assert scores[-1] == pytest.approx(top1_by_hand(scratch, "last", prepared, split), abs=1e-9)
    assert max(scores) == pytest.approx(top1_by_hand(scratch, "best", prepared, split), abs=1e-9)
    assert json.loads((scratch / "training.json").read_text())["best_epoch"] == 1 + scores.index(max(scores))
    assert len(prepared.split("train")) == 160 * (1 - share)


@pytest.mark.cpu
def test_first_of_equal_epochs_is_the_best(tmp_path: Path) -> None:
    saved: list[str] = []
    training = bare(tmp_path, saved=saved)
    for tops, expected in (([50.0], ["best"]), ([50.0, 50.0], []), ([50.0, 50.0, 51.0], ["best"])):
        saved.clear()
        training._keep([{"top1": top} for top in tops])
        assert saved == expected


# ------------------------------------------------------------------ interrupted and resumed


class CutOffError(Exception):
    """Stands for a killed process."""


def interrupted(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Let the evaluation after `epochs` epochs fail, and every epoch be checkpointed."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    made = Setting.evaluation
    calls = []

    def evaluation(self: Setting, network: Any) -> Callable[[], dict[str, float]]:
        inner = made(self, network)

        def evaluate() -> dict[str, float]:
            calls.append(None)
            if len(calls) > epochs:
                raise CutOffError
            return inner()

        return evaluate

    monkeypatch.setattr(Setting, "evaluation", evaluation)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_that_was_interrupted_ends_alike(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 4, "milestones": (2,)})
    shares = {"anchor_025": 0.25, "anchor_075": 0.75}
    whole = alone(tmp_path / "whole", prepared, recipe, anchors=shares)
    with monkeypatch.context() as patch:
        interrupted(patch, epochs)
        with pytest.raises(CutOffError):
            alone(tmp_path / "cut", prepared, recipe, anchors=shares)
    state = checkpoint.state(tmp_path / "cut/checkpoint.safetensors")
    assert state is not None
    assert len(state["history"]) == epochs
    trained: list[int] = []
    start = Feed.start

    def noted(self: Feed, epoch: int, length: int | None = None) -> None:
        trained.append(epoch)
        start(self, epoch, length)

    monkeypatch.setattr(Feed, "start", noted)
    again = alone(tmp_path / "cut", prepared, recipe, anchors=shares)
    assert trained == list(range(epochs, 4))  # what was done is not done again
    assert kept(again) == kept(whole)
    assert history(again) == history(whole)
    assert not (again / "checkpoint.safetensors").exists()


@pytest.mark.cpu
def test_a_checkpoint_of_something_else_is_not_used(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        with pytest.raises(CutOffError):
            alone(tmp_path / "cut", prepared, seed=8, identity="another")
    assert (tmp_path / "cut/checkpoint.safetensors").exists()
    (tmp_path / "cut/weights/anchor_099.safetensors").touch()
    again, whole = alone(tmp_path / "cut", prepared), alone(tmp_path / "whole", prepared)
    assert kept(again) == kept(whole)  # and nothing of the other one is left


@pytest.mark.cpu
@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_a_damaged_checkpoint_is_not_used(tmp_path: Path, prepared: Prepared, content: bytes | None) -> None:
    path = tmp_path / "cut/checkpoint.safetensors"
    path.parent.mkdir()
    if content is None:  # whole, but without a state
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(DamagedArtifactError):
        checkpoint.state(path)
    assert kept(alone(tmp_path / "cut", prepared)) == kept(alone(tmp_path / "whole", prepared))


def flip(path: Path, share: float) -> None:
    """Flip a bit at a share of a file."""
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 4
    path.write_bytes(content)


FOUR_EPOCHS = RECIPE.model_copy(update={"epochs": 4, "milestones": (2,)})
EARLY = {"anchor_025": 0.25}


@pytest.fixture(scope="module")
def whole_and_cut(tmp_path_factory: pytest.TempPathFactory, prepared: Prepared) -> tuple[Path, Path]:
    """Return a training that has ended, and the same one as it is when it is cut off after three epochs."""
    folder = tmp_path_factory.mktemp("trainings")
    whole = alone(folder / "whole", prepared, FOUR_EPOCHS, anchors=EARLY)
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 3)
        with pytest.raises(CutOffError):
            alone(folder / "cut", prepared, FOUR_EPOCHS, anchors=EARLY)
    return whole, folder / "cut"


@pytest.mark.cpu
@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 1])
@pytest.mark.parametrize("file", ["checkpoint", "weights/best", "weights/anchor_025"])
def test_a_bit_that_changes_before_the_resume_changes_no_result(
    tmp_path: Path,
    prepared: Prepared,
    whole_and_cut: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    file: str,
    share: float,
) -> None:
    whole, cut = whole_and_cut
    again = shutil.copytree(cut, tmp_path / "cut")
    flip(again / f"{file}.safetensors", share)
    capsys.readouterr()
    alone(again, prepared, FOUR_EPOCHS, anchors=EARLY)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"{again} is damaged. Training starts at its beginning." in told
    assert kept(again) == kept(whole)
    assert history(again) == history(whole)


@pytest.mark.cpu
def test_a_lost_anchor_is_made_again(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors = {"anchor_050": 0.5}
    whole = alone(tmp_path / "whole", prepared, anchors=anchors)
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        with pytest.raises(CutOffError):
            alone(tmp_path / "cut", prepared, anchors=anchors)
    (tmp_path / "cut/weights/anchor_050.safetensors").unlink()
    assert kept(alone(tmp_path / "cut", prepared, anchors=anchors)) == kept(whole)


@pytest.mark.cpu
def test_weights_that_change_while_training_runs_are_not_published(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = result.finish

    def late(scratch: Path, *rest: Any) -> None:
        flip(scratch / "weights/best.safetensors", 1)
        finish(scratch, *rest)

    monkeypatch.setattr(result, "finish", late)
    with pytest.raises(DamagedArtifactError, match=r"best\.safetensors is damaged"):
        alone(tmp_path / "a", prepared)
    assert not (tmp_path / "a/training.json").exists()
    monkeypatch.setattr(result, "finish", finish)
    assert kept(alone(tmp_path / "a", prepared)) == kept(alone(tmp_path / "whole", prepared))


def test_momentum_is_restored_in_the_memory_format_of_its_parameter(tmp_path: Path) -> None:
    """One kernel goes through weights, gradients and momentum by address: all three must lie alike."""

    def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
        with seeding.scope("format"):
            network = here(nn.Conv2d(3, 4, 2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        return network, recipe_optimizer(list(network.parameters()), RECIPE, fused=True)

    def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        image = here(torch.randn(2, 3, 8, 8, generator=seeding.generator("image")))
        network(image.to(memory_format=torch.channels_last)).square().mean().backward()
        optimizer.step()

    one, other = trained(), trained()
    step(*one)
    checkpoint.save(tmp_path / "c", {"student": one[0]}, one[1], {})
    checkpoint.restore(tmp_path / "c", {"student": other[0]}, other[1])
    for pair in (one, other):
        step(*pair)
    for expected, found in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(expected, found)


def test_checkpoint_restores_bit_for_bit(tmp_path: Path) -> None:
    def step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        image = here(torch.randn(4, 1, 8, 8, generator=seeding.generator(seed)))
        optimizer.zero_grad()
        network(image).square().sum().backward()
        optimizer.step()

    first, second = here(build(STUDENT, 0)), here(build(STUDENT, 1))
    one, other = (recipe_optimizer(list(n.parameters()), RECIPE) for n in (first, second))
    step(first, one, 1)
    checkpoint.save(tmp_path / "c", {"student": first}, one, {"n": 1})
    checkpoint.restore(tmp_path / "c", {"student": second}, other)
    assert checkpoint.state(tmp_path / "c") == {"n": 1}
    for network, optimizer in ((first, one), (second, other)):
        step(network, optimizer, 2)
    for name, x in first.state_dict().items():
        assert torch.equal(x, second.state_dict()[name]), name


# ------------------------------------------------------------------ phases


class Toy:
    """The mean of squared outputs, times a factor that may go wrong at a step."""

    def __init__(self, network: nn.Module, bad: tuple[int, float] | None = None) -> None:
        self.network, self.bad, self.moments = network, bad, list[tuple[Epoch, int, int]]()
        self.epoch = Epoch("none", 0, 0)

    def start(self, epoch: Epoch) -> None:
        self.epoch = epoch

    def begin(self, slot: int, index: Tensor) -> Callable[[], Taps]:
        return dict

    def __call__(self, views: Views, read: Taps, clock: Clock) -> tuple[Tensor, dict[str, Tensor]]:
        self.moments.append((self.epoch, int(clock.epoch), int(clock.step)))
        good = F.cross_entropy(self.network(views.image), views.label)
        factor = self.bad[1] if self.bad and int(clock.step) == self.bad[0] else 1.0
        return good + 0 * good, {"good": good, "bad": good * factor}


class Parts(nn.Module):
    """A student in three parts; the last part's weight was frozen by whoever built it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.stem2 = nn.Conv2d(3, 3, 1)
        self.classifier = nn.Linear(3, 4)
        self.classifier.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.classifier(self.stem2(self.stem(x)).mean(dim=(2, 3)))
        return found


def bare(scratch: Path, saved: list[str] | None = None, **options: Any) -> Training:
    torch.manual_seed(0)
    network = options.pop("network", None) or here(Parts())
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
    setting: dict[str, Any] = {
        "modules": {"student": network},
        "objective": Toy(network),
        "batches": Batches(
            ResidentImages(here(images), view_space(VIEWS)),
            here(torch.arange(40) % 4),
            9,
            lambda x: x.float() / 255,
            seed=0,
            batch_size=10,
        ),
        "phases": (Phase("main", RECIPE),),
        "evaluate": lambda: {"top1": 1.0},
        "save": (saved if saved is not None else []).append,
        "scratch": scratch,
        "identity": "a",
        "title": "bare",
    }
    return Training(**(setting | options))


def test_phases_follow_each_other_with_their_own_recipes(tmp_path: Path) -> None:
    network = here(Parts())
    toy = Toy(network)
    first = Phase("first", Recipe(epochs=1, learning_rate=0.1, milestones=()))
    none = Phase("none", Recipe(epochs=0))
    second = Phase("second", Recipe(epochs=2, learning_rate=0.2, milestones=(1,)))
    rows = bare(tmp_path, network=network, objective=toy, phases=(first, none, second)).run()
    assert [(row["epoch"], row["phase"]) for row in rows] == [(1, "first"), (2, "second"), (3, "second")]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.1, 0.2, 0.02])
    assert [step for _, _, step in toy.moments] == list(range(12))
    assert [epoch for _, epoch, _ in toy.moments] == [0] * 4 + [0] * 4 + [1] * 4  # within the phase
    assert all(epoch.number == number for epoch, number, _ in toy.moments)


def test_a_phase_in_epochs_goes_before_one_in_iterations(tmp_path: Path) -> None:
    network = here(Parts())
    toy = Toy(network)
    recipe = Recipe(iterations=6, learning_rate=0.2, milestones=(3, 5), warmup=2)
    phases = (Phase("first", recipe.over(1)), Phase("main", recipe))
    rows = bare(tmp_path, network=network, objective=toy, phases=phases).run()
    assert [(row["epoch"], row["phase"]) for row in rows] == [(1, "first"), (2, "main"), (3, "main")]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.2, 0.02, 0.002])  # the last step's
    assert [step for _, _, step in toy.moments] == list(range(4 + 6))
    assert [(epoch.number, epoch.epochs, epoch.before, epoch.after) for epoch, _, _ in toy.moments[::4]] == [
        (0, 1, 0, 2),
        (0, 2, 1, 0),
        (1, 2, 1, 0),
    ]


def test_a_phase_behind_one_in_iterations_counts_the_steps_that_were_taken(tmp_path: Path) -> None:
    """The last epoch before it is cut: its steps are not there, and its number is."""
    network = here(Parts())
    toy = Toy(network)
    recipe = Recipe(iterations=6, milestones=())
    phases = (Phase("main", recipe), Phase("last", recipe.over(1)))
    rows = bare(tmp_path, network=network, objective=toy, phases=phases).run()
    assert [(row["epoch"], row["phase"]) for row in rows] == [(1, "main"), (2, "main"), (3, "last")]
    assert [step for _, _, step in toy.moments] == list(range(6 + 4))


def test_frozen_prefixes_leave_parameters_alone_but_not_statistics(tmp_path: Path) -> None:
    network = here(Parts())
    before = {name: x.clone() for name, x in network.state_dict().items()}
    phase = Phase("first", Recipe(epochs=1, weight_decay=0.1), frozen=("stem.", "classifier.weight"))
    bare(tmp_path, network=network, phases=(phase,)).run()
    same = {name for name, x in network.state_dict().items() if torch.equal(x, before[name])}
    # The BN of a frozen part goes on counting: it is in training mode as everything is.
    assert same == {
        "stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias", "classifier.weight", "classifier.bias",
    }  # fmt: skip
    # The next phase trains them, but not what was frozen from the start.
    network = here(Parts())
    before = {name: x.clone() for name, x in network.state_dict().items()}
    phases = (phase, Phase("second", Recipe(epochs=1)))
    bare(tmp_path, network=network, phases=phases).run()
    same = {name for name, x in network.state_dict().items() if torch.equal(x, before[name])}
    assert same == {"classifier.bias"}


def test_what_a_method_freezes_stays_frozen(tmp_path: Path) -> None:
    network, method = here(Parts()), here(nn.Linear(2, 2))
    method.weight.requires_grad_(False)
    training = bare(tmp_path, network=network, modules={"student": network, "method": method})
    training.run()
    assert not method.weight.requires_grad
    assert method.bias.requires_grad


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_phases_go_on_where_they_were_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    phases = (
        Phase("first", Recipe(epochs=2, learning_rate=0.1), frozen=("stem",)),
        Phase("second", Recipe(epochs=2, learning_rate=0.2, milestones=(1,))),
    )
    networks = [here(Parts()), here(Parts())]
    networks[1].load_state_dict(networks[0].state_dict())
    fresh = here(Parts())
    fresh.load_state_dict(networks[0].state_dict())
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = bare(tmp_path / "a", network=networks[0], phases=phases).run()
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    calls = []

    def evaluate() -> dict[str, float]:
        calls.append(None)
        if len(calls) > epochs:
            raise CutOffError
        return {"top1": 1.0}

    with pytest.raises(CutOffError):
        bare(tmp_path / "b", network=networks[1], phases=phases, evaluate=evaluate).run()
    rows = bare(tmp_path / "b", network=fresh, phases=phases).run()
    for name, x in networks[0].state_dict().items():
        assert torch.equal(x, fresh.state_dict()[name]), name
    for row, expected in zip(rows, whole, strict=True):
        assert {k: v for k, v in row.items() if k not in TIMES} == {
            k: v for k, v in expected.items() if k not in TIMES
        }


# ------------------------------------------------------------------ divergence


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_term_that_is_not_finite_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    network, saved = here(Parts()), list[str]()
    training = bare(tmp_path, saved, network=network, objective=Toy(network, bad=(6, value)))
    with pytest.raises(DivergedError, match=rf"bare: term 'bad' is {value} in epoch 2, step 3\.") as error:
        training.run()
    one_line(error)
    assert "recipe.learning_rate" in str(error.value)
    assert saved == ["best"]
    state = checkpoint.state(tmp_path / "checkpoint.safetensors")
    assert state is not None
    assert len(state["history"]) == 1  # the epoch before it is kept


def test_too_high_a_learning_rate_diverges_in_one_line(tmp_path: Path, prepared: Prepared) -> None:
    recipe = RECIPE.model_copy(update={"learning_rate": 1e30, "milestones": ()})
    with pytest.raises(DivergedError, match=r"alone: term 'ce' is (nan|inf) in epoch 1, step \d") as error:
        alone(tmp_path / "a", prepared, recipe)
    assert isinstance(error.value, StillhouseError)


# ------------------------------------------------------------------ machine, result


def test_bfloat16_is_another_forward_pass_with_a_float32_loss(tmp_path: Path, prepared: Prepared) -> None:
    where = job(tmp_path / "a", machine=machine(str(current().device), "bfloat16"))
    train(where, STUDENT, RECIPE, VIEWS, prepared, 3)
    one, other = history(tmp_path / "a")[0], history(alone(tmp_path / "b", prepared))[0]
    assert one["loss"] != other["loss"]
    assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=0.05)  # eight bits of mantissa
    assert all(x.dtype != torch.bfloat16 for x in load_file(tmp_path / "a/weights/last.safetensors").values())


@pytest.mark.cpu
def test_begin_keeps_what_belongs_to_the_same_training(tmp_path: Path) -> None:
    network = here(Parts())
    weights = result.begin(tmp_path, "a", STUDENT)
    (weights / "best.safetensors").touch()
    state = {"identity": "a", "history": []}
    optimizer = recipe_optimizer(list(network.parameters()), RECIPE)
    checkpoint.save(tmp_path / "checkpoint.safetensors", {"student": network}, optimizer, state)
    assert (result.begin(tmp_path, "a", STUDENT) / "best.safetensors").exists()
    assert not (result.begin(tmp_path, "b", STUDENT) / "best.safetensors").exists()
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.cpu
def test_saved_weights_are_this_networks_spec(tmp_path: Path, prepared: Prepared) -> None:
    scratch = alone(tmp_path / "a", prepared, RECIPE.model_copy(update={"epochs": 0}))
    spec = load(scratch / "weights")[1]
    assert spec == STUDENT


@pytest.mark.cpu
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_training_says_which_files_are_its_own(tmp_path: Path, prepared: Prepared, epochs: int) -> None:
    recipe = RECIPE.model_copy(update={"epochs": epochs})
    scratch = alone(tmp_path / "a", prepared, recipe, anchors={"anchor_050": 0.5})
    summary = json.loads((scratch / "training.json").read_text())
    names = {"init", "last", "best"} | ({"anchor_050"} if epochs else set())
    assert summary["weights"] == {name: file_hash(scratch / f"weights/{name}.safetensors") for name in names}
    assert summary["history"] == (file_hash(scratch / "history.csv") if epochs else None)
