"""The `exports` section of params.yaml: students that are made into files that ship, by "pair/run"."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.errors import ParamsError
from pipeline.params.base import Block, StageBlock
from pipeline.params.numbers import Seed, once

Format = Literal["onnx", "program", "int8"]
FORMATS: tuple[Format, ...] = ("onnx", "program", "int8")
Percent = Annotated[float, Field(ge=0, le=100)]


class ExportParams(Block):
    """How a student is exported, and how far what is exported may be from it.

    Attributes:
        seed: whose student; "best" is that of the highest top-1 on the split that chooses epochs (`holdout` where there
            is one, else `test`).
        weights: "last", or "best": those of its best epoch.
        formats: "onnx", "program" (of `torch.export`) and "int8" (ONNX, quantized after training).
        calibration: training images that the ranges of int8 are measured on, at most.
        tolerance: largest difference of a logit from the student's, as a share of the student's largest logit; not of
            int8.
        agreement: smallest share of the test images, in percent, that are put into the student's class; not of int8.
        accuracy_loss: percentage points of top-1 that int8 may lose.
    """

    seed: Seed | Literal["best"] = "best"
    weights: Literal["last", "best"] = "last"
    formats: Annotated[tuple[Format, ...], AfterValidator(once)] = Field(default=FORMATS, min_length=1)
    calibration: int = Field(default=512, ge=1, le=1_000_000)
    tolerance: float = Field(default=1e-4, ge=0, le=1)
    agreement: Percent = 99.9
    accuracy_loss: Percent = 1.0


class ExportBlock(StageBlock):
    """What `export` depends on beside the students of a run.

    Attributes:
        student: "pair/run".
        seeds: one of which is exported.
        settings: how it is exported.
    """

    student: str
    seeds: tuple[int, ...]
    settings: ExportParams


def run_name(text: str) -> str:
    """Return the name of a run, "pair/run", as an option gives it.

    Raises:
        ParamsError: it is of another form.
    """
    pair, slash, run = text.partition("/")
    if not slash or "/" in run or any(part in ("", ".", "..") for part in (pair, run)):
        raise ParamsError(f"'{text}' is no run, expected PAIR/RUN: an entry of distill in params.yaml.")
    return text
