"""What a recipe may ask for beside SGD's steps: each setting against torch's own, in a plain loop over batches."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current, here
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_fixtures import (
    STUDENT,
    TIMES,
    VIEWS,
    FixedSource,
    assemble,
    clock,
    cut_off_after,
    job,
    plain_epoch,
    prepared_data,
    views_of,
)

from pipeline.data.prepared import Prepared
from pipeline.distillation.schedule import ScheduleConfig, TeacherSchedule
from pipeline.networks.network import build
from pipeline.params.recipe import Recipe
from pipeline.training import loop
from pipeline.training.alone import train
from pipeline.training.average import Average
from pipeline.training.distill import Distillation
from pipeline.training.loop import Training
from pipeline.training.optimizer import recipe_optimizer, undecayed

pytestmark = pytest.mark.usefixtures("device")

SEED, EPOCHS, BATCH, RATE, DECAY = 3, 3, 32, 0.02, 5e-4
SAME = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": RATE, "weight_decay": DECAY}


@dataclass(frozen=True)
class Case:
    """Settings of a recipe, and what torch calls them."""

    settings: dict[str, Any]
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda x: torch.optim.SGD(
        x, RATE, momentum=0.9, weight_decay=DECAY
    )
    rate: Callable[[torch.optim.Optimizer], LRScheduler] = lambda x: MultiStepLR(x, [2], 0.1)
    loss: nn.Module = field(default_factory=nn.CrossEntropyLoss)
    clip: float | None = None
    ema: float | None = None
    free: tuple[str, ...] = ()  # ends of the names of parameters without weight decay

    @property
    def recipe(self) -> Recipe:
        steps = {} if self.settings.get("schedule") == "cosine" else {"milestones": (2,)}
        return Recipe(**{**SAME, **steps, **self.settings})


ADAMW = {"optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}
CASES = {
    "adamw": Case(ADAMW, lambda x: torch.optim.AdamW(x, 2e-3, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)),
    "cosine": Case(
        {"schedule": "cosine", "final": 0.1}, rate=lambda x: CosineAnnealingLR(x, EPOCHS, eta_min=0.1 * RATE)
    ),
    "smoothed": Case({"label_smoothing": 0.2}, loss=nn.CrossEntropyLoss(label_smoothing=0.2)),
    "clipped": Case({"clip": 0.4}, clip=0.4),
    "averaged": Case({"ema": 0.8}, ema=0.8),
    "biases": Case({"undecayed": ("bias",), "weight_decay": 0.5}, free=("bias",)),
    "all": Case(
        {
            **ADAMW,
            "eps": 0.02,  # clipped gradients are small, and what rounding changes in them is not to be scaled up
            "schedule": "cosine",
            "label_smoothing": 0.1,
            "clip": 0.5,
            "ema": 0.7,
            "undecayed": ("bias", "norm"),
        },
        lambda x: torch.optim.AdamW(x, 2e-3, betas=(0.8, 0.95), eps=0.02, weight_decay=0.1),
        lambda x: CosineAnnealingLR(x, EPOCHS),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        0.5,
        0.7,
        ("bias", "norm"),
    ),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_data(tmp_path_factory.mktemp("data") / "toy")


def alone(scratch: Path, prepared: Prepared, recipe: Recipe, **options: Any) -> Path:
    train(job(scratch), STUDENT, recipe, VIEWS, prepared, SEED, **options)
    return scratch


def rows(scratch: Path) -> list[dict[str, str]]:
    with (scratch / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def left(scratch: Path) -> dict[str, Any]:
    files = {path.name: path.read_bytes() for path in sorted((scratch / "weights").iterdir())}
    return files | {"history": [{k: v for k, v in row.items() if k not in TIMES} for row in rows(scratch)]}


def groups(network: nn.Module, case: Case) -> list[dict[str, Any]]:
    """Return parameters with and without weight decay, told apart by name and shape alone."""
    free = [
        name
        for name, x in network.named_parameters()
        if ("bias" in case.free and name.endswith(".bias")) or ("norm" in case.free and x.ndim == 1)
    ]
    named = dict(network.named_parameters())
    return [
        {"params": [x for name, x in named.items() if name not in free]},
        {"params": [named[name] for name in free], "weight_decay": 0.0},
    ]


def top1(network: nn.Module, prepared: Prepared) -> float:
    split, meta = prepared.split("test"), prepared.meta
    pixels = np.stack([split.images[i] for i in range(len(split))]).astype(np.float64)
    images = (pixels / 255 - meta.mean[0]) / meta.std[0]
    network.eval()
    with torch.no_grad():
        found = network(torch.tensor(images, dtype=torch.float32)).argmax(1)
    return 100 * float((found == torch.tensor(np.array(split.labels))).double().mean())


@pytest.mark.parametrize("name", CASES)
def test_a_setting_is_torchs_own(tmp_path: Path, prepared: Prepared, name: str) -> None:
    case = CASES[name]
    scratch = alone(tmp_path / "a", prepared, case.recipe)

    network = build(STUDENT, SEED)
    decay = case.recipe.weight_decay
    optimizer = case.optimizer(groups(network, case))
    optimizer.param_groups[0]["weight_decay"] = decay
    rate = case.rate(optimizer)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(case.ema or 0.0), use_buffers=True)
    average.update_parameters(network)  # the first time it copies
    rates, tops, losses = [], [], []
    for epoch in range(EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        network.train()
        for image, label in plain_epoch(prepared, SEED, epoch, BATCH):
            optimizer.zero_grad()
            loss = case.loss(network(image), label)
            loss.backward()
            if case.clip is not None:
                clip_grad_norm_(network.parameters(), case.clip)
            optimizer.step()
            average.update_parameters(network)
            losses.append(loss.item())
        rate.step()
        tops.append(top1(average.module if case.ema else network, prepared))

    history, found = rows(scratch), load_file(scratch / "weights/last.safetensors")
    assert [float(row["learning_rate"]) for row in history] == pytest.approx(rates, rel=1e-9)
    assert [float(row["top1"]) for row in history] == pytest.approx(tops, abs=1e-9)
    batches = len(losses) // EPOCHS
    for epoch, row in enumerate(history):
        own = losses[epoch * batches : (epoch + 1) * batches]
        assert float(row["ce"]) == pytest.approx(sum(own) / batches, abs=1e-4)

    # float32; the normalization and the update round in another order.
    expected = average.module.state_dict() if case.ema else network.state_dict()
    for key, x in expected.items():
        if x.is_floating_point():
            torch.testing.assert_close(
                found[key], x, rtol=1e-4, atol=5e-5, msg=lambda m, key=key: f"{key}: {m}"
            )
        else:
            assert int(found[key]) == EPOCHS * batches


@pytest.mark.parametrize("name", CASES)
def test_each_setting_matters(tmp_path: Path, prepared: Prepared, name: str) -> None:
    """What the comparison above rests on: without it the weights are others, by far more than the tolerance."""
    recipe = CASES[name].recipe
    decay = recipe.weight_decay if name == "biases" else DECAY
    plain = Recipe(**{**SAME, "milestones": (2,), "weight_decay": decay})
    one, other = (
        load_file(alone(tmp_path / str(n), prepared, each) / "weights/last.safetensors")
        for n, each in enumerate((recipe, plain))
    )
    assert max(float((one[key] - other[key]).abs().max()) for key in one if key.endswith("weight")) > 2e-3


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_training_that_was_interrupted_ends_alike(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, name: str, epochs: int
) -> None:
    recipe, options = CASES[name].recipe, {"anchors": {"anchor_030": 0.3, "anchor_070": 0.7}}
    whole = alone(tmp_path / "whole", prepared, recipe, **options)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Training, "_keep", cut_off_after(Training._keep, epochs))
        with pytest.raises(KeyboardInterrupt):
            alone(tmp_path / "cut", prepared, recipe, **options)
    assert left(alone(tmp_path / "cut", prepared, recipe, **options)) == left(whole)


def test_the_cosine_goes_over_steps_and_begins_after_the_warm_up() -> None:
    recipe = Recipe(iterations=20, learning_rate=0.3, schedule="cosine", final=0.05, warmup=4)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.3)
    cosine = CosineAnnealingLR(optimizer, 16, eta_min=0.05 * 0.3)
    expected = []
    for _ in range(16):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    found = [rate for epoch in range(3) for rate in recipe.rates(epoch, 7)]
    assert found[:4] == pytest.approx([0.075, 0.15, 0.225, 0.3])
    assert found[4:] == pytest.approx(expected, rel=1e-9)

    whole = Recipe(epochs=4, learning_rate=0.3, schedule="cosine", warmup=4)
    assert [whole.rate(done) for done in range(4)] == pytest.approx([0.075, 0.15, 0.225, 0.3])


def test_a_share_of_a_cosine_is_a_shorter_one_and_a_first_phase_is_constant() -> None:
    recipe = Recipe(epochs=10, learning_rate=0.3, schedule="cosine", final=0.5, warmup=2, ema=0.9)
    short = recipe.shortened(0.5)
    assert (short.epochs, short.warmup, short.schedule, short.final) == (5, 1, "cosine", 0.5)
    first = recipe.over(4)
    assert [first.rate(done) for done in range(4)] == pytest.approx([0.15, 0.3, 0.3, 0.3])
    assert first.ema == 0.9


class Layers(nn.Module):
    """Norms of several kinds, under names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.BatchNorm2d(4)
        self.c = nn.GroupNorm(2, 4)
        self.d = nn.LayerNorm(4)
        self.e = nn.RMSNorm(4)
        self.f = nn.InstanceNorm2d(4, affine=True)
        self.g = nn.Linear(4, 2)
        self.token = nn.Parameter(torch.zeros(4))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((), ""),
        (("bias",), "a.bias b.bias c.bias d.bias f.bias g.bias"),
        (("norm",), "b.weight b.bias c.weight c.bias d.weight d.bias e.weight f.weight f.bias"),
        (("bias", "norm"), "a.bias b.weight b.bias c.weight c.bias d.weight d.bias e.weight f.weight f.bias g.bias"),
    ],
)  # fmt: skip
def test_what_has_no_weight_decay(kinds: tuple[str, ...], expected: str) -> None:
    network = here(Layers())
    found = undecayed([network], kinds)
    names = {id(x): name for name, x in network.named_parameters()}
    assert {names[key] for key in found} == set(expected.split())

    recipe = Recipe(weight_decay=0.25, undecayed=kinds)
    optimizer = recipe_optimizer(list(network.parameters()), recipe, undecayed=found)
    assert len(optimizer.param_groups) == (2 if kinds else 1)
    decay = {names[id(x)]: group["weight_decay"] for group in optimizer.param_groups for x in group["params"]}
    assert decay == {name: 0.0 if name in expected.split() else 0.25 for name in decay}
    assert len(decay) == len(names)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_smoothing_of_a_distilled_student_is_of_the_term_ce_alone(smoothing: float) -> None:
    found = assemble("kd")
    batch = found.batch()
    schedule = TeacherSchedule(ScheduleConfig(), found.context)
    source = FixedSource(dict(batch.teacher))
    objective = Distillation(
        found.student,
        found.method,
        schedule,
        None,
        source,
        current(),
        0,
        taps=("logits",),
        smoothing=smoothing,
    )
    loss, terms = objective(views_of(batch), {}, clock())

    with torch.no_grad():
        logits = found.student(batch.image)
    ce = nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, batch.label)
    q, p = (torch.log_softmax(x / 4, dim=1) for x in (logits, batch.teacher["logits"]))
    kd = 16 * (p.exp() * (p - q)).sum(dim=1).mean()
    torch.testing.assert_close(terms["ce"].detach(), ce)
    torch.testing.assert_close(terms["kd"].detach(), kd)
    torch.testing.assert_close(loss.detach(), 0.1 * ce + 0.9 * kd)


def test_a_module_that_stands_in_several_places_is_averaged_once() -> None:
    shared = nn.Linear(1, 1, bias=False)
    network = nn.ModuleList([shared, shared, shared])
    average = Average(network, 0.5)
    before = shared.weight.item()
    with torch.no_grad():
        shared.weight += 1.0
    average.update()
    assert average.network[0].weight.item() == pytest.approx(before + 0.5)
