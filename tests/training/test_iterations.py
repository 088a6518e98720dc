"""Recipes in iterations: a plain loop over steps, milestones within an epoch, a last epoch that is cut, resuming."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from params_fixtures import line_of
from safetensors.torch import load_file
from torch import Tensor
from training_fixtures import RECIPE, STUDENT, TIMES, VIEWS, cut_off_after, job, plain_epoch, prepared_data

from pipeline.data.prepared import Prepared
from pipeline.networks.network import build
from pipeline.params.recipe import Recipe
from pipeline.training import loop
from pipeline.training.alone import train
from pipeline.training.loop import Training

pytestmark = pytest.mark.usefixtures("device")

# 100 images are three batches of 32 and one of 4: two epochs of four steps, and one of two.
STEPS = Recipe(iterations=10, batch_size=32, learning_rate=0.04, milestones=(3, 6), warmup=2)
RATES = [0.02, 0.04, 0.04, 0.004, 0.004, 0.004, 0.0004, 0.0004, 0.0004, 0.0004]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_data(tmp_path_factory.mktemp("data") / "toy")


def alone(scratch: Path, prepared: Prepared, recipe: Recipe = STEPS, **options: Any) -> Path:
    train(job(scratch), STUDENT, recipe, VIEWS, prepared, 3, **options)
    return scratch


def rows(scratch: Path) -> list[dict[str, str]]:
    with (scratch / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def left(scratch: Path) -> dict[str, Any]:
    files = {path.name: path.read_bytes() for path in sorted((scratch / "weights").iterdir())}
    return files | {"history": [{k: v for k, v in row.items() if k not in TIMES} for row in rows(scratch)]}


def test_training_is_a_plain_loop_over_steps(tmp_path: Path, prepared: Prepared) -> None:
    scratch = alone(tmp_path / "a", prepared)
    network = build(STUDENT, 3)
    velocity: dict[str, Tensor] = {}
    losses: list[list[float]] = [[], [], []]
    steps = ((epoch, batch) for epoch in range(3) for batch in plain_epoch(prepared, 3, epoch, 32))
    for rate, (epoch, (image, label)) in zip(RATES, steps, strict=False):
        network.zero_grad()
        loss = F.cross_entropy(network(image), label)
        loss.backward()
        losses[epoch].append(loss.item())
        with torch.no_grad():
            for name, x in network.named_parameters():
                assert x.grad is not None
                step = x.grad + 5e-4 * x
                velocity[name] = 0.9 * velocity[name] + step if name in velocity else step.clone()
                x -= rate * velocity[name]

    found = load_file(scratch / "weights/last.safetensors")
    # float32; the normalization and the update round in another order.
    for name, x in network.state_dict().items():
        torch.testing.assert_close(found[name], x, rtol=1e-4, atol=2e-5, msg=name)
    history = rows(scratch)
    assert [float(row["learning_rate"]) for row in history] == pytest.approx([RATES[3], RATES[7], RATES[9]])
    for row, own in zip(history, losses, strict=True):
        assert float(row["loss"]) == pytest.approx(sum(own) / len(own), abs=1e-4)
    assert [len(own) for own in losses] == [4, 4, 2]


def test_the_rate_changes_with_the_step_after_a_milestone(tmp_path: Path, prepared: Prepared) -> None:
    """A drop one step earlier or later ends elsewhere, by far more than what rounding does."""
    at = {
        milestone: load_file(
            alone(
                tmp_path / str(milestone),
                prepared,
                STEPS.model_copy(update={"milestones": (milestone,), "warmup": 0}),
            )
            / "weights/last.safetensors"
        )["classifier.weight"]
        for milestone in (5, 6, 7)
    }
    assert (at[5] - at[6]).abs().max() > 1e-3
    assert (at[7] - at[6]).abs().max() > 1e-3


def test_whole_epochs_end_alike_whatever_they_are_counted_in(tmp_path: Path, prepared: Prepared) -> None:
    epochs = RECIPE.model_copy(update={"epochs": 3, "milestones": (1, 2), "warmup": 0})
    steps = Recipe(**epochs.model_dump() | {"epochs": None, "iterations": 15, "milestones": (5, 10)})
    one, other = (
        alone(tmp_path / str(n), prepared, recipe, anchors={"anchor_050": 0.5})
        for n, recipe in enumerate((epochs, steps))
    )
    assert left(one) == left(other)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_training_that_was_interrupted_ends_alike(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    whole = alone(tmp_path / "whole", prepared, anchors={"anchor_040": 0.4})
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Training, "_keep", cut_off_after(Training._keep, epochs))
        with pytest.raises(KeyboardInterrupt):
            alone(tmp_path / "cut", prepared, anchors={"anchor_040": 0.4})
    assert left(alone(tmp_path / "cut", prepared, anchors={"anchor_040": 0.4})) == left(whole)


def test_the_speed_of_a_cut_epoch_is_that_of_the_images_it_shows(tmp_path: Path, prepared: Prepared) -> None:
    shown = [
        float(row["images_per_second"]) * float(row["seconds"])
        for row in rows(alone(tmp_path / "a", prepared))
    ]
    assert shown == pytest.approx([100, 100, 64], rel=1e-9)


def test_an_anchor_is_kept_after_the_epoch_nearest_to_its_share_of_the_steps(
    tmp_path: Path, prepared: Prepared
) -> None:
    found = left(alone(tmp_path / "a", prepared, anchors={"anchor_040": 0.4, "anchor_080": 0.8}))
    for name, steps in (("anchor_040", 4), ("anchor_080", 8)):
        short = alone(tmp_path / name, prepared, STEPS.model_copy(update={"iterations": steps}))
        assert found[f"{name}.safetensors"] == left(short)["last.safetensors"]


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("shares", "kept"), [((0.9,), "0.9 after epoch 2 of 2"), ((0.4, 0.5), "0.5 after epoch 1")]
)
def test_anchors_that_only_the_images_show_to_be_one_are_a_line(
    tmp_path: Path, prepared: Prepared, shares: tuple[float, ...], kept: str
) -> None:
    recipe = STEPS.model_copy(update={"iterations": 7 if len(shares) == 1 else 10})
    anchors = {f"anchor_{100 * share:03.0f}": share for share in shares}

    def call() -> object:
        return alone(tmp_path / "a", prepared, recipe, anchors=anchors)

    line = line_of(call)
    assert "anchors of alone are kept" in line
    assert kept in line
