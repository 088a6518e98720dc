"""Which GPUs a run may use: asked of the system, because torch's import takes longer than most stages."""

from __future__ import annotations

import os
import re
from itertools import takewhile
from pathlib import Path

from pipeline.errors import MachineError

AUTO, CPU = "auto", "cpu"
_NUMBERED = re.compile(r"cuda:(\d+)")
UNNUMBERED = ("dxg", "nvmap")  # device files of WSL and of Jetson, which do not count GPUs


def gpus(devices: str) -> list[str]:
    """Return the GPUs that an option names, as CUDA_VISIBLE_DEVICES does.

    Args:
        devices: "auto" for all of them, "cpu" for none, or names, "0,1".

    With "auto" the device counts that STILLHOUSE_DEVICE names for all stages.

    Raises:
        MachineError: it names a GPU that is not there, or one twice; or each stage would spread over several.
    """
    chosen = os.environ.get("STILLHOUSE_DEVICE", "") if devices == AUTO else ""
    if CPU in (devices, chosen):
        return []
    there = available()
    processes = os.environ.get("STILLHOUSE_PROCESSES", "1")
    if there and processes != "1":
        raise MachineError(
            f"STILLHOUSE_PROCESSES is {processes}, and stages.run gives each stage one GPU. Unset it, or give "
            "--devices cpu, or take dvc repro."
        )
    if numbered := _NUMBERED.fullmatch(chosen):
        return [_at(int(numbered[1]), there)]
    if devices == AUTO:
        return there

    named = [name.strip() for name in devices.split(",")]
    missing = [name for name in named if name not in there]
    if "" in named:
        what = "has an empty name"
    elif missing:
        what = f"names GPU '{missing[0]}'"
    elif len(set(named)) < len(named):
        what = "names a GPU twice"
    else:
        return named
    some = f", cpu, or some of its GPUs, as in {','.join(there[:2])}" if there else " or cpu"
    raise MachineError(f"--devices '{devices}' {what}; this machine has {_listed(there)}. Give auto{some}.")


def _at(index: int, there: list[str]) -> str:
    if index >= len(there):
        raise MachineError(
            f"STILLHOUSE_DEVICE is cuda:{index}; this machine has {_listed(there)}. Unset it, or give --devices."
        )
    return there[index]


def _listed(there: list[str]) -> str:
    return f"GPU{'s' * (len(there) > 1)} {', '.join(there)}" if there else "no GPU"


def available(root: Path = Path("/dev")) -> list[str]:
    """Return the names of the GPUs that this process may use.

    Args:
        root: the folder of device files.
    """
    # A container has the files of its own GPUs, under the numbers of the host; CUDA counts them from 0.
    nvidia = [path for path in root.glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()]
    amd = list(root.glob("dri/renderD*")) if (root / "kfd").exists() else []
    number = len(nvidia) or len(amd)
    if not number and any((root / name).exists() for name in UNNUMBERED):
        number = 1

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")  # the user's own choice, or a queue's
    if chosen is None or not number:
        return [str(index) for index in range(number)]
    # As CUDA reads it: the first name that is none ends the list.
    names = (name.strip() for name in chosen.split(","))
    return list(takewhile(lambda name: name not in ("", "-1"), names))
