"""A student's KD step as short as torch alone can write it: what the project's own loop is measured against on a GPU.

Images, labels and one slot of logits lie on the device, crops and flips are drawn there, and the step is one CUDA
graph: SGD fused, its learning rate a tensor. It has no store, no checkpoints and no history, and it computes in the
precision of the machine beside it. On a CPU the same step runs eagerly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import seeding
from pipeline.compute.graphs import side_stream
from pipeline.compute.machine import Machine

PADDING = 4  # of the crops, in pixels
WARM = 3  # steps before the capture: they choose kernels and make the momentum
LABELS, TEACHER, TEMPERATURE = 0.1, 0.9, 4.0  # of the loss
RATE = 1e-4  # small, for the labels are random


class PlainLoop:
    """Trains a student from logits that lie beside its images.

    Args:
        network: the student.
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        logits: the teacher's (N, K).
        machine: where it runs.
        batch_size: samples a step; an epoch has no last batch that is smaller.

    Attributes:
        loss: of the last step, float32 ().
        index: samples of the step, int64 (B,).
        corner: top and left edge of each crop in its padded image, int64 (2, B).
        flip: which crops are mirrored, int64 (B,).
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        logits: Tensor,
        machine: Machine,
        batch_size: int,
    ) -> None:
        device = machine.device
        self.images = F.pad(images, (PADDING,) * 4).to(device)
        self.labels, self.logits = labels.to(device), logits.to(device)
        self.machine, self.network = machine, network.train()
        machine.place(network)
        fused = device.type == "cuda"
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            torch.tensor(RATE, device=device) if fused else RATE,
            momentum=0.9,
            weight_decay=5e-4,
            fused=fused,
        )

        self.loss = torch.zeros((), device=device)
        self.index, self.flip = torch.zeros(2, batch_size, dtype=torch.int64, device=device)
        self.corner = torch.zeros(2, batch_size, dtype=torch.int64, device=device)
        self._draw = seeding.generator("plain", device=device)
        self._side = torch.arange(images.shape[3], device=device)
        self._channels = torch.arange(images.shape[1], device=device)[:, None, None]
        self._take: Callable[[], object] = self.step
        if fused:
            # Streams and graphs are made on the current device, which need not be the machine's.
            with torch.cuda.device(device):
                self._take = self._captured()

    def epoch(self) -> int:
        """Take an epoch's steps, and return how many samples they saw."""
        batches = self._batches()
        for index in batches:
            self._fill(index)
            self._take()
        return len(batches) * len(self.index)

    def step(self) -> None:
        """Take the step of the samples that `index` names."""
        image = self.views().float().sub(127.5).div(76.5)
        if self.machine.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with self.machine.autocast():
            out = self.network(image)
        loss = kd(
            out.float(), self.logits.index_select(0, self.index), self.labels.index_select(0, self.index)
        )

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def views(self) -> Tensor:
        """Return the crops uint8 (B, C, H, W) that `index`, `corner` and `flip` name."""
        size = len(self._side)
        columns = torch.where(self.flip[:, None] > 0, size - 1 - self._side, self._side)
        down = (self.corner[0][:, None] + self._side)[:, None, :, None]  # (B, 1, H, 1)
        right = (self.corner[1][:, None] + columns)[:, None, None, :]  # (B, 1, 1, W)
        return self.images[self.index[:, None, None, None], self._channels, down, right]

    def _batches(self) -> list[Tensor]:
        order = torch.randperm(len(self.labels), generator=self._draw, device=self._draw.device)
        size = len(self.index)
        return list(torch.split(order[: len(order) // size * size], size))

    def _fill(self, index: Tensor) -> None:
        """Draw the views of a batch into the tensors that the step reads."""
        self.index.copy_(index)
        self.corner.random_(0, 2 * PADDING + 1, generator=self._draw)
        self.flip.random_(0, 2, generator=self._draw)

    def _captured(self) -> Callable[[], None]:
        """Take a few steps, and return what repeats one as a CUDA graph."""
        with side_stream(self.machine.device):
            for _ in range(WARM):
                self._fill(self._batches()[0])
                self.step()

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay


def kd(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Return the loss of KD, as toolkits write it.

    Args:
        student: logits (B, K).
        teacher: logits (B, K), of any precision.
        label: int64 (B,).
    """
    learned = F.log_softmax(student / TEMPERATURE, dim=1)
    given = F.softmax(teacher.float() / TEMPERATURE, dim=1)
    divergence = TEMPERATURE**2 * F.kl_div(learned, given, reduction="batchmean")
    return LABELS * F.cross_entropy(student, label) + TEACHER * divergence
