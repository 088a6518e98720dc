"""What networks learn of a data set: classes of images, or boxes in them; and which module a stage runs for it.

A source says its task (`TASK` in its file; without one it is classification). Stages import the module of another task
by its name, so an edit there reruns no classifier, and `pipeline/runs/blocks.py` puts its hash into the blocks of that
task alone.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal

Task = Literal["classification", "detection"]
CLASSIFICATION: Task = "classification"
DETECTION: Task = "detection"

# By stage.
_OF_DETECTION = {
    "prepare_data": "pipeline.detection.preparation",
}


def task_of(source: ModuleType) -> Task:
    """Return what networks learn of the data of a source."""
    task: Task = getattr(source, "TASK", CLASSIFICATION)
    return task


def module(stage: str) -> str:
    """Return the module that a stage runs for detection, for instance "prepare_data"."""
    return _OF_DETECTION[stage]
