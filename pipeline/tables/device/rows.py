"""The pixels of a stored map as rows on a device: all of them there where they fit, else sent block by block.

Maps go to the device as they are stored and become rows there. Either way rows come in blocks of one size, so a fit
computes the same whether its rows stay on the device or stream through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.tables import pixels as blocks
from pipeline.tables.pixels import Pixels

BLOCK_BYTES = 64 << 20  # of float32 rows: large enough for a GPU to be busy with one
BLOCK_MULTIPLE = 256
RESIDENT_SHARE = 0.6  # of the free memory of a GPU; tiles of distances need the rest


class Rows(NamedTuple):
    """Some pixels, on the device.

    Attributes:
        x: float32 (n, D).
        label: class of each pixel's image, int64 (n,).
        pixel: number of each pixel, int64 (n,): sample * H * W + row * W + column.
    """

    x: Tensor
    label: Tensor
    pixel: Tensor


class DeviceRows:
    """Rows that can be gone through again and again.

    Args:
        read: goes through the rows once, in blocks of any size.
        count: number of rows.
        width: D.
        device: where they go.
        hold: keep them there, if they fit.
        budget: bytes that may be kept; None is a share of the free memory.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[Rows]],
        count: int,
        width: int,
        device: torch.device,
        *,
        hold: bool = True,
        budget: int | None = None,
    ) -> None:
        self.count, self.width, self.device, self.budget = count, width, device, budget
        self._read: Callable[[], Iterable[Rows]] = read
        self._resident: Rows | None = None

        allowed = free_bytes(device) if budget is None else budget
        if hold and blocks.row_bytes(width) * count <= allowed:
            self._resident = self._gathered()
            self._read = tuple  # what it was read from may be large, and is not needed any more

    @classmethod
    def of(cls, pixels: Pixels, device: torch.device, budget: int | None = None) -> DeviceRows:
        """Return the pixels of a stream; they may be mapped afterwards, see `map`.

        Raises:
            ParamsError: the feature holds integers.
            DivergedError: it holds values that are not finite; raised at the end of a pass.
        """
        return cls(lambda: _sent(pixels, device), len(pixels), pixels.channels, device, budget=budget)

    @property
    def resident(self) -> bool:
        """Whether all rows are on the device."""
        return self._resident is not None

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.count

    def __iter__(self) -> Iterator[Rows]:
        """Give blocks of a fixed number of rows; the last one has the rest."""
        size = max(1, BLOCK_BYTES // (4 * self.width * BLOCK_MULTIPLE)) * BLOCK_MULTIPLE
        if self._resident is None:
            yield from _cut(self._read(), size)
        else:
            for start in range(0, self.count, size):
                yield Rows(*(part[start : start + size] for part in self._resident))

    def map(self, function: Callable[[Tensor], Tensor], width: int, *, hold: bool = True) -> DeviceRows:
        """Return the same rows, each gone through `function`, (n, D) to (n, width).

        Args:
            function: of rows.
            width: that it gives.
            hold: keep what it gives, if it fits; else it is computed in each pass.
        """

        def read() -> Iterator[Rows]:
            for x, label, pixel in self:
                yield Rows(function(x), label, pixel)

        return DeviceRows(read, self.count, width, self.device, hold=hold, budget=self.budget)

    def take(self, index: Tensor) -> Tensor:
        """Return the rows at places int64 (m,) as float32 (m, D)."""
        if self._resident is not None:
            return self._resident.x[index]

        # They are picked out as the blocks go by, in ascending order.
        ascending, order = index.sort()
        places, seen = ascending.cpu(), 0
        x = torch.empty(len(index), self.width, device=self.device)
        for block in self:
            borders = torch.tensor([seen, seen + len(block.x)])
            first, last = torch.searchsorted(places, borders).tolist()
            x[order[first:last]] = block.x[ascending[first:last] - seen]
            seen += len(block.x)
        return x

    def labels(self) -> Tensor:
        """Return the labels of all rows, int64 (N,)."""
        if self._resident is not None:
            return self._resident.label
        return torch.cat([block.label for block in self])

    def _gathered(self) -> Rows:
        """Read all rows into one tensor; blocks that are joined afterwards would take twice the memory."""
        whole = Rows(
            torch.empty(self.count, self.width, device=self.device),
            torch.empty(self.count, dtype=torch.int64, device=self.device),
            torch.empty(self.count, dtype=torch.int64, device=self.device),
        )
        start = 0
        for block in self._read():
            stop = start + len(block.x)
            for part, values in zip(whole, block, strict=True):
                part[start:stop] = values
            start = stop
        return whole


class Sender:
    """Sends arrays to a device; to a GPU through page-locked memory, so that the next one is read meanwhile.

    Args:
        device: where they go.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Two, so that one is filled while the other is under way.
        self._buffers = [torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def __call__(self, values: NDArray[Any]) -> Tensor:
        """Return an array as a tensor of the same shape and dtype on the device."""
        plain = torch.from_numpy(np.require(values, requirements=["C", "W"]))
        if self.device.type != "cuda" or plain.numel() == 0:
            return plain.to(self.device)

        turn, self._turn = self._turn, 1 - self._turn
        before = self._copied[turn]
        if before is not None:
            before.synchronize()  # the buffer still goes to the device
        if self._buffers[turn].numel() < plain.nbytes:
            self._buffers[turn] = torch.empty(plain.nbytes, dtype=torch.uint8, pin_memory=True)

        locked = self._buffers[turn][: plain.nbytes].view(plain.dtype).view(plain.shape)
        locked.copy_(plain)
        x = locked.to(self.device, non_blocking=True)
        copied = self._copied[turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        copied.record(torch.cuda.current_stream(self.device))
        return x


def free_bytes(device: torch.device) -> int:
    """Return how many bytes of rows may stay on a device."""
    if device.type != "cuda":
        return blocks.HELD_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds in reserve counts as used there, and is free for us.
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(RESIDENT_SHARE * (free + idle))


def _sent(pixels: Pixels, device: torch.device) -> Iterator[Rows]:
    """Send the maps of a stream and give their pixels; what is not finite is an error once all are sent."""
    send, area = Sender(device), pixels.stream.shape[2] * pixels.stream.shape[3]
    offset, start = torch.arange(area, device=device), 0
    clean = pixels.stream.shape[0]
    # The first sample that is not finite: it is read back once, at the end.
    first = torch.full((), clean, dtype=torch.int64, device=device)

    for values, label in pixels.stream:
        sample = np.arange(start, start + len(values))
        start += len(values)
        if pixels.samples is not None:
            chosen = pixels.samples[sample]
            values, label, sample = values[chosen], label[chosen], sample[chosen]
        pixels.require_floats(values.dtype)
        if len(sample) == 0:
            continue

        maps = send(values)
        numbers, labels = (torch.from_numpy(np.array(part)).to(device) for part in (sample, label))
        finite = maps.flatten(1).isfinite().all(dim=1)
        first = torch.minimum(first, torch.where(finite, clean, numbers).min())

        x = maps.movedim(1, -1).reshape(-1, pixels.channels).float()  # (n H W, C)
        pixel = (numbers[:, None] * area + offset).reshape(-1)
        yield Rows(x, labels[:, None].expand(-1, area).reshape(-1), pixel)

    if int(first) < clean:
        raise pixels.not_finite(int(first))


def _cut(read: Iterable[Rows], size: int) -> Iterator[Rows]:
    """Cut blocks anew, `size` rows each."""
    waiting: list[Rows] = []  # rows that do not fill a block yet
    count = 0
    for block in read:
        start = 0
        while count + len(block.x) - start >= size:
            stop = start + size - count
            yield _joined([*waiting, Rows(*(part[start:stop] for part in block))])
            waiting, count, start = [], 0, stop
        if start < len(block.x):
            waiting.append(Rows(*(part[start:] for part in block)))
            count += len(block.x) - start
    if count:
        yield _joined(waiting)


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Rows(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
