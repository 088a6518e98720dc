"""Settings of Slurm's jobs, as `--slurm partition=gpu,time=120` gives them.

Names are those of submitit's `update_parameters`, which are sbatch's with underscores. They hold for all jobs, or with
a prefix for those that compute on a GPU (`gpu.partition=a100`) or for the others (`cpu.partition=short`). What is not
among them reaches sbatch through its own variables, for instance SBATCH_RESERVATION.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import MachineError, ParamsError, unknown_name

SLURM, LOCAL = "slurm", "local"
TIME = 240  # minutes; submitit's own 5 would interrupt most trainings

_GPU, _CPU = "gpu", "cpu"
_OF_GPUS = {"gpus_per_node", "gpus_per_task", "cpus_per_gpu", "mem_per_gpu"}
_NUMBERS = {"time", "signal_delay_s", "array_parallelism"}  # submitit calculates with them
# A job is one process on one node, and the last two are not for a command line.
_OURS = {"nodes", "ntasks_per_node", "num_gpus", "additional_parameters"}


@dataclass(frozen=True)
class Settings:
    """What jobs are submitted with.

    Attributes:
        cluster: "slurm", or "local", submitit's stand-in for it: processes of this machine.
        gpu: of jobs that compute on a GPU, as submitit's `AutoExecutor` takes them.
        cpu: of the others.
    """

    cluster: str
    gpu: Mapping[str, object]
    cpu: Mapping[str, object]


def settings(texts: Sequence[str], *, gpus: bool = True) -> Settings:
    """Read settings.

    Args:
        texts: each "name=value", or several with commas between them.
        gpus: jobs that compute on a GPU get one, unless the settings say how many.

    Raises:
        ParamsError: a text without a value, a name given twice, or a value that is no number where one must be.
        UnknownNameError: a name that submitit does not know.
        MachineError: submitit is not installed.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise MachineError('--executor slurm needs submitit. Install it: pip install -e ".[slurm]"') from None

    names = submitit.SlurmExecutor._valid_parameters() - _OURS
    cluster = SLURM
    given: dict[tuple[str, str], object] = {}
    for text in texts:
        # A comma may stand within a value, "nodelist=a,b"; the next name has an equals sign behind it.
        for part in re.split(r",(?=[\w.]+=)", text):
            name, _, value = (word.strip() for word in part.partition("="))
            if not name or not value:
                raise ParamsError(f"--slurm '{part}' is no setting. Give name=value, for instance time=120.")
            if name == "cluster":
                cluster = _cluster(value)
                continue
            scope, _, plain = name.rpartition(".")
            if plain not in names or scope not in ("", _GPU, _CPU):
                raise unknown_name(
                    "setting of --slurm", name, {*names, "cluster"}, "Or with gpu. or cpu. before it."
                )
            if (scope, plain) in given:
                raise ParamsError(
                    f"--slurm gives {name} twice. Give it once, or as gpu.{plain} and cpu.{plain}."
                )
            given[scope, plain] = _value(plain, value)
    return Settings(cluster, _of(_GPU, given, gpus=gpus), _of(_CPU, given, gpus=False))


def _cluster(value: str) -> str:
    if value not in (SLURM, LOCAL):
        raise ParamsError(
            f"--slurm cluster='{value}' is none. Give slurm, or local: processes of this machine."
        )
    return value


def _value(name: str, text: str) -> object:
    if name in _NUMBERS and not (text.isdecimal() and int(text) > 0):
        unit = "minutes" if name == "time" else "a number"
        raise ParamsError(f"--slurm {name}='{text}'; expected {unit}, for instance {name}=120.")
    if name in ("setup", "teardown"):
        return [text]
    if name == "srun_args":
        return shlex.split(text)
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdecimal() else text


def _of(scope: str, given: Mapping[tuple[str, str], object], *, gpus: bool) -> dict[str, object]:
    """Return the settings of one kind of jobs, those that are its own before those of all."""
    merged: dict[str, object] = {"job_name": "stillhouse", "time": TIME}
    merged |= {name: value for (own, name), value in given.items() if not own}
    merged |= {name: value for (own, name), value in given.items() if own == scope}
    of_gpus = {
        name
        for name, value in merged.items()
        if name in _OF_GPUS or (name, str(value)[:3]) == ("gres", "gpu")
    }
    if not gpus:
        merged = {name: value for name, value in merged.items() if name not in of_gpus}
    elif not of_gpus - {"cpus_per_gpu", "mem_per_gpu"}:
        merged["gpus_per_node"] = 1

    minutes = merged.pop("time")
    # The stand-in knows these two and ignores the rest.
    generic = {name: merged.pop(name) for name in ("gpus_per_node",) if name in merged}
    return {"timeout_min": minutes} | generic | {f"slurm_{name}": value for name, value in merged.items()}
