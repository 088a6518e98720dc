"""Classes of unequal sizes: what labels weigh, against scikit-learn and a plain loop, and even draws of an epoch."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from device_fixtures import CPU, current
from error_fixtures import one_line
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from training_fixtures import (
    CLASSES,
    STUDENT,
    VIEWS,
    FixedSource,
    assemble,
    clock,
    job,
    plain_epoch,
    views_of,
)

from pipeline.data.dataset import ArraySplit, DatasetConfig, Source
from pipeline.data.preparation import prepare
from pipeline.data.prepared import Prepared
from pipeline.distillation.schedule import ScheduleConfig, TeacherSchedule
from pipeline.errors import ParamsError, UnknownNameError
from pipeline.networks.network import build
from pipeline.params.base import validate
from pipeline.params.recipe import Recipe
from pipeline.training import balance
from pipeline.training.alone import train
from pipeline.training.distill import Distillation
from pipeline.training.setting import Setting

COUNTS = (5, 40, 11, 2)  # images by class
NAMES = ["0", "1", "2", "3"]
LABELS = np.repeat(np.arange(CLASSES), COUNTS).astype(np.int64)
SEED, EPOCHS, BATCH, RATE = 1, 2, 16, 0.02
RECIPE = Recipe(epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE, milestones=())


def recipe(**settings: Any) -> Recipe:
    return RECIPE.model_copy(update=settings)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Return noise, whose classes have so many images."""
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "toy"
    images = draw.integers(0, 256, (len(LABELS), 1, 8, 8), dtype=np.uint8)
    train = ArraySplit(images, draw.permutation(LABELS))
    source = Source(NAMES, 1, 8, train, ArraySplit(images[:8], np.arange(8, dtype=np.int64) % CLASSES))
    prepare(source, "toy", DatasetConfig(), folder)
    return Prepared.open(folder)


# ------------------------------------------------------------------ weights


def weights(**settings: Any) -> list[float]:
    found = balance.class_weights(recipe(**settings), LABELS, NAMES, "student")
    assert found is not None
    return found.double().tolist()


def test_balanced_weights_are_scikit_learns() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(CLASSES), y=LABELS)
    assert weights(class_weights="balanced") == pytest.approx(expected.tolist(), rel=1e-6)
    assert balance.class_weights(recipe(), LABELS, NAMES, "student") is None


def test_weights_of_classes_keep_their_ratios_and_are_1_on_average() -> None:
    found = weights(class_weights={"1": 4.0, "3": 0.0})
    assert [x / found[0] for x in found] == pytest.approx([1, 4, 1, 0], rel=1e-6)
    assert np.dot(found, COUNTS) / sum(COUNTS) == pytest.approx(1, rel=1e-6)
    # What is drawn evenly is averaged evenly.
    assert np.mean(weights(class_weights={"1": 4.0}, sampling="balanced")) == pytest.approx(1, rel=1e-6)


def test_weights_that_cannot_be_are_one_line() -> None:
    with pytest.raises(UnknownNameError) as unknown:
        weights(class_weights={"cat": 2.0})
    one_line(unknown, "class_weights of student", "cat")
    with pytest.raises(ParamsError) as error:
        weights(class_weights=dict.fromkeys(NAMES, 0.0))
    one_line(error, "class_weights of student are 0 for every image")
    for settings, text in (
        ({"class_weights": "even"}, "'x.class_weights' is 'even'. Input should be 'balanced' or a mapping"),
        ({"class_weights": {"a": -1.0}}, "It weighs class 'a' with -1.0: give 0 or more"),
        ({"class_weights": {"a": math.nan}}, "It weighs class 'a' with nan: give 0 or more, 1e9 at most"),
        ({"class_weights": {"a": math.inf}}, "It weighs class 'a' with inf: give 0 or more"),
        ({"class_weights": {"a": None}}, "It weighs class 'a' with None: give 0 or more"),
        ({"class_weights": {"a": True}}, "It weighs class 'a' with True: give 0 or more"),
        ({"class_weights": {"a": "1e10"}}, "It weighs class 'a' with '1e10': give 0 or more"),
        ({"class_weights": {}}, "It names no class: name one at least, or leave it out"),
        ({"class_weights": {"a": 0.0}}, "All weights are 0"),
        ({"sampling": "even"}, "'x.sampling' is 'even'"),
        ({"class_weights": "balanced", "sampling": "balanced"}, "give one of them"),
    ):
        with pytest.raises(ParamsError) as error:
            validate(Recipe, settings, "x")
        one_line(error, text)


