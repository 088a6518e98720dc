"""Training on mixed samples: labels and gradients against plain loops, stores, ranks, resuming and captured steps."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import CPU, current, here
from feature_fixtures import crop_flip
from graph_fixtures import StandIn
from mixing_fixtures import EITHER, cross_entropy, mixtures
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from training_fixtures import (
    CLASSES,
    PARAMS,
    STUDENT,
    World,
    assemble,
    cut_off_after,
    job,
    make_world,
    watched_features,
)

from pipeline import seeding
from pipeline.compute import graphs
from pipeline.compute.distributed import Ranks
from pipeline.compute.machine import Machine
from pipeline.data.draws import hashed
from pipeline.data.mixing import Mixture
from pipeline.data.prepared import Prepared
from pipeline.data.views import slot_of
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher
from pipeline.networks.network import build
from pipeline.networks.weights import load
from pipeline.params.recipe import Recipe
from pipeline.params.sections import merged
from pipeline.params.views import CropFlip, Plain, Stack
from pipeline.training import alone, assembly, distill, loop
from pipeline.training.balance import label_term
from pipeline.training.batches import Batches, Views
from pipeline.training.loop import Training
from pipeline.training.setting import Setting

pytestmark = pytest.mark.usefixtures("device")

SLOTS = 3
VIEWS = {"crop_flip": {"padding": 1, "flip": False}, "mixup_or_cutmix": {"probability": 0.9}}
SPACE = Stack(space="stack", parts=(CropFlip(space="crop_flip", padding=1, flip=False), EITHER))
WORLD = merged(
    PARAMS,
    {
        "seeds": [0],
        "datasets": {"toy": {"views": VIEWS}},
        "teachers": {"big": {"features": {"logits": {"slots": SLOTS}, "stage2": {"slots": 0}}}},
        "runs": {
            "kd": {"slots": SLOTS},
            "online_kd": {"methods": "kd", "source": "online", "slots": SLOTS},
        },
    },
) | {"distill": ["pair/kd", "pair/online_kd"]}
LEARN = Recipe(epochs=4, batch_size=24, learning_rate=0.05, milestones=(2,))


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), WORLD)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights/last.safetensors")


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def shown(prepared: Prepared, slot: int) -> tuple[Tensor, NDArray[np.int64], NDArray[np.float64]]:
    """Return what a slot shows of every training sample, normalized (N, C, H, W), partners and coefficients."""
    split, meta = prepared.split("train"), prepared.meta
    index = torch.arange(len(split))
    ids = hashed(index, torch.full_like(index, slot), 1, seeding.derive("stack", "crop_flip"))[:, 0] % 9
    own = np.stack([crop_flip(split.images[row], int(ids[row]) if slot else 0, 1, "zero") for row in index])
    found = mixtures(own, slot, EITHER)
    pixels = (found.pixels.astype(np.float64) / 255 - meta.mean[0]) / meta.std[0]
    return torch.from_numpy(pixels).float(), found.partner, found.coefficient


# ------------------------------------------------------------------ the loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_two_labels_and_its_gradient_are_those_of_a_plain_loop(
    smoothing: float, weighted: bool
) -> None:
    random = np.random.default_rng(0)
    logits, of_class = random.normal(0, 3, (11, 5)), random.uniform(0, 3, 5) if weighted else None
    label, partner = random.integers(0, 5, (2, 11))
    coefficient = random.integers(0, 65537, 11) / 65536
    expected, slope = cross_entropy(logits, label, partner, coefficient, smoothing, of_class)

    given = here(torch.from_numpy(logits)).requires_grad_()
    mixture = Mixture(here(torch.from_numpy(partner)), here(torch.from_numpy(coefficient)))
    own, scale = here(torch.from_numpy(label)), None if of_class is None else here(torch.from_numpy(of_class))
    loss = label_term(given, own, smoothing, scale, mixture)
    (gradient,) = torch.autograd.grad(loss, given)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(gradient.cpu().numpy(), slope, rtol=1e-9, atol=1e-12)

    if not smoothing and not weighted:
        batch = replace(assemble("kd").batch(11), label=own, mixture=mixture)
        (gradient,) = torch.autograd.grad(batch.cross_entropy(given), given)
        np.testing.assert_allclose(gradient.cpu().numpy(), slope, rtol=1e-9, atol=1e-12)


def test_labels_that_are_not_mixed_have_the_bits_that_they_had() -> None:
    batch, logits = assemble("kd").batch(9), here(torch.randn(9, CLASSES))
    expected = torch.nn.functional.cross_entropy(logits, batch.label)
    assert torch.equal(batch.cross_entropy(logits), expected)
    assert torch.equal(label_term(logits, batch.label), expected)


# ------------------------------------------------------------------ batches


def batches(prepared: Prepared, space: Any = SPACE, slots: int | None = None, **update: Any) -> Batches:
    recipe = LEARN.model_copy(update={"batch_size": 24})
    return replace(Setting.of(prepared, space, CPU).batches(recipe, 1, slots), **update)


def joined(parts: list[Views]) -> dict[str, Tensor]:
    result = {
        name: torch.cat([getattr(views, name) for views in parts]) for name in ("index", "image", "label")
    }
    for name in ("label", "coefficient"):
        mixed = [getattr(views.mixture, name) for views in parts]
        result[f"mixture.{name}"] = torch.cat(mixed)
    return result


@pytest.mark.parametrize("slots", [SLOTS, None])
def test_batches_hold_the_mixtures_and_their_labels(world: World, slots: int | None) -> None:
    made = batches(world.prepared, slots=slots)
    labels = torch.from_numpy(np.array(world.prepared.split("train").labels))
    for epoch in (0, 4, 1):  # in any order
        found = joined(list(made.epoch(epoch)))
        pixels, partner, coefficient = shown(world.prepared, slot_of(1, epoch, slots))
        rows = found["index"]
        torch.testing.assert_close(found["image"], pixels[rows], rtol=1e-5, atol=1e-5)
        assert torch.equal(found["label"], labels[rows])
        assert torch.equal(found["mixture.label"], labels[torch.from_numpy(partner)[rows]])
        assert torch.equal(found["mixture.coefficient"], torch.from_numpy(coefficient).float()[rows])


def test_ranks_see_parts_of_the_same_mixtures(world: World) -> None:
    whole = list(batches(world.prepared).epoch(2))
    ranks = [list(batches(world.prepared, ranks=Ranks(rank, 2)).epoch(2)) for rank in range(2)]
    for views, *parts in zip(whole, *ranks, strict=True):
        found, expected = joined(parts), joined([views])
        by_rank, alone = found["index"].argsort(), expected["index"].argsort()
        for name, x in expected.items():
            assert torch.equal(found[name][by_rank], x[alone]), name
        # The sum of the ranks' losses, by their shares, is the batch's.
        losses = torch.stack([part.share * loss_of(part) for part in parts])
        torch.testing.assert_close(losses.sum(), loss_of(views), rtol=1e-5, atol=1e-6)


def loss_of(views: Views) -> Tensor:
    """Return the loss of a network that says what some pixels are."""
    logits = views.image.flatten(1)[:, 20 : 20 + CLASSES]
    return label_term(logits, views.label, mixture=views.mixture)


def test_views_that_mix_nothing_have_one_label(world: World) -> None:
    for space, slots in ((Plain(space="plain"), 0), (SPACE, 0), (SPACE.parts[0], 4)):
        for views in batches(world.prepared, space, slots).epoch(0):
            assert views.mixture is None


# ------------------------------------------------------------------ trainings


def test_a_network_alone_learns_from_both_labels(world: World, tmp_path: Path) -> None:
    """Steps so small that the first weights stay: the history is their loss, which a plain loop computes."""
    still = LEARN.model_copy(update={"epochs": 2, "learning_rate": 1e-12, "milestones": ()})
    alone.train(job(tmp_path), STUDENT, still, SPACE, world.prepared, 1)
    labels = np.array(world.prepared.split("train").labels)
    network = build(STUDENT, 1)
    for epoch, row in enumerate(history(tmp_path)):
        pixels, partner, coefficient = shown(world.prepared, slot_of(1, epoch, None))
        losses = []
        for part in batches(world.prepared).parts(epoch):
            rows = part.numpy()
            scores = network(pixels[part]).detach().double().numpy()
            loss, _ = cross_entropy(scores, labels[rows], labels[partner[rows]], coefficient[rows])
            losses.append(loss)
        assert float(row["ce"]) == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_store_holds_what_the_teacher_says_of_the_very_mixture(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched_features(monkeypatch)
    world.distill("watched", world.inputs("kd", recipe=LEARN))
    teacher = Teacher(load(world.path("artifacts/teachers/big/weights"))[0], current())
    for views, features in seen:
        live = teacher.features(views.image, ["logits"], views.label)["logits"]
        # Float32 sums of batches of another size.
        torch.testing.assert_close(features["logits"], live, rtol=1e-4, atol=1e-4)
        assert views.mixture is not None
    assert len(seen) == 4 * 5

    # And the mixture is that of a plain loop: made anew, it is in the store.
    index = np.arange(len(world.prepared.split("train")))
    stored = StoredArray(array_path(world.path("artifacts/features/big.zarr"), "last", "train", "logits"))
    for slot in range(SLOTS + 1):
        pixels, _, _ = shown(world.prepared, slot)
        live = teacher.features(here(pixels), ["logits"], here(torch.from_numpy(index)))["logits"].cpu()
        np.testing.assert_allclose(stored.read(slot, index), live.numpy(), rtol=1e-4, atol=1e-4)


def test_the_gate_compares_mixtures(world: World, tmp_path: Path) -> None:
    from stages import check_features

    check_features.main(
        world.path("artifacts/params/teachers/big/check.json"),
        data=world.path("data/prepared/toy"),
        weights=world.path("artifacts/teachers/big/weights"),
        store=world.path("artifacts/features/big.zarr"),
        out=tmp_path / "check.json",
        summary=tmp_path / "summary.json",
        device=str(current().device),
    )
    assert (tmp_path / "check.json").exists()


def test_cached_and_online_end_in_the_same_weights(world: World) -> None:
    cached, online = (weights(world.distill(run, world.inputs(run))) for run in ("kd", "online_kd"))
    for name, x in cached.items():
        torch.testing.assert_close(x, online[name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_distillation_that_was_interrupted_ends_alike(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = world.inputs("kd", recipe=LEARN)
    whole = world.distill("whole", inputs)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Training, "_keep", cut_off_after(Training._keep, 2))
        with pytest.raises(KeyboardInterrupt):
            world.distill("cut", inputs)
    again = world.distill("cut", inputs)
    for name, x in weights(whole).items():
        assert torch.equal(x, weights(again)[name]), name


def test_captured_steps_end_in_the_bits_of_eager_ones(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if current().device.type == "cpu":
        monkeypatch.setattr(graphs, "Graph", StandIn)

    def trained(name: str, where: Machine) -> dict[str, Tensor]:
        scratch = world.path(f"scratch/{name}")
        inputs = world.inputs("online_kd", recipe=LEARN)
        assembly.train(distill.prepare(inputs, job(scratch, "online_kd", machine=where)))
        return weights(scratch)

    captured = trained("captured", replace(current(), captured=True))
    assert "run eagerly" not in capsys.readouterr().err
    monkeypatch.setattr(Machine, "fused", property(lambda self: True))
    eager = trained("eager", current())
    for name, x in captured.items():
        assert torch.equal(x, eager[name]), name
