"""Machine options: where and how a command computes, never what it computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from pipeline.distributed import ALONE, Ranks
from pipeline.errors import MachineError


@dataclass(frozen=True)
class Machine:
    """A device, the precision of its forward passes, and the processes that share the work.

    Attributes:
        device: of this process.
        bfloat16: forward passes under autocast.
        ranks: the processes.
    """

    device: torch.device
    bfloat16: bool = False
    ranks: Ranks = ALONE

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass; losses are computed outside it, in float32."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()


def machine(device: str = "auto", precision: str = "float32", ranks: Ranks = ALONE) -> Machine:
    """Return the machine that the options ask for; several ranks are connected, and each takes a GPU of its own.

    Raises:
        MachineError: a device that is not there, or an option that is not known.
    """
    if precision not in ("float32", "bfloat16"):
        raise MachineError(f"--precision is '{precision}'. Give float32 or bfloat16.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.size > 1 and device.startswith("cuda"):
        device = _own_gpu(device, ranks)
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MachineError(f"--device '{device}' cannot be used: {reason}. Give auto or cpu.") from None
    ranks.connect(chosen)
    return Machine(chosen, precision == "bfloat16", ranks)


def _own_gpu(device: str, ranks: Ranks) -> str:
    if device != "cuda":
        raise MachineError(
            f"--device '{device}' names one GPU for {ranks.size} processes. Give auto, cuda or cpu."
        )
    found = torch.cuda.device_count()
    if ranks.local >= found:
        raise MachineError(
            f"Process {ranks.local + 1} of this machine finds {found} GPUs, and each process takes one. "
            "Lower STILLHOUSE_PROCESSES, or give --device cpu."
        )
    return f"cuda:{ranks.local}"
