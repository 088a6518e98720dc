"""How an epoch is cut into batches: no training sees a batch of one sample, in any number of processes."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import CPU
from error_fixtures import one_line
from training_fixtures import CLASSES, PARAMS, RECIPE, STUDENT, VIEWS, World, changed, job, make_world

from pipeline.compute.distributed import Ranks
from pipeline.data.dataset import ArraySplit, DatasetConfig, Source
from pipeline.data.preparation import prepare
from pipeline.data.prepared import Prepared
from pipeline.errors import DataError, ParamsError
from pipeline.networks.network import probe
from pipeline.networks.spec import NetworkSpec
from pipeline.networks.weights import load
from pipeline.params.base import validate
from pipeline.params.recipe import Recipe, cut
from pipeline.params.sections import merged
from pipeline.training.alone import train
from pipeline.training.batches import Batches
from pipeline.training.setting import Setting
from stages import train_copy

SEVENTEEN = RECIPE.model_copy(update={"batch_size": 8})  # two batches, and one sample that is left over


def drawn(
    folder: Path, samples: int = 17, size: int = 4, classes: int = CLASSES, channels: int = 1
) -> Prepared:
    """Prepare noise, of which nothing can be learned."""
    random = np.random.default_rng(0)

    def split(count: int) -> ArraySplit:
        images = random.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
        return ArraySplit(images, np.arange(count, dtype=np.int64) % classes)

    source = Source([str(k) for k in range(classes)], channels, size, split(samples), split(12))
    prepare(source, "toy", DatasetConfig(), folder)
    return Prepared.open(folder)


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def images_seen(folder: Path) -> list[float]:
    """Return how many images each epoch's speed was counted by."""
    return [float(row["images_per_second"]) * float(row["seconds"]) for row in history(folder)]


# ------------------------------------------------------------------ the rule


def test_an_epoch_is_cut_as_ever_but_for_a_sample_left_over() -> None:
    for batch_size in range(2, 10):
        for samples in range(2, 60):
            plain = [len(part) for part in torch.arange(samples).split(batch_size)]
            found = cut(samples, batch_size)
            assert found == (plain if plain[-1] > 1 else [*plain[:-2], batch_size + 1])
            assert min(found) >= 2
            assert sum(found) == samples
            assert cut(samples, batch_size, drop_last=True) == [batch_size] * (samples // batch_size)


def test_no_rank_has_a_batch_of_one_sample() -> None:
    for size in range(2, 6):
        for batch_size in range(2 * size, 4 * size):
            for samples in range(2, 3 * batch_size + 2):
                start = 0
                for count in cut(samples, batch_size):
                    whole = torch.arange(start, start + count)
                    parts = [Ranks(rank, size).part(whole) for rank in range(size)]
                    assert min(map(len, parts)) >= 2
                    # The sum of the ranks' means, by their shares, is the mean over the batch.
                    shares = [Ranks(rank, size).share(count) for rank in range(size)]
                    mean = sum(s * part.double().mean().item() for s, part in zip(shares, parts, strict=True))
                    assert mean == pytest.approx(start + (count - 1) / 2, rel=1e-12)
                    start += count


@pytest.mark.parametrize(
    ("drop", "sizes"), [pytest.param(False, [8, 9], id="kept"), pytest.param(True, [8, 8], id="dropped")]
)
def test_the_sample_joins_the_batch_before_it(tmp_path: Path, drop: bool, sizes: list[int]) -> None:
    setting = Setting.of(drawn(tmp_path / "toy"), VIEWS, CPU)
    batches = setting.batches(SEVENTEEN.model_copy(update={"drop_last": drop}), 0, 9)
    whole = list(setting.batches(SEVENTEEN.model_copy(update={"batch_size": 17}), 0, 9).epoch(3))
    found = list(batches.epoch(3))
    assert [len(views.label) for views in found] == sizes == batches.sizes
    assert len(batches) == 2
    for name in ("index", "label", "image"):  # each sample in its place, under its own view
        joined = torch.cat([getattr(views, name) for views in found])
        assert torch.equal(joined, getattr(whole[0], name)[: sum(sizes)]), name


# ------------------------------------------------------------------ every training, where the last map is one pixel


def test_torchvisions_resnet18_learns_from_17_images_of_32x32_in_batches_of_8(tmp_path: Path) -> None:
    prepared = drawn(tmp_path / "toy", size=32, channels=3)
    spec = NetworkSpec(family="torchvision_resnet", network="resnet18", size=32, channels=3, classes=CLASSES)
    recipe = SEVENTEEN.model_copy(update={"epochs": 1, "learning_rate": 1e-3})
    scratch = tmp_path / "scratch"
    train(job(scratch, "resnet18"), spec, recipe, VIEWS, prepared, 0)
    assert images_seen(scratch) == pytest.approx([17], rel=1e-9)
    network, _ = load(scratch / "weights")
    assert probe(network, 32, 3)["final"] == (512, 1, 1)
    assert network.state_dict()["units.stem.1.num_batches_tracked"].item() == 2


LAYER = {"final": {"kd_layer": {"words": 5}}}
SMALL = merged(
    changed(PARAMS, "distill", [f"pair/{run}" for run in ("kd", "dskd", "layer", "slkd")]),
    {
        "seeds": [0],
        "recipes": {"quick": {"batch_size": 8}},
        "teachers": {"big": {"features": {"final": {"dtype": "float32"}}}},
        "runs": {
            "dskd": {"methods": {"dskd": {"map": "final", "teacher_feature": "final"}}},
            "layer": {"methods": {"kd": {"insert": LAYER}}},
            "slkd": {"methods": "kd", "schedule": "self_learning"},
        },
        "copies": {"copy": {"teacher": "big", "student": "small"}},
    },
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), SMALL, prepare_data=drawn)


