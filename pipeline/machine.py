"""Machine options: where and how a command computes, never what it computes."""

from __future__ import annotations

import resource
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

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

    def peak_bytes(self) -> int:
        """Return the most memory that this process has used so far: on a GPU its own, else the resident size."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return peak_resident()


def peak_resident() -> int:
    """Return the largest resident size of this process so far, in bytes.

    The kernel's ru_maxrss takes over what the parent held when it started the process, so Linux's own mark of
    the running program is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
