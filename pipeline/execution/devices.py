"""Which GPUs a run may use: asked of the system, because torch's import takes longer than most stages."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import MachineError

AUTO, CPU = "auto", "cpu"


def gpus(devices: str) -> list[str]:
    """Return the GPUs that an option names, as CUDA_VISIBLE_DEVICES does.

    Args:
        devices: "auto" for all of them, "cpu" for none, or numbers, "0,1".

    Raises:
        MachineError: it names a GPU that is not there.
    """
    if devices == CPU:
        return []
    there = available()
    if devices == AUTO:
        return there

    named = [name.strip() for name in devices.split(",")]
    missing = [name for name in named if name not in there]
    if missing or len(set(named)) < len(named):
        found = f"GPUs {', '.join(there)}" if there else "no GPU"
        what = f"names GPU '{missing[0]}'" if missing else "names a GPU twice"
        raise MachineError(
            f"--devices '{devices}' {what}; this machine has {found}. Give auto, cpu or some of them."
        )
    return named


def available(root: Path = Path("/dev")) -> list[str]:
    """Return the names of the machine's GPUs.

    Args:
        root: the folder of device files.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:  # the user's own choice, or a queue's
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    # A container has the files of its own GPUs, under the numbers of the host; CUDA counts them from 0.
    nvidia = [path for path in root.glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()]
    amd = list(root.glob("dri/renderD*")) if (root / "kfd").exists() else []
    number = len(nvidia) or len(amd) or int((root / "dxg").exists())  # WSL's has no number
    return [str(index) for index in range(number)]
