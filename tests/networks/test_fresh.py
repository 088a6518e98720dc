"""Untrained copies of a network: what SLKD teaches with, and what auxiliary heads are made of."""

from __future__ import annotations

import pytest
import torch

from pipeline import seeding
from pipeline.networks.network import build
from pipeline.networks.spec import NetworkSpec


@pytest.mark.parametrize(("family", "network"), [("resnet", "resnet8"), ("vgg", "vgg8"), ("wrn", "wrn_16_1")])
def test_a_fresh_copy_is_the_same_network_untrained(family: str, network: str) -> None:
    spec = NetworkSpec(family=family, network=network, size=8, channels=1, classes=10)
    teacher = build(spec, 0)
    for x in teacher.state_dict().values():
        x.add_(1)  # as if trained: weights and running statistics
    teacher.requires_grad_(False)
    with seeding.scope("copy"):
        copy = teacher.fresh()
    with seeding.scope("copy"):
        again = teacher.fresh()
    new, same, old = copy.state_dict(), again.state_dict(), teacher.state_dict()
    assert new.keys() == old.keys()
    for name, x in new.items():
        assert x.shape == old[name].shape
        assert torch.equal(x, same[name])
        assert not torch.equal(x, old[name])
        if name.endswith("running_var"):
            assert torch.equal(x, torch.ones_like(x))
    assert all(parameter.requires_grad for parameter in copy.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
