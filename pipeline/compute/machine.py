"""Machine options: where and how a command computes, never what it computes."""

from __future__ import annotations

import resource
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from pipeline.compute import precision as precisions
from pipeline.compute.distributed import ALONE, Ranks
from pipeline.compute.precision import Precision
from pipeline.errors import MachineError


@dataclass(frozen=True)
class Machine:
    """A device, the precision of its forward passes, and the processes that share the work.

    Attributes:
        device: where this process computes.
        precision: of convolutions and products in networks; see `pipeline.compute.precision`.
        ranks: the processes that share the work.
        channels_last: networks hold their weights, and so their maps, with the channels innermost.
        compiled: networks run through torch.compile.
        captured: training steps are replayed as CUDA graphs.
        cohort: how many students of one process are trained side by side at most; None leaves it to their size.
    """

    device: torch.device
    precision: Precision = "float32"
    ranks: Ranks = ALONE
    channels_last: bool = False
    compiled: bool = False
    captured: bool = False
    cohort: int | None = None

    @property
    def fused(self) -> bool:
        """Whether an optimizer updates all parameters by one kernel; captured or not, a GPU computes the same bits."""
        return self.captured or self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass; losses are computed outside it, in float32."""
        # TF32 needs no context: it is a setting of the process (`precision.apply`).
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def place(self, network: nn.Module) -> None:
        """Move a network to the device, in the memory format of the machine."""
        if self.channels_last:
            network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        else:
            network.to(self.device)

    @property
    def hardware(self) -> str:
        """The device in words: "cpu", or the GPU's name, "cuda: NVIDIA H200"."""
        kind = self.device.type
        return f"{kind}: {torch.cuda.get_device_name(self.device)}" if kind == "cuda" else kind

    def peak_bytes(self) -> int:
        """Return the most memory that this process has used so far: on a GPU its own, else the resident size."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return peak_resident()

    def compile(self, network: nn.Module) -> None:
        """Let a network run compiled from now on, if the machine does that."""
        if self.compiled:
            network.compile()


def peak_resident() -> int:
    """Return the largest resident size of this process so far, in bytes.

    The kernel's ru_maxrss includes what the parent used when it started the process, so Linux's own mark of
    the running program is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10  # given in kB

    # macOS counts bytes here, the other systems kB.
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine(
    device: str = "auto",
    precision: str = "auto",
    ranks: Ranks = ALONE,
    *,
    channels_last: bool | None = None,
    compiled: bool = False,
    steps: str = "auto",
    cohort: int = 0,
    deterministic: bool = False,
) -> Machine:
    """Return the machine that the options ask for; several ranks are connected, and each takes a GPU of its own.

    From now on the process computes in this precision.

    Args:
        device: "auto", or torch's name of one.
        precision: see `pipeline.compute.precision`.
        ranks: the processes that share the work.
        channels_last: the memory format; None is channels innermost where a GPU's matrix units compute.
        compiled: run networks through torch.compile.
        steps: "eager", "captured" as CUDA graphs, or "auto", which captures them on a GPU.
        cohort: students that are trained side by side at most; 0 leaves it to their size.
        deterministic: let a GPU choose kernels that give the same bits twice.

    Raises:
        MachineError: a device that is not there, or an option that is not known.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.size > 1 and device.startswith("cuda"):
        device = _own_gpu(device, ranks)

    try:
        chosen = torch.device(device)
        # A device may have a name and yet be unusable: an allocation shows it.
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MachineError(f"--device '{device}' cannot be used: {reason}. Give auto or cpu.") from None

    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)  # streams and graphs are made on the current one
    if compiled and (lacking := cannot_compile(chosen)):
        raise MachineError(f"--compile needs {lacking}, and this machine has none. Unset STILLHOUSE_COMPILE.")
    resolved = precisions.resolve(precision, chosen)
    captured = _captured(steps, chosen)
    if channels_last is None:
        channels_last = chosen.type == "cuda" and resolved != "float32"

    # Last: where a connected rank fails, the others wait for it.
    ranks.connect(chosen)
    precisions.apply(resolved)
    if deterministic:
        precisions.same_bits_twice()
    return Machine(chosen, resolved, ranks, channels_last, compiled, captured, cohort or None)


def _captured(steps: str, device: torch.device) -> bool:
    if steps not in ("auto", "eager", "captured"):
        raise MachineError(f"--steps is '{steps}'. Give auto, eager or captured.")
    if steps == "captured" and device.type != "cuda":
        raise MachineError(
            f"--steps is 'captured', which GPUs do, and the device is '{device}'. Give auto or eager."
        )
    return steps != "eager" and device.type == "cuda"


def cannot_compile(device: torch.device) -> str | None:
    """Return what torch.compile lacks on a device, or None."""
    if device.type == "cuda":
        return None if find_spec("triton") else "triton"
    # Imported here, since torch's compiler takes as long to import as torch itself.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler"
    return None


def _own_gpu(device: str, ranks: Ranks) -> str:
    if device != "cuda":
        raise MachineError(
            f"--device '{device}' names one GPU for {ranks.size} processes. Give auto, cuda or cpu."
        )
    count = torch.cuda.device_count()
    if ranks.local >= count:
        raise MachineError(
            f"Process {ranks.local + 1} of this machine finds {count} GPUs, and each process takes one. "
            "Lower STILLHOUSE_PROCESSES, or give --device cpu."
        )
    return f"cuda:{ranks.local}"
