"""The `students` section of params.yaml."""

from __future__ import annotations

from pipeline.params.base import Block
from pipeline.params.recipe import Recipe
from pipeline.params.views import ViewParams


class StudentParams(Block):
    """A student network and how it is trained.

    Attributes:
        dataset: a key of `datasets`.
        family: a file of `pipeline/networks/families`.
        network: a network of that family.
        recipe: how it is trained, alone and distilled.
    """

    dataset: str
    family: str
    network: str
    recipe: Recipe = Recipe()


class StudentBlock(StudentParams):
    """What `student_inputs` depends on: a student, and its data set's views."""

    student: str
    views: ViewParams
