"""What may be asked for of a data set with boxes: teachers that are detectors, trained and evaluated.

What else there is for classifiers is refused here, before anything runs.
"""

from __future__ import annotations

from pipeline.detection.detector_settings import DetectorSettings
from pipeline.detection.spec import DetectorBlock
from pipeline.errors import ParamsError, unknown_name
from pipeline.params.base import placed, validate
from pipeline.params.recipe import Recipe
from pipeline.params.tables import AskedBlock
from pipeline.params.tasks import DETECTION
from pipeline.runs.project import Project

# Of a teacher, what says something of its store, and of a recipe, what weighs labels.
_STORED = ("features", "checkpoints", "compression", "tables")
_OF_LABELS = ("label_smoothing", "class_weights", "sampling")


def is_detector(project: Project, teacher: str) -> bool:
    """Say whether a teacher finds boxes."""
    return project.tasks[project.params.teachers[teacher].dataset] == DETECTION


def detectors(project: Project) -> list[str]:
    """Return the teachers that find boxes."""
    return [name for name in project.params.teachers if is_detector(project, name)]


def check(project: Project) -> None:
    """Refuse what is asked for of a data set with boxes and cannot be had, and settings of detectors elsewhere.

    Raises:
        ParamsError: it is something that is there for classification alone; the message says what.
    """
    params = project.params
    for name, student in params.students.items():
        if project.tasks[student.dataset] == DETECTION:
            raise ParamsError(
                f"params.yaml: students.{name} has the data set '{student.dataset}', which has boxes, and students "
                "learn none yet, alone or distilled. Make it a teacher, or name another data set, then: dvc repro "
                "params"
            )
    for name, assistant in params.assistants.items():
        if is_detector(project, assistant.teacher):
            raise ParamsError(
                f"params.yaml: assistants.{name} has the teacher '{assistant.teacher}', which finds boxes, and "
                "assistants learn none. Remove it, then: dvc repro params"
            )
    for name, teacher in params.teachers.items():
        if teacher.detector and not is_detector(project, name):
            raise ParamsError(
                f"params.yaml: teachers.{name}.detector has settings of detectors, and its data set "
                f"'{teacher.dataset}' has no boxes. Drop them, then: dvc repro params"
            )


def train_block(project: Project, name: str) -> DetectorBlock:
    """Return what the training of a detector depends on.

    Raises:
        UnknownNameError: there is no such detector.
        ParamsError: a setting is wrong, or is one of classifiers.
    """
    teacher, where = project.params.teachers[name], f"teachers.{name}"
    given = [key for key in _STORED if key in teacher.model_fields_set]
    if given:
        raise ParamsError(
            f"params.yaml: {where}.{given[0]} is about what is stored of a teacher, and of a detector nothing is. Drop "
            "it, then: dvc repro params"
        )
    if teacher.head != "own":
        raise ParamsError(
            f"params.yaml: {where}.head is '{teacher.head}', which is about a classifier, and a detector has none. "
            "Drop it, then: dvc repro params"
        )

    recipe = project.recipe("teachers", name)
    for key in _OF_LABELS:
        if getattr(recipe, key) != Recipe.model_fields[key].default:
            raise ParamsError(
                f"params.yaml: the recipe of {where} has {key}, which is about labels of images, and detectors have "
                "losses of their own. Drop it, then: dvc repro params"
            )

    # Only now: torchvision takes a second to import, which those pay who name a detector.
    from pipeline.detection import first_weights
    from pipeline.detection.detector import NETWORKS

    if teacher.network not in NETWORKS:
        raise unknown_name(f"detector of {where}.network:", teacher.network, NETWORKS)
    weights = project.detector_weights(name)
    with placed(f"{where}.weights"):
        first_weights.check(teacher.network, weights)
    return DetectorBlock(
        stage=f"train_teacher@{name}",
        teacher=name,
        dataset=teacher.dataset,
        network=teacher.network,
        settings=validate(DetectorSettings, teacher.detector, f"{where}.detector"),
        weights=weights,
        seed=teacher.seed,
        recipe=recipe,
        anchors=teacher.anchors,
        views=project.box_views[teacher.dataset],
    )


def asked(project: Project, name: str) -> AskedBlock:
    """Return what runs ask of a detector's store: nothing."""
    nothing = dict.fromkeys(project.params.tables)
    return AskedBlock(teacher=name, tables=nothing, codes=nothing, matched=())
