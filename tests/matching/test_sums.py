"""What one pass sees of both networks, held to loops."""

from __future__ import annotations

import pytest
import torch
from device_fixtures import current, here
from torch import Tensor

from pipeline import seeding
from pipeline.matching.consistency import Statistics
from pipeline.matching.sums import Sums

pytestmark = pytest.mark.usefixtures("device")


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=seeding.generator("sums", *shape))


@pytest.mark.parametrize("ranges", [1, 3])
@pytest.mark.parametrize("vectors", [False, True])
def test_sums_are_the_loop(ranges: int, vectors: bool) -> None:
    """To 1e-9, of maps and of vectors beside maps; counts exactly."""
    a, b, label = drawn(40, 5, 3, 3), drawn(40, 4, 3, 3), torch.arange(40) * 7 % 6
    if vectors:
        a = a.mean(dim=(2, 3))
    sums = Sums.empty(5, 4, tuple(a.shape[1:]), ranges, 6, "correlation", current().device)
    for part in torch.split(torch.arange(40), 11):
        sums.add(here(a[part]), here(b[part]), here(label[part]), 2)

    flat = a.double() if vectors else a.double().mean(dim=(2, 3))
    for k in range(6):
        torch.testing.assert_close(sums.teacher[k].cpu(), flat[label == k].sum(dim=0), rtol=1e-9, atol=1e-9)
        assert int(sums.counts[k]) == int((label == k).sum())
    pictured = torch.zeros_like(sums.student_map).cpu() if vectors else b[label == 2].double().sum(dim=0)
    torch.testing.assert_close(sums.student_map.cpu(), pictured, rtol=1e-9, atol=1e-9)

    for number, matrix in enumerate(sums.matrices()):
        chosen = label * ranges // 6 == number
        known = Statistics(5, 4, "correlation")
        known.add(flat[chosen], b[chosen].double().mean(dim=(2, 3)))
        torch.testing.assert_close(torch.from_numpy(matrix), known.matrix(), rtol=1e-9, atol=1e-9)
