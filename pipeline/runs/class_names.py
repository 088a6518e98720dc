"""Class names in recipes, compared with the data's before anything is trained.

params.yaml does not say which classes a folder has: its raw files do, where they are on this machine, or the prepared
data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline import plugin
from pipeline.data.prepared import Prepared
from pipeline.data.raw.place import located
from pipeline.errors import StillhouseError
from pipeline.params.base import placed, validate
from pipeline.params.recipe import Recipe
from pipeline.runs.project import Project


def check(project: Project, prepared: Path) -> None:
    """Refuse class weights of classes that a data set does not have.

    Of data whose classes nobody knows yet nothing is said; whoever trains on them looks again.

    Args:
        project: the checked params.yaml.
        prepared: the folder of all prepared data sets.

    Raises:
        UnknownNameError: a recipe names a class that is not there.
    """
    for where, dataset, recipe in _recipes(project):
        if not isinstance(recipe.class_weights, dict):
            continue
        classes = _prepared(project, dataset, prepared / dataset)
        # One of both may be older than params.yaml. To list many files takes a while, so the second only where needed.
        if not recipe.class_weights.keys() <= classes:
            classes |= _raw(project, dataset)
        if classes:
            with placed(where):
                recipe.check_classes(classes, f"data set '{dataset}'")


def _recipes(project: Project) -> Iterator[tuple[str, str, Recipe]]:
    """Give the place, the data set and the recipe of all that is trained."""
    params = project.params
    for name, teacher in params.teachers.items():
        yield f"teachers.{name}.recipe", teacher.dataset, project.recipe("teachers", name)
    for name, student in params.students.items():
        yield f"students.{name}.recipe", student.dataset, project.recipe("students", name)
    for name, assistant in params.assistants.items():
        dataset = params.teachers[assistant.teacher].dataset
        yield f"assistants.{name}.recipe", dataset, project.recipe("assistants", name)
    for pair, run, block in project.distilled():
        dataset = params.students[params.pairs[pair].student].dataset
        yield f"runs.{run}.recipe (of pair {pair})", dataset, block.recipe


def _prepared(project: Project, name: str, folder: Path) -> set[str]:
    """Return the classes of prepared data; none where there are no data, or those of other settings."""
    try:
        meta = Prepared.open(folder).meta
    except (StillhouseError, OSError):
        return set()  # for the stages that read it to report
    fits = project.images[name].classes in (None, len(meta.classes))
    return set(meta.classes) if fits and meta.source == project.params.datasets[name].source.name else set()


def _raw(project: Project, name: str) -> set[str]:
    """Return the classes of raw files that can be listed; none where they are not on this machine."""
    source = project.params.datasets[name].source
    module = plugin.load("datasets", source.name)
    config = validate(module.Config, source.settings, f"datasets.{name}.source")
    path = getattr(config, "path", None)
    try:
        if path is None or not hasattr(module, "listed") or not located(path).exists():
            return set()
        return set(module.open_source(config).classes)
    except (StillhouseError, OSError):
        return set()  # for the preparation to report
