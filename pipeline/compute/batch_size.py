"""How many samples one forward pass without gradients takes, where nobody has said so.

On a GPU a batch must be large: launching its kernels takes Python a millisecond or two, whatever their size. It is
bounded by bytes, because the maps of a network grow with its images.
"""

from __future__ import annotations

import torch

GPU_BYTES = 32 << 20  # of uint8 images: 222 of ImageNet's; the widest maps are 100 to 200 times as large


def bounded(device: torch.device, image_bytes: int, on_cpu: int, on_gpu: int) -> int:
    """Return the samples of one forward pass.

    Args:
        device: where it runs.
        image_bytes: size of an image, uint8.
        on_cpu: what a CPU takes, however large the images are.
        on_gpu: what a GPU takes of small images.
    """
    if device.type == "cpu":
        return on_cpu
    return max(1, min(on_gpu, GPU_BYTES // image_bytes))
