"""What may be asked for of a data set with boxes: so far, that it is prepared."""

from __future__ import annotations

from pipeline.errors import ParamsError
from pipeline.params.tasks import DETECTION
from pipeline.runs.project import Project

_LEARN = "Give it a data set of classes, whose source is one of classification"


def check(project: Project) -> None:
    """Refuse what is asked for of a data set with boxes and cannot be had.

    Raises:
        ParamsError: it is something that is there for classification alone; the message says what.
    """
    params = project.params
    for section in ("teachers", "students"):
        for name, network in getattr(params, section).items():
            if project.tasks[network.dataset] == DETECTION:
                raise ParamsError(
                    f"params.yaml: {section}.{name} has the data set '{network.dataset}', which has boxes, and no "
                    f"stage trains a network on boxes. {_LEARN}, then: dvc repro params"
                )