@pytest.mark.usefixtures("device")
def test_a_network_learns_from_weighted_labels_as_a_plain_loop_does(
    tmp_path: Path, prepared: Prepared
) -> None:
    train(job(tmp_path), STUDENT, recipe(class_weights="balanced"), VIEWS, prepared, SEED)
    # Inversely to the counts, with a mean of 1 over all images.
    shares = [len(LABELS) / (CLASSES * count) for count in COUNTS]

    network = build(STUDENT, SEED)
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
    losses = []
    for epoch in range(EPOCHS):
        for image, label in plain_epoch(prepared, SEED, epoch, BATCH):
            optimizer.zero_grad()
            rows = -F.log_softmax(network(image), dim=1)[torch.arange(len(label)), label]
            loss = sum(shares[k] * row for k, row in zip(label.tolist(), rows, strict=True)) / len(label)
            assert isinstance(loss, torch.Tensor)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    with (tmp_path / "history.csv").open(newline="") as file:
        history = [float(row["ce"]) for row in csv.DictReader(file)]
    assert history == pytest.approx(np.reshape(losses, (EPOCHS, -1)).mean(axis=1).tolist(), abs=1e-4)
    found = load_file(tmp_path / "weights/last.safetensors")
    for key, x in network.state_dict().items():
        if x.is_floating_point():  # float32; the normalization and the update round in another order
            torch.testing.assert_close(found[key], x, rtol=1e-4, atol=5e-5)


@pytest.mark.usefixtures("device")
def test_a_distilled_student_weighs_the_term_of_labels_alone() -> None:
    found = assemble("kd")
    batch = found.batch(5)
    of_class = torch.tensor([0.5, 3.0, 1.0, 0.0][: found.context.num_classes], device=current().device)
    made = {
        name: Distillation(
            found.student, found.method, TeacherSchedule(ScheduleConfig(), found.context), None,
            FixedSource(batch.teacher), current(), 0, taps=found.needs.student, class_weights=given,
        ).to(current().device)
        for name, given in (("plain", None), ("weighted", of_class))
    }  # fmt: skip
    _, plain = made["plain"](views_of(batch), {}, clock())
    loss, terms = made["weighted"](views_of(batch), {}, clock())
    rows = F.cross_entropy(found.student(batch.image), batch.label, reduction="none")
    expected = torch.stack([of_class[k] * row for k, row in zip(batch.label, rows, strict=True)]).mean()
    torch.testing.assert_close(terms["ce"], expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(terms["kd"], plain["kd"], rtol=0, atol=0)
    torch.testing.assert_close(loss, 0.1 * expected + 0.9 * plain["kd"], rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------ draws


def test_an_epoch_draws_every_class_and_every_image_of_it_equally_often(prepared: Prepared) -> None:
    batches = Setting.of(prepared, VIEWS, CPU).batches(recipe(sampling="balanced"), SEED, 9)
    plain = Setting.of(prepared, VIEWS, CPU).batches(recipe(), SEED, 9)
    assert (batches.sizes, len(batches)) == (plain.sizes, 4)
    labels = np.asarray(prepared.split("train").labels)
    extra = np.zeros(CLASSES, dtype=np.int64)
    for epoch in range(40):
        rows = torch.cat(batches.parts(epoch)).numpy()
        assert len(rows) == 58
        counts = np.bincount(labels[rows], minlength=CLASSES)
        assert sorted(counts.tolist()) == [14, 14, 15, 15]
        extra += counts - 14
        for label in range(CLASSES):
            times = np.bincount(rows[labels[rows] == label], minlength=len(labels))[labels == label]
            assert times.max() - times.min() <= 1
    assert extra.min() > 8  # of 20 on average: no class is always the one that is drawn once more


def test_draws_depend_on_seed_and_epoch_alone(prepared: Prepared) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Setting.of(prepared, VIEWS, CPU).batches(recipe(sampling="balanced"), seed, 9)
        return torch.cat(batches.parts(epoch)).tolist()

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_evenly_of_fewer_than_there_are_groups() -> None:
    groups = [torch.tensor([k]) for k in range(5)]
    drawn = balance.evenly(groups, 3, torch.Generator().manual_seed(0)).tolist()
    assert len(set(drawn)) == 3


@pytest.mark.usefixtures("device")
def test_a_network_is_trained_on_what_is_drawn(tmp_path: Path, prepared: Prepared) -> None:
    """Of a class of two images it sees as many as of one of forty."""
    train(job(tmp_path), STUDENT, recipe(sampling="balanced", epochs=1), VIEWS, prepared, SEED)
    batches = Setting.of(prepared, VIEWS, current()).batches(recipe(sampling="balanced"), SEED, 9)
    network = build(STUDENT, SEED).to(current().device)
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
    for views in batches.epoch(0):
        optimizer.zero_grad()
        F.cross_entropy(network(views.image), views.label).backward()
        optimizer.step()
    found = load_file(tmp_path / "weights/last.safetensors")
    for key, x in network.state_dict().items():
        torch.testing.assert_close(found[key], x.cpu(), rtol=1e-4, atol=5e-5)
