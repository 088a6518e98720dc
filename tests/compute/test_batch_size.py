"""How many samples a forward pass takes where nobody has said so."""

from __future__ import annotations

import pytest
import torch

from pipeline.compute import batch_size


@pytest.mark.parametrize("image_bytes", [64, 3 * 224 * 224, 1 << 40])
def test_a_cpu_takes_what_it_is_given_however_large_images_are(image_bytes: int) -> None:
    assert batch_size.bounded(torch.device("cpu"), image_bytes, 256, 1024) == 256


@pytest.mark.parametrize(
    ("image_bytes", "expected"), [(64, 1024), (3 * 32 * 32, 1024), (3 * 224 * 224, 222), (1 << 40, 1)]
)
def test_a_gpu_takes_more_and_of_large_images_fewer(image_bytes: int, expected: int) -> None:
    """222 images of ImageNet are 32 MiB."""
    assert batch_size.bounded(torch.device("cuda", 1), image_bytes, 256, 1024) == expected
