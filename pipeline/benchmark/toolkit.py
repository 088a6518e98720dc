"""The loop of a usual distillation toolkit: what a student costs without a cache and without a graph.

Workers of a DataLoader open, crop, mirror and normalize one image after another by torchvision. The teacher runs beside
the student on every batch, in float32 as torch computes it by default (a GPU's convolutions in TF32). No loss is
read back in a step, which toolkits mostly do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pipeline import seeding
from pipeline.benchmark.plain import PADDING, RATE, kd
from pipeline.benchmark.timing import synchronize

WORKERS = 8  # what toolkits start, if there are as many cores
AHEAD = 2  # batches that a worker makes before they are asked for


class Samples(Dataset[tuple[Tensor, int]]):
    """Images, each transformed when it is asked for.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        # Here, for it takes seconds, and nothing else needs it.
        from torchvision import transforms

        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[2], padding=PADDING),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.3,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(np.moveaxis(self.images[row], 0, -1))
        image: Tensor = self.transform(picture)
        return image, int(self.labels[row])


class Toolkit:
    """Trains a student by a teacher that runs beside it.

    Args:
        student: the network that learns.
        teacher: the network that teaches.
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
        device: where both run.
        batch_size: samples a step.
        workers: processes that transform images; None is `WORKERS`, or one a core.

    Attributes:
        loss: of the last step, float32 ().
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        device: torch.device,
        batch_size: int,
        workers: int | None = None,
    ) -> None:
        self.student, self.teacher = student.to(device).train(), teacher.to(device).eval()
        self.device = device
        self.optimizer = torch.optim.SGD(student.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
        self.loss = torch.zeros(())

        workers = min(WORKERS, os.cpu_count() or 1) if workers is None else workers
        self.loader = DataLoader(
            Samples(images, labels),
            batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            drop_last=True,
            generator=seeding.generator("toolkit"),
            prefetch_factor=AHEAD if workers else None,
            persistent_workers=workers > 0,
        )
        self._ready = AHEAD * workers
        self._coming = self._forever()

    def rate(self, steps: int) -> float:
        """Take so many steps, and return images a second."""
        with _as_torch_comes():
            # What the workers made while nobody waited must not count.
            for _ in range(self._ready):
                self.step(*next(self._coming))
            synchronize(self.device)

            start, samples = time.perf_counter(), 0
            for _ in range(steps):
                image, label = next(self._coming)
                self.step(image, label)
                samples += len(label)
            synchronize(self.device)
            return samples / (time.perf_counter() - start)

    def step(self, image: Tensor, label: Tensor) -> None:
        """Take a step on normalized images (B, 3, H, W) and labels int64 (B,)."""
        image = image.to(self.device, non_blocking=True)
        label = label.to(self.device, non_blocking=True)
        with torch.no_grad():
            taught = self.teacher(image)
        loss = kd(self.student(image), taught, label)

        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        self.loss = loss.detach()

    def _forever(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader


@contextmanager
def _as_torch_comes() -> Iterator[None]:
    """Compute float32 as torch does where nobody has decided: convolutions in TF32, products in full."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = False, True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
