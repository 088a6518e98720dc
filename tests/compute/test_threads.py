"""Small networks compute with one thread, and threads spin briefly: beside busy neighbors both would stand still."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_fixtures import RECIPE, STUDENT, TEACHER, VIEWS, job, prepared_data

from pipeline.compute import threads
from pipeline.evaluation.cost import macs
from pipeline.networks.network import Network, build
from pipeline.networks.spec import NetworkSpec
from pipeline.params.recipe import Recipe
from pipeline.training.alone import train

MANY = 3


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute with several threads, of which the user has chosen no number."""
    for name in threads.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(MANY)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("family", "network"),
    [("resnet", "resnet20"), ("wrn", "wrn_16_2"), ("vgg", "vgg8"), ("shufflenetv1", "shufflenetv1")],
)
def test_the_count_is_that_of_torchs_counter(family: str, network: str) -> None:
    one = build(NetworkSpec(family=family, network=network, size=32, channels=3, classes=10), 0)
    assert threads.macs(one, torch.zeros(1, 3, 32, 32)) == macs(one, 32, 3)


def test_counting_leaves_a_network_as_it_is() -> None:
    one = build(STUDENT, 0).train()
    before = {name: x.clone() for name, x in one.state_dict().items()}
    threads.macs(one, torch.ones(1, 1, 8, 8))
    assert one.training
    assert all(torch.equal(x, before[name]) for name, x in one.state_dict().items())
    assert not any(module._forward_hooks for module in one.modules())


def number_within(networks: list[Network], image: Tensor, batch_size: int) -> int:
    with threads.suited(networks, lambda: image, batch_size):
        return torch.get_num_threads()


@pytest.mark.usefixtures("many")
def test_small_networks_get_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    image, one, other = torch.zeros(1, 1, 8, 8), build(STUDENT, 0), build(TEACHER, 0)
    both = threads.macs(one, image) + threads.macs(other, image)
    monkeypatch.setattr(threads, "SMALL", 20 * both + 1)
    assert number_within([one, other], image, 20) == 1
    assert number_within([one, other], image, 21) == MANY
    assert number_within([], image, 1) == MANY
    monkeypatch.setattr(threads, "SMALL", 20 * both)
    assert number_within([one, other], image, 20) == MANY


@pytest.mark.usefixtures("many")
def test_the_number_is_restored_even_after_an_error() -> None:
    def fail() -> None:
        with threads.suited([build(STUDENT, 0)], lambda: torch.zeros(1, 1, 8, 8), 1):
            raise ZeroDivisionError(torch.get_num_threads())

    with pytest.raises(ZeroDivisionError, match="1"):
        fail()
    assert torch.get_num_threads() == MANY


@pytest.mark.usefixtures("many")
def test_no_image_is_made_where_networks_alone_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = build(STUDENT, 0)
    compiled.compile()
    for network in (build(STUDENT, 0).to("meta"), compiled):
        with threads.suited([network], lambda: pytest.fail("an image was made"), 1):
            assert torch.get_num_threads() == MANY
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the user's own choice stands
    with threads.suited([build(STUDENT, 0)], lambda: pytest.fail("an image was made"), 1):
        assert torch.get_num_threads() == MANY


@pytest.mark.usefixtures("many")
def test_a_training_chooses_for_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = prepared_data(tmp_path / "data"), []

    def rate(recipe: Recipe, epoch: int) -> float:
        seen.append(torch.get_num_threads())
        return recipe.learning_rate

    monkeypatch.setattr(Recipe, "rate", rate)
    for number, small in enumerate((0, 10**12)):
        monkeypatch.setattr(threads, "SMALL", small)
        train(job(tmp_path / str(number), "threads"), STUDENT, RECIPE, VIEWS, data, 0)
        assert set(seen) == {1 if small else MANY}
        assert torch.get_num_threads() == MANY
        seen.clear()


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_stages_spin_briefly_unless_the_user_has_decided(own: dict[str, str], expected: str) -> None:
    """The setting is made before torch is imported, which is when OpenMP reads it."""
    code = "import sys, os, stages.command; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    clean = {
        key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | own, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [expected, "False"]
