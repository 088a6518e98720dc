"""torch without its compiler: the same steps, and no import of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim import SGD

from pipeline import seeding
from pipeline.compute.eager import EagerSGD


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_torchs_bit_for_bit(nesterov: bool) -> None:
    ends = []
    for optimizer_class in (SGD, EagerSGD):
        with seeding.scope("eager"):
            network = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
        optimizer = optimizer_class(
            network.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=5e-4
        )
        for number in range(4):
            optimizer.zero_grad(set_to_none=True)
            network(torch.randn(6, 5, generator=seeding.generator(number))).square().mean().backward()
            optimizer.step()
        assert all(x.requires_grad for x in network.parameters())
        ends.append([*network.parameters(), *(x["momentum_buffer"] for x in optimizer.state.values())])
    assert len(ends[0]) == len(ends[1]) == 12
    for expected, found in zip(*ends, strict=True):
        assert torch.equal(expected, found)


def test_training_and_counting_import_no_compiler() -> None:
    code = """
import sys, torch
from pipeline.compute.eager import EagerSGD
from pipeline.evaluation.cost import macs
network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
optimizer = EagerSGD(network.parameters(), lr=0.1, momentum=0.9)
network(torch.ones(2, 3, 8, 8)).sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
print(macs(network, 8, 3), "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"{3 * 9 * 4 * 36} False\n", done.stderr
