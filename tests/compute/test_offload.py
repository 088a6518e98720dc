"""Copies to the CPU that nobody waits for."""

from __future__ import annotations

import pytest
import torch
from device_fixtures import current, here
from torch import Tensor

from pipeline.compute.offload import HostBuffers, Offload


def batch(number: int) -> dict[str, Tensor]:
    """Return tensors that differ from batch to batch, of other types and sizes."""
    draw = torch.Generator().manual_seed(number)
    maps = torch.randn(5 + number % 3, 4, 3, 3, generator=draw)
    codes = torch.randint(0, 60_000, (5, 7), generator=draw, dtype=torch.int32).to(torch.uint16)
    return {"maps": maps, "half": maps.half(), "codes": codes}


@pytest.mark.usefixtures("device")
def test_batches_arrive_while_the_next_ones_are_begun() -> None:
    """Of three batches under way, each is still whole when it is taken."""
    offload = Offload(current().device, 3)
    given = [batch(number) for number in range(12)]
    begun = [offload.begin({name: here(x) for name, x in given[number].items()}) for number in range(2)]
    for number in range(2, 12):
        begun.append(offload.begin({name: here(x) for name, x in given[number].items()}))
        arrays = begun[number - 2]()
        assert arrays.keys() == given[number - 2].keys()
        for name, x in given[number - 2].items():
            assert torch.equal(torch.from_numpy(arrays[name]), x)
            assert arrays[name].flags.c_contiguous


def test_from_a_cpu_nothing_is_copied() -> None:
    x = torch.zeros(3, 2)
    array = Offload(torch.device("cpu"), 2).begin({"x": x})()["x"]
    array[1, 1] = 7
    assert x[1, 1] == 7


def test_memory_is_used_in_turn_and_grows_with_what_is_asked_of_it() -> None:
    buffers = HostBuffers(2, pinned=False)
    first = buffers.shaped(buffers.next(), "a", torch.zeros(4, 3))
    second = buffers.shaped(buffers.next(), "a", torch.zeros(4, 3))
    assert first.data_ptr() != second.data_ptr()

    turn = buffers.next()
    codes = buffers.shaped(turn, "a", torch.zeros(5, dtype=torch.uint16))
    assert codes.data_ptr() == first.data_ptr()
    assert (codes.shape, codes.dtype) == ((5,), torch.uint16)
    assert buffers.shaped(turn, "b", torch.zeros(4)).data_ptr() != first.data_ptr()

    larger = buffers.shaped(turn, "a", torch.zeros(40, 3))
    assert larger.shape == (40, 3)
    assert buffers.shaped(turn, "a", torch.zeros(4, 3)).data_ptr() == larger.data_ptr()