def test_a_teacher_and_a_student_alone_learn_from_it(world: World) -> None:
    for folder in (world.path("artifacts/teachers/big"), world.path("artifacts/pretrained/small/0")):
        assert probe(load(folder / "weights")[0], 4, 1)["final"] == (64, 1, 1)
        assert images_seen(folder) == pytest.approx([17, 17], rel=1e-9)


@pytest.mark.parametrize("run", ["kd", "dskd", "layer", "slkd"])
def test_a_distilled_student_learns_from_it(world: World, run: str) -> None:
    """So do what is trained beside it: heads, projectors, a layer that stays, untrained copies of the teacher."""
    folder = world.distill(run, world.inputs(run))
    assert images_seen(folder) == pytest.approx([17, 17], rel=1e-9)


def test_a_self_taught_copy_learns_from_it(world: World) -> None:
    out = world.path("artifacts/copies/big/copy")
    train_copy.main(
        world.path("artifacts/params/copies/copy.json"),
        prepared=world.path("data/prepared"),
        weights=world.path("artifacts/teachers/big/weights"),
        store=world.path("artifacts/features/big.zarr"),
        out=out,
        device="cpu",
    )
    assert images_seen(out) == pytest.approx([17, 17], rel=1e-9)


# ------------------------------------------------------------------ what cannot be cut


def test_one_image_in_all_is_one_line_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only(*arguments: Any, **options: Any) -> Batches:
        made = batches(*arguments, **options)
        return replace(made, labels=made.labels[:1])

    batches = Setting.batches
    monkeypatch.setattr(Setting, "batches", only)
    monkeypatch.setattr(Setting, "evaluation", lambda *_: lambda: pytest.fail("an epoch has ended"))
    prepared = drawn(tmp_path / "toy", samples=2, size=8, classes=2)
    spec = STUDENT.model_copy(update={"classes": 2})
    with pytest.raises(DataError, match="one: the training split has 1 sample, expected 2 or more") as error:
        train(job(tmp_path / "scratch", "one"), spec, RECIPE, VIEWS, prepared, 0)
    one_line(error)
    assert "Add images to the data set, then: dvc repro" in str(error.value)


def test_a_batch_size_of_one_is_one_line() -> None:
    with pytest.raises(ParamsError, match=r"recipe.batch_size' is 1\. Input should be greater") as error:
        validate(Recipe, {"batch_size": 1}, "students.small.recipe")
    one_line(error)


def test_no_epochs_need_no_batch(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 0, "drop_last": True})  # 17 samples make no batch of 20
    scratch = tmp_path / "scratch"
    spec = STUDENT.model_copy(update={"size": 4})
    train(job(scratch, "none"), spec, recipe, VIEWS, drawn(tmp_path / "toy"), 0)
    assert (scratch / "weights/last.safetensors").exists()
