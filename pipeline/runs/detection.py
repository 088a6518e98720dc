"""What may be asked for of a data set with boxes: teachers and students that are detectors.

What else there is for classifiers is refused here, before anything runs.
"""

from __future__ import annotations

from pipeline.detection.detector_settings import DetectorSettings
from pipeline.detection.spec import DetectorBlock, DetectorStudentBlock
from pipeline.errors import ParamsError, unknown_name
from pipeline.params.base import placed, validate
from pipeline.params.matchings import BorrowedParams
from pipeline.params.recipe import Recipe
from pipeline.params.students import StudentParams
from pipeline.params.tasks import DETECTION
from pipeline.params.teachers import TeacherParams
from pipeline.params.weights import Weights
from pipeline.runs.project import Kind, Project

# Of a teacher, what says something of its store, and of a recipe, what weighs labels.
_STORED = ("features", "checkpoints", "compression", "tables")
_OF_LABELS = ("label_smoothing", "class_weights", "sampling")


def is_detector(project: Project, teacher: str) -> bool:
    """Say whether a teacher finds boxes."""
    return project.tasks[project.params.teachers[teacher].dataset] == DETECTION


def detectors(project: Project) -> list[str]:
    """Return the teachers that find boxes."""
    return [name for name in project.params.teachers if is_detector(project, name)]


def learns_boxes(project: Project, student: str) -> bool:
    """Say whether a student finds boxes."""
    return project.tasks[project.params.students[student].dataset] == DETECTION


def learners(project: Project) -> list[str]:
    """Return the students that find boxes."""
    return [name for name in project.params.students if learns_boxes(project, name)]


def check(project: Project) -> None:
    """Refuse what is asked for of a data set with boxes and cannot be had, and settings of detectors elsewhere.

    Raises:
        ParamsError: it is something that is there for classification alone; the message says what.
    """
    params = project.params
    for section, entries in (("borrowed", params.borrowed), ("exports", params.exports)):
        for name, entry in entries.items():
            pair = entry.pair if isinstance(entry, BorrowedParams) else name.partition("/")[0]
            student = params.pairs[pair].student
            if learns_boxes(project, student):
                raise ParamsError(
                    f"params.yaml: {section}.{name} has the student '{student}', which finds boxes, and there is no "
                    "such thing of these. Remove it, then: dvc repro params"
                )
    for name, copy in params.copies.items():
        if is_detector(project, copy.teacher):
            raise ParamsError(
                f"params.yaml: copies.{name} has the teacher '{copy.teacher}', which finds boxes, and of these there "
                "are no copies. Remove it, then: dvc repro params"
            )
    for name, assistant in params.assistants.items():
        if is_detector(project, assistant.teacher):
            raise ParamsError(
                f"params.yaml: assistants.{name} has the teacher '{assistant.teacher}', which finds boxes, and "
                "assistants learn none. Remove it, then: dvc repro params"
            )
    for section in ("teachers", "students"):
        for name, network in getattr(params, section).items():
            if network.detector and project.tasks[network.dataset] != DETECTION:
                raise ParamsError(
                    f"params.yaml: {section}.{name}.detector has settings of detectors, and its data set "
                    f"'{network.dataset}' has no boxes. Drop them, then: dvc repro params"
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
    weights = _check_network(project, "teachers", name, recipe)
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


def student_block(project: Project, name: str) -> DetectorStudentBlock:
    """Return what a student alone is resolved from; see `train_block`."""
    student, where, recipe = (
        project.params.students[name],
        f"students.{name}",
        project.recipe("students", name),
    )
    weights = _check_network(project, "students", name, recipe)
    return DetectorStudentBlock(
        stage=f"student_inputs@{name}",
        student=name,
        dataset=student.dataset,
        network=student.network,
        settings=validate(DetectorSettings, student.detector, f"{where}.detector"),
        weights=weights,
        recipe=recipe,
        views=project.box_views[student.dataset],
    )


def _check_network(project: Project, kind: Kind, name: str, recipe: Recipe) -> Weights:
    """Check network and recipe of a detector, and return where its first weights come from."""
    network: TeacherParams | StudentParams = getattr(project.params, kind)[name]
    where = f"{kind}.{name}"
    check_recipe(recipe, where)

    # Only now: torchvision takes a second to import, which those pay who name a detector.
    from pipeline.detection import first_weights
    from pipeline.detection.detector import NETWORKS

    if network.network not in NETWORKS:
        raise unknown_name(f"detector of {where}.network:", network.network, NETWORKS)
    weights = project.detector_weights(kind, name)
    with placed(f"{where}.weights"):
        first_weights.check(network.network, weights)
    return weights


def check_recipe(recipe: Recipe, where: str) -> None:
    """Refuse a recipe with settings that are about labels of images.

    Args:
        recipe: the recipe.
        where: whose it is, for instance "teachers.finder".

    Raises:
        ParamsError: it has some.
    """
    for key in _OF_LABELS:
        if getattr(recipe, key) != Recipe.model_fields[key].default:
            raise ParamsError(
                f"params.yaml: the recipe of {where} has {key}, which is about labels of images, and detectors have "
                "losses of their own. Drop it, then: dvc repro params"
            )
