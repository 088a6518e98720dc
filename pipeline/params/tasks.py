"""What networks learn of a data set: classes of images, or boxes in them; and which module a stage runs for it.

A source says its task (`TASK` in its file; without one it is classification). Stages import the module of another task
by its name, so an edit there reruns no classifier, and `pipeline/runs/blocks.py` puts its hash into the blocks of that
task alone.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Literal

from pipeline.artifacts.publish import read_json
from pipeline.errors import DamagedArtifactError, MissingArtifactError

Task = Literal["classification", "detection"]
CLASSIFICATION: Task = "classification"
DETECTION: Task = "detection"

# By stage.
_OF_DETECTION = {
    "prepare_data": "pipeline.detection.preparation",
    "train_teacher": "pipeline.training.detectors",
    "evaluate": "pipeline.evaluation.detectors",
}


def task_of(source: ModuleType) -> Task:
    """Return what networks learn of the data of a source."""
    task: Task = getattr(source, "TASK", CLASSIFICATION)
    return task


def told(path: Path) -> Task:
    """Return the task that a json of a stage, or of prepared data, says; one that says none is of classification."""
    try:
        content = read_json(path, "dvc repro")
    except (DamagedArtifactError, MissingArtifactError):
        return CLASSIFICATION  # whose reader says what is wrong
    return DETECTION if isinstance(content, dict) and content.get("task") == DETECTION else CLASSIFICATION


def module(stage: str) -> str:
    """Return the module that a stage runs for detection, for instance "prepare_data"."""
    return _OF_DETECTION[stage]
