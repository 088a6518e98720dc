"""Machine options: where and how a command computes, never what it computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from pipeline.errors import MachineError


@dataclass(frozen=True)
class Machine:
    """A device, and the precision of its forward passes."""

    device: torch.device
    bfloat16: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass; losses are computed outside it, in float32."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()


def machine(device: str = "auto", precision: str = "float32") -> Machine:
    """Return the machine that the options ask for.

    Raises:
        MachineError: a device that is not there, or an option that is not known.
    """
    if precision not in ("float32", "bfloat16"):
        raise MachineError(f"--precision is '{precision}'. Give float32 or bfloat16.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MachineError(f"--device '{device}' cannot be used: {reason}. Give auto or cpu.") from None
    return Machine(chosen, precision == "bfloat16")
