"""Files of weights that differ from those that params.yaml was checked with: DVC does not know them.

Which files these are is written in params.yaml, where dvc.yaml cannot look them up. So each check of params.yaml hashes
them into what trainings depend on, and a plan compares.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import advice
from pipeline.artifacts.publish import read_json
from pipeline.errors import StillhouseError
from pipeline.params.weights import WeightsFile
from pipeline.runs.detection import is_detector, learns_boxes
from pipeline.runs.project import Kind, Project

_BLOCKS: dict[Kind, str] = {"teachers": "teachers/{}/train.json", "students": "students/{}.json"}


def changes(project: Project, checked: Path) -> list[str]:
    """Return a line for every file of weights whose content has changed since params.yaml was checked.

    Args:
        project: the checked params.yaml.
        checked: the folder of blocks that the stage `params` has made; one that is not there is for others to report.
    """
    lines: dict[str, str] = {}
    for kind, block in _BLOCKS.items():
        for name in getattr(project.params, kind):
            detector = (is_detector if kind == "teachers" else learns_boxes)(project, name)
            weights = project.detector_weights(kind, name) if detector else project.spec(kind, name).weights
            before = _weights(checked / block.format(name))
            if not isinstance(weights, WeightsFile) or before.get("path") != weights.path:
                continue
            if before.get("sha256") != weights.sha256:
                lines[weights.path] = (
                    f"The weights {weights.path} have changed since params.yaml was checked. Unless an edit lets that "
                    f"be done again anyway, run: {advice.forced('dvc repro params')}, then: dvc repro"
                )
    return [*lines.values()]


def _weights(block: Path) -> dict[str, object]:
    """Return what a block says of its weights; nothing where it names no file."""
    try:
        content = read_json(block, "dvc repro params")
    except (StillhouseError, OSError):
        return {}
    weights = content.get("weights") if isinstance(content, dict) else None
    return weights if isinstance(weights, dict) else {}
