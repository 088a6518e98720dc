"""Small networks compute with one thread, and threads spin briefly: beside busy neighbors both would stand still."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device_fixtures import CPU
from training_fixtures import RECIPE, STUDENT, TEACHER, VIEWS, prepared_data

from pipeline.compute import threads
from pipeline.evaluation.cost import macs
from pipeline.networks.network import build
from pipeline.networks.spec import NetworkSpec
from pipeline.training.alone import train


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list of the numbers of threads that are set; the user has chosen none."""
    for name in threads.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    numbers: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    return numbers


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


def test_small_networks_get_one_thread(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    image, one, other = torch.zeros(1, 1, 8, 8), build(STUDENT, 0), build(TEACHER, 0)
    both = threads.macs(one, image) + threads.macs(other, image)
    monkeypatch.setattr(threads, "SMALL", 20 * both + 1)
    threads.suit([one, other], image, 20)
    assert chosen == [1]
    threads.suit([one, other], image, 21)
    threads.suit([], image, 1)
    monkeypatch.setattr(threads, "SMALL", 20 * both)
    threads.suit([one, other], image, 20)
    assert chosen == [1]


def test_the_users_own_choice_stands(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    threads.suit([build(STUDENT, 0)], torch.zeros(1, 1, 8, 8), 1)
    threads.suit([build(STUDENT, 0).to("meta")], torch.zeros(1, 1, 8, 8, device="meta"), 1)
    assert chosen == []


def test_a_training_chooses(tmp_path: Path, chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared_data(tmp_path / "data")
    for number, small in enumerate((0, 10**12)):
        monkeypatch.setattr(threads, "SMALL", small)
        scratch = tmp_path / str(number)
        scratch.mkdir()
        train(scratch, STUDENT, RECIPE, VIEWS, data, 0, CPU, identity="a", title="threads")
    assert chosen == [1]


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
