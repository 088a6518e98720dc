"""The precision of float32 arithmetic on a GPU: one documented choice, a machine option.

`float32` is IEEE float32 in every convolution and product, on a GPU as on a CPU. `tf32` lets a GPU round the factors of
convolutions and products to TF32's 10 bits of fraction, `bfloat16` runs forward passes under autocast. `auto` is
`float32` on a CPU and `tf32` on a GPU. Losses are computed in float32 under each of them, and so are distances to
words and sub-classes: differences of distances are small beside the distances (`full_products`).

torch is imported where it is used: a store's manifest names a precision, and stages that only read it compute nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

from pipeline.errors import MachineError

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "tf32", "bfloat16"]
NAMES: tuple[Precision, ...] = get_args(Precision)
ROUNDOFF: dict[Precision, float] = {"float32": 2.0**-24, "tf32": 2.0**-11, "bfloat16": 2.0**-8}  # half an ulp


def resolve(name: str, device: torch.device) -> Precision:
    """Return the precision that an option asks for on a device.

    Raises:
        MachineError: no such precision, or the device does not have it.
    """
    if name == "auto":
        return "tf32" if device.type == "cuda" else "float32"

    for known in NAMES:
        if name == known:
            if known == "tf32" and device.type != "cuda":
                raise MachineError(
                    f"--precision is 'tf32', which GPUs have, and the device is '{device}'. Give auto, float32 or "
                    "bfloat16."
                )
            return known
    raise MachineError(f"--precision is '{name}'. Give auto, {', '.join(NAMES[:-1])} or {NAMES[-1]}.")


def apply(precision: Precision) -> None:
    """Set how this process computes float32 convolutions and products on GPUs from now on."""
    import torch

    # Under bfloat16 too: what autocast leaves in float32 reads rounded values anyway.
    allowed = precision != "float32"
    # Each has a switch of its own, and torch's defaults differ.
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def same_bits_twice() -> None:
    """Choose, from now on, kernels that give the same bits each time, where torch has any.

    cuDNN's fastest convolutions may add up in another order at each call. With the others a training that is resumed
    on a GPU ends bit for bit where an uninterrupted one ends, and a step may take longer: `python -m stages.benchmark
    --only options` says how much longer.
    """
    # cuBLAS reads it when it starts: with a workspace of its own for each stream its sums have one order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _choose(deterministic=True)


@contextmanager
def same_bits_within() -> Iterator[None]:
    """Do as `same_bits_twice` inside the block."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    _choose(deterministic=True)
    try:
        yield
    finally:
        _choose(deterministic=before)


def _choose(*, deterministic: bool) -> None:
    import torch

    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # Which is for debugging, and takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # made at run time


@contextmanager
def using(precision: Precision) -> Iterator[None]:
    """Compute in another precision inside the block."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    apply(precision)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def full_products() -> Iterator[None]:
    """Compute matrix products in IEEE float32 inside the block, whatever the precision of networks."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    # Distances are products alone, so convolutions keep their setting.
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
