"""Randomness as a function of what it is for, never of what ran before.

Every random draw is keyed, for instance `generator(seed, "order", epoch)`. So resuming, reordering and
splitting over workers change nothing, and for one seed all methods share init, order and views.

torch is imported where it is used: a plug-in that only says what it is called must not cost the report its import.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MASK = (1 << 63) - 1


def derive(*key: int | str) -> int:
    """Return a 63-bit seed that depends on every part of `key`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MASK


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by `key`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(*key))


@contextmanager
def scope(*key: int | str) -> Iterator[None]:
    """Seed torch's global CPU generator by `key` inside the block and restore it afterwards.

    For library code that draws from the global generator, such as the initializers of torch's layers.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(*key))  # those of GPUs are left alone
        yield


def mix(x: Tensor) -> Tensor:
    """Hash int64 values elementwise (the finalizer of splitmix64); any shape, same on every device.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def uniform(draws: Tensor) -> Tensor:
    """Return float32 in [0, 1) of hashed int64 values, elementwise; any shape, same on every device."""
    return _shift(draws, 40).float() / (1 << 24)  # as many bits as a float32 has


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift int64 right without its sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
