"""Stored features of ranges, on a device: the store's own values, the next range read ahead for a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current
from feature_fixtures import make_array

from pipeline.features.ranges import StoredRanges
from pipeline.features.store import StoredArray

ASKED = [(0, 16), (16, 32), (32, 41), (0, 16), (5, 9), (9, 13), (20, 21)]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", ["float16", "float32", "uint16"])
def test_ranges_are_those_of_the_store(tmp_path: Path, dtype: str) -> None:
    values = (1000 * np.random.default_rng(0).random((2, 41, 3, 2))).astype(dtype)
    ranges = StoredRanges(StoredArray(make_array(tmp_path / "t.zarr", values, 300)), 1, current().device)
    for start, stop in ASKED:
        found = ranges.take(start, stop)
        assert found.device.type == current().device.type
        np.testing.assert_array_equal(found.cpu().numpy(), values[1, start:stop])


def test_the_next_range_is_read_while_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for a GPU; nothing is read twice, nor beyond the end."""
    begun: list[tuple[int, int]] = []
    begin = StoredArray.begin_range

    def noted(self: StoredArray, slot: int, start: int, stop: int) -> Any:
        begun.append((start, stop))
        return begin(self, slot, start, stop)

    monkeypatch.setattr(StoredArray, "begin_range", noted)
    values = np.zeros((1, 41, 3), np.float32)
    array = StoredArray(make_array(tmp_path / "t.zarr", values))
    ranges = StoredRanges(array, 0, torch.device("meta"))
    for number, start in enumerate(range(0, 41, 16)):
        assert ranges.take(start, min(start + 16, 41)).shape[0] == min(16, 41 - start)
        assert begun == [(0, 16), (16, 32), (32, 41)][: number + 2]
