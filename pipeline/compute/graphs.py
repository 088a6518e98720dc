"""Work that a GPU repeats as one CUDA graph, in branches that run at the same time.

A graph repeats the kernels that were launched while it was captured, with the same addresses and the same numbers.
So what is captured must be a function of tensors on the device: `Watch` says whether it is, while it runs once as
usual. Branches are independent of each other and computed side by side, with the bits that each has alone.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.compute import streams
from pipeline.compute.eager import keep_out

Work = Callable[[], None]
# Operations that return a value to Python, or a shape that depends on values.
READING = frozenset(
    {"_linalg_check_errors", "_local_scalar_dense", "_unique", "_unique2", "bincount", "equal", "is_nonzero",
     "masked_select", "nonzero", "repeat_interleave", "unique_consecutive", "unique_dim"}
)  # fmt: skip


class Graph:
    """A captured graph; its memory is its own until it is dropped.

    Args:
        branches: what each branch does. It is recorded, and not done.

    Raises:
        RuntimeError: it cannot be captured; what is current and the allocator are as before.
    """

    def __init__(self, branches: Sequence[Work]) -> None:
        # What waits to be collected may hold a step's autograd graph, and that the stream on which Python took it.
        gc.collect()
        self._graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        device = torch.device("cuda", torch.cuda.current_device())
        sides = [_stream(device, number) for number in range(1, len(branches))]
        # Entered twice: torch would leave the stream of a capture that fails the current one.
        with torch.cuda.stream(torch.cuda.current_stream()):
            try:
                # Other threads may go on: those that decode images pin memory meanwhile.
                with torch.cuda.graph(self._graph, pool, capture_error_mode="thread_local"):
                    _record(branches, sides)
            except BaseException:
                _give_up(pool)
                raise

    def replay(self) -> None:
        """Do what was captured."""
        self._graph.replay()


def _record(branches: Sequence[Work], sides: Sequence[torch.cuda.Stream]) -> None:
    """Do the first branch on the stream that is captured, and each of the others on one of `sides`."""
    main, begun = torch.cuda.current_stream(), streams.event()
    begun.record(main)
    branches[0]()
    for side, work in zip(sides, branches[1:], strict=True):
        side.wait_event(begun)
        with torch.cuda.stream(side):
            work()

    # Only now: an event that is recorded before a later branch begins would order the two.
    for side in sides:
        main.wait_stream(side)


def _give_up(pool: tuple[int, int]) -> None:
    """Undo what a capture that has failed leaves behind: torch's allocator and generator believe that it goes on.

    Without it the memory that was given out stays taken, no other graph can be captured, and no number drawn.
    """
    device = torch.cuda.current_device()
    with suppress(RuntimeError):  # it failed after its end, and nothing is left
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)

    # The generator of some versions comes back with a capture that ends well.
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
        torch.zeros(1, device="cuda")


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Compute on a stream of its own inside the block: what is to be captured must not have run on the default one."""
    if device.type != "cuda":
        yield
        return
    side, before = _stream(device, 0), torch.cuda.current_stream(device)
    side.wait_stream(before)
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        before.wait_stream(side)


@functools.cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """Return a stream, the same one each time: cuBLAS and the allocator keep memory for each that they have seen."""
    return streams.stream(device)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Notes the first thing that ties what runs to the CPU or to a generator, and so keeps it from being captured.

    Args:
        device: on which all of it should happen.

    Attributes:
        found: what it is, in words; None where there is nothing.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.device = device
        self.found: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        result = func(*args, **(kwargs or {}))
        if self.found is None:
            made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            self.found = self._tie(func, given, made)
        return result

    def _tie(self, func: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> str | None:
        here, name = self.device.type, func.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded in func.tags:
            return f"{func} draws random numbers"
        if any(x.device.type != here for x in made):
            return f"{func} makes a tensor on the CPU"
        if made and any(x.device.type != here for x in given):
            return f"{func} reads a tensor on the CPU"

        # A number that lies on the CPU is as good as a constant; one on the device makes the CPU wait.
        if name in READING and any(x.device.type == here for x in given):
            return f"{func} reads a value back"
        if name.startswith("index") and any(x.dtype in (torch.bool, torch.uint8) for x in given[1:]):
            return f"{func} picks by a mask, and how many it picks is a value"
        return None


keep_out(Watch)
