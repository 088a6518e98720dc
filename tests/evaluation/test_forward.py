"""Networks over a split: the same whatever the batch, and on a GPU without a wait between batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current, here
from feature_fixtures import features, network, prepare
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.compute.machine import Machine
from pipeline.data.images import ResidentImages
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.data.views import PlainSpace
from pipeline.evaluation import forward
from pipeline.evaluation.forward import PlainSplit, logits
from pipeline.evaluation.pooling import pooled

META = torch.device("meta")
TAPS = ("stage1", "pooled")


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(tmp_path / "data")


def plain(prepared: Prepared, batch_size: int | None = None) -> PlainSplit:
    meta, device = prepared.meta, current().device
    split = PlainSplit.of(prepared, "train", Normalize(meta.mean, meta.std, device), current())
    return split if batch_size is None else replace(split, batch_size=batch_size)


@pytest.mark.usefixtures("device")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("batch_size", [1, 7, 50, None])
def test_logits_and_pooled_taps_are_the_networks_own(prepared: Prepared, batch_size: int | None) -> None:
    """To 1e-5 of the value and of 1: another batch may sum in another order."""
    one, _ = network()
    images = np.array(prepared.split("train").images)
    expected = {
        name: torch.from_numpy(x)
        for name, x in features(one, images, prepared.meta, dict.fromkeys(("logits", *TAPS))).items()
    }
    one, split = here(one), plain(prepared, batch_size)
    assert torch.allclose(logits(one, split, current()).cpu(), expected["logits"], rtol=1e-5, atol=1e-5)

    rows = torch.tensor([3, 49, 0, 3])
    whole, some = pooled(one, split, TAPS, current()), pooled(one, split, TAPS, current(), rows)
    for name in TAPS:
        mean = expected[name].flatten(2).mean(dim=2) if expected[name].ndim > 2 else expected[name]
        assert torch.allclose(torch.from_numpy(whole[name]), mean, rtol=1e-5, atol=1e-5)
        assert torch.allclose(torch.from_numpy(some[name]), mean[rows], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_cpu_takes_batches_of_500_and_fewer_of_large_images(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plain(prepared).batch_size == 500
    monkeypatch.setattr(forward, "BATCH_BYTES", 40 * 2 * 8 * 8)
    assert plain(prepared).batch_size == 40


class KeepsToItsDevice(TorchDispatchMode):
    """Refuses what leaves a tensor on the CPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            assert not isinstance(x, Tensor) or x.device == META, f"{func} leaves a tensor on the {x.device}"
        return found


def test_no_batch_of_an_evaluation_waits_for_the_one_before() -> None:
    """On the meta device, which has no values to wait for."""
    images = ResidentImages(torch.zeros(30, 2, 8, 8, dtype=torch.uint8, device=META), PlainSpace())
    labels = torch.zeros(30, dtype=torch.int64, device=META)
    split = PlainSplit(images, labels, Normalize((0.5, 0.5), (0.2, 0.2), META), batch_size=8)
    one = network()[0].to(META)
    with KeepsToItsDevice():
        assert logits(one, split, Machine(META)).shape == (30, 10)
