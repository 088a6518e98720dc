"""A stage of dvc.yaml as the scheduler sees it.

What it needs to run is written where DVC ignores it, in its `meta`:

    meta: {device: gpu, cohort: [--out]}

`device: gpu` is a stage that computes on a GPU where there is one, and has it for itself; by default it needs none.
`cohort` is for stages that may share a process, and lists the options that are given once for each of them
(`pipeline.execution.cohort`).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ParamsError


class Verdict(Enum):
    """What `begin` says of a stage."""

    UNCHANGED = "unchanged"
    RESTORED = "restored"  # from the run cache, or it is a stage without a command
    ADOPTED = "adopted"  # it had run, and the run that ran it was killed before it was recorded
    TO_RUN = "to run"


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml.

    Attributes:
        name: as DVC prints it, for instance "distill@resnet8-quarter/kd-0".
        after: names of the planned stages that it depends on.
        gpu: it computes on a GPU where there is one (`meta.device` in dvc.yaml).
        each: options that are given once a student where several students share a process (`meta.cohort`).
        commands: as a shell reads them.
        outs: absolute paths.
    """

    name: str
    after: frozenset[str]
    gpu: bool
    each: tuple[str, ...]
    commands: tuple[str, ...]
    outs: tuple[Path, ...]

    @property
    def kind(self) -> str:
        """The name without its cell: "distill"."""
        return self.name.partition("@")[0]


class _Meta(BaseModel):
    model_config = ConfigDict(
        extra="allow", strict=True
    )  # DVC leaves it to its users: others may have theirs there

    device: Literal["cpu", "gpu"] = "cpu"
    cohort: list[str] = []


def described(stage: Any, upstream: Sequence[str], planned: Container[str]) -> Stage:
    """Return one of DVC's stages as the scheduler sees it.

    Args:
        stage: a `dvc.stage.Stage`.
        upstream: names of the stages that it depends on.
        planned: names of the stages that are planned.

    Raises:
        ParamsError: its `meta` says something else than it should.
    """
    try:
        meta = _Meta.model_validate(stage.meta or {})
    except ValidationError:
        raise ParamsError(
            f"meta of stage '{stage.addressing}' in dvc.yaml is {stage.meta}; expected device: cpu or gpu, and cohort: "
            "a list of the options that are given once a student. Mend it, then run the same command again."
        ) from None
    return Stage(
        stage.addressing,
        frozenset(name for name in upstream if name in planned),
        meta.device == "gpu",
        tuple(meta.cohort),
        tuple(stage.cmd if isinstance(stage.cmd, list) else (stage.cmd or "").splitlines()),
        outs(stage),
    )


def outs(stage: Any) -> tuple[Path, ...]:
    """Return the absolute paths of what one of DVC's stages makes."""
    return tuple(Path(out.fs_path) for out in stage.outs)


def file_name(stage: str) -> str:
    """Return a stage's name as that of a file."""
    return stage.replace("/", "%")
