"""torch without its compiler, the import of which takes as long as torch's own: 2 to 3 s of every stage.

torch keeps its optimizers and dispatch modes out of compiled graphs, and imports `torch._dynamo` to say so when they
first run. Nothing is compiled here but networks (`Machine.compile`), so it is said without the import.
"""

from __future__ import annotations

import inspect

import torch
from torch._compile import _disable_dynamo
from torch.optim import SGD, AdamW, Optimizer

_KEPT_OUT = _disable_dynamo(lambda: None).__code__  # shared by all functions that torch keeps out


def keep_out(owner: type) -> None:
    """Mark what torch keeps out of graphs in a class as it does itself at a first call."""
    for method in vars(owner).values():
        if getattr(method, "__code__", None) is _KEPT_OUT:
            method.__wrapped__.__dynamo_disable = method.__wrapped__


keep_out(Optimizer)


class EagerSGD(SGD):
    """torch's SGD, step by step the same."""

    # The bare method: what torch wraps around it imports the compiler.
    step = torch.no_grad()(inspect.unwrap(SGD.step))


class EagerAdamW(AdamW):
    """torch's AdamW, step by step the same."""

    step = torch.no_grad()(inspect.unwrap(AdamW.step))
