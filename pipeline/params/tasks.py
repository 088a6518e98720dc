"""What networks learn of a data set: classes of images, or boxes in them; and which module a stage runs for it.

A source says its task (`TASK` in its file; without one it is classification). Stages import the module of another task
by its name, so an edit there reruns no classifier, and `pipeline/runs/blocks.py` puts its hash into the blocks of that
task alone.
"""

from __future__ import annotations

import importlib
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
    "student_inputs": "pipeline.runs.detector_inputs",
    "pretrain_student": "pipeline.training.detectors",
    "match_channels": "pipeline.matching.detectors",
    "inputs": "pipeline.runs.detector_inputs",
    "distill": "pipeline.training.detector_distillation",
    "evaluate": "pipeline.evaluation.detectors",
    "compare": "pipeline.runs.detector_comparison",  # of evaluate, where there is a teacher
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


def load(stage: str) -> ModuleType:
    """Import the module that a stage runs for detection: by its name, so that no stage has it in its closure."""
    return importlib.import_module(module(stage))


def modules() -> dict[str, str]:
    """Return the modules that stages run for detection, by stage."""
    return dict(_OF_DETECTION)


def module(stage: str) -> str:
    """Return the module that a stage runs for detection, for instance "prepare_data"."""
    return _OF_DETECTION[stage]
