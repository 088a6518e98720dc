"""Views of several spaces, in a whole project: the teacher of a store has seen what the student sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current
from graph_fixtures import StandIn
from safetensors.torch import load_file
from torch import Tensor
from training_fixtures import PARAMS, World, job, make_world, watched_features

from pipeline.compute import graphs
from pipeline.compute.machine import Machine
from pipeline.data.views import view_ids, view_space
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher
from pipeline.networks.weights import load
from pipeline.params.recipe import Recipe
from pipeline.params.sections import merged
from pipeline.params.views import Stack
from pipeline.training import assembly, distill

pytestmark = pytest.mark.usefixtures("device")

SLOTS = 3
VIEWS = {
    "crop_flip": {"padding": 1, "flip": False},
    "color_jitter": {"saturation": 0.0},
    "rand_augment": {"magnitude": 5},
    "random_erasing": {"fill": "noise"},
}
WORLD = merged(
    PARAMS,
    {
        "seeds": [0],
        "datasets": {"toy": {"views": VIEWS}},
        "teachers": {"big": {"features": {"logits": {"slots": SLOTS}, "stage2": {"slots": 0}}}},
        "runs": {
            "kd": {"slots": SLOTS},
            "online_kd": {"methods": "kd", "source": "online", "slots": SLOTS},
            "own": {"methods": "kd", "source": "online", "views": {"random_erasing": {"probability": 1.0}}},
        },
    },
) | {"distill": ["pair/kd", "pair/online_kd", "pair/own"]}
LEARN = Recipe(epochs=4, batch_size=24, learning_rate=0.05, milestones=(2,))


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), WORLD)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights/last.safetensors")


def test_the_store_holds_what_the_teacher_says_of_the_very_picture(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = world.inputs("kd", recipe=LEARN)
    assert isinstance(inputs.views, Stack)
    seen = watched_features(monkeypatch)
    world.distill("watched", inputs)
    teacher = Teacher(load(world.path("artifacts/teachers/big/weights"))[0], current())
    for views, features in seen:
        live = teacher.features(views.image, ["logits"], views.label)["logits"]
        # Float32 sums of batches of another size.
        torch.testing.assert_close(features["logits"], live, rtol=1e-4, atol=1e-4)
    assert len(seen) == 4 * 5

    # And the picture is that of slot and sample alone: made anew, it is in the store.
    split, meta = world.prepared.split("train"), world.prepared.meta
    index = torch.arange(len(split))
    images = torch.from_numpy(np.stack([split.images[i] for i in range(len(split))]))
    stored = StoredArray(array_path(world.path("artifacts/features/big.zarr"), "last", "train", "logits"))
    space = view_space(inputs.views)
    for slot in range(SLOTS + 1):
        shown = space.apply(images, view_ids(space, slot, index), index).float() / 255
        normal = (shown - torch.tensor(meta.mean).view(-1, 1, 1)) / torch.tensor(meta.std).view(-1, 1, 1)
        live = teacher.features(normal.float().to(current().device), ["logits"], index)["logits"].cpu()
        np.testing.assert_allclose(stored.read(slot, index.numpy()), live.numpy(), rtol=1e-4, atol=1e-4)


def test_cached_and_online_end_in_the_same_weights(world: World) -> None:
    cached, online = (weights(world.distill(run, world.inputs(run))) for run in ("kd", "online_kd"))
    for name, x in cached.items():
        torch.testing.assert_close(x, online[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("run", ["kd", "own"])
def test_captured_steps_end_in_the_bits_of_eager_ones(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: Any, run: str
) -> None:
    if current().device.type == "cpu":
        monkeypatch.setattr(graphs, "Graph", StandIn)

    def trained(name: str, where: Machine) -> dict[str, Tensor]:
        scratch = world.path(f"scratch/{name}-{run}")
        inputs = world.inputs(run, recipe=LEARN)
        assembly.train(distill.prepare(inputs, job(scratch, run, machine=where)))
        return weights(scratch)

    captured = trained("captured", replace(current(), captured=True))
    assert "run eagerly" not in capsys.readouterr().err
    monkeypatch.setattr(Machine, "fused", property(lambda self: True))
    eager = trained("eager", current())
    for name, x in captured.items():
        assert torch.equal(x, eager[name]), name
