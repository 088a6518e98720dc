"""The device that a test runs on: the CPU, and then a GPU where there is one.

A test that asks for the fixture `device`, by itself, through another fixture or through `pytestmark`, runs once on
each device; `conftest.py` sets the device for the whole of a test, its fixtures included. Helpers ask `current` for
it. On a GPU the tests compute in IEEE float32 with kernels that give the same bits twice: their tolerances, and what
they compare bit for bit, are those of a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline import precision as precisions
from pipeline.machine import Machine
from pipeline.precision import Precision

T = TypeVar("T", Tensor, nn.Module)
CPU = Machine(torch.device("cpu"))
GPUS = ["cuda"] if torch.cuda.is_available() else []
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
# What CUDA does with them: it makes, copies, converts and joins them, and shows them in another shape.
DONE_WITH_UNSIGNED = frozenset(
    {"alias", "as_strided", "cat", "clone", "copy_", "detach", "empty_like", "expand", "lift_fresh", "permute",
     "select", "slice", "split", "split_with_sizes", "squeeze", "_to_copy", "transpose", "_unsafe_view",
     "unsqueeze", "view"}
)  # fmt: skip
_machines = [CPU]  # the last one is the current one


def current() -> Machine:
    """Return the machine of the test that runs."""
    return _machines[-1]


def here(x: T) -> T:
    """Return a tensor, or a module, on the device of the test that runs; what is drawn is drawn on the CPU."""
    return x.to(current().device)


@contextmanager
def running_on(name: str) -> Iterator[None]:
    """Let a device be the current one."""
    _machines.append(Machine(torch.device(name)))
    try:
        if name == "cpu":
            yield
        else:
            with precisions.using("float32"), _float32_is_auto(), _same_bits_twice():
                yield
    finally:
        _machines.pop()


@contextmanager
def _float32_is_auto() -> Iterator[None]:
    """Let stages that are called without a precision, or have no such option, compute in float32."""
    resolve = precisions.resolve

    def resolved(name: str, device: torch.device) -> Precision:
        return resolve("float32" if name == "auto" else name, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precisions, "resolve", resolved)
        yield


@contextmanager
def _same_bits_twice() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


class GapsOfCUDA(TorchDispatchMode):
    """Refuses on the CPU what CUDA refuses: 16, 32 and 64 unsigned bits are stored there, and not computed with."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and x.dtype in UNSIGNED and name not in DONE_WITH_UNSIGNED:
                raise NotImplementedError(f'"{name}_cuda" not implemented for {x.dtype}')
        return func(*args, **kwargs)
