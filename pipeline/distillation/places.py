"""Settings of where a method learns: at one tap of the student, or at several stages at once.

CRD's tables (arXiv:1910.10699) pair the stages of both networks in their order, and so does everyone who compares with
them. Maps of two sizes meet at the smaller: the larger one is averaged.
"""

from __future__ import annotations

from typing import Literal, Self

import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.method import Batch, Context, Known, MethodConfig, Needs, resolved_taps
from pipeline.errors import ShapeError
from pipeline.networks.architecture import Architecture
from pipeline.params.numbers import Epochs
from pipeline.params.recipe import Phase, Recipe

Role = Literal["student", "teacher"]


class PlaceConfig(MethodConfig):
    """Settings of methods that compare one tap of the student with one feature of the teacher.

    Attributes:
        student_tap: what is compared of the student.
        teacher_feature: what is compared of the teacher.
    """

    student_tap: str
    teacher_feature: str

    @property
    def place(self) -> tuple[str, str]:
        """The tap and the feature."""
        return self.student_tap, self.teacher_feature

    @property
    def needs(self) -> Needs:
        """The student's logits, its tap and the teacher's feature."""
        return Needs(("logits", self.student_tap), (self.teacher_feature,))

    def resolved(self, known: Known) -> Self:
        """Return these settings with tap and feature in full."""
        return super().resolved(known).model_copy(update={
            "student_tap": known.student.resolved(self.student_tap),
            "teacher_feature": known.teacher.resolved(self.teacher_feature),
        })  # fmt: skip


class StagesConfig(MethodConfig):
    """Settings of methods that pair stages.

    Attributes:
        places: teacher feature by student tap, both of them maps. None pairs the stages of both networks in their
            order, and leaves out those at the end that only one of them has.
    """

    places: dict[str, str] | None = None

    @classmethod
    def stages(cls, network: Architecture, role: Role) -> tuple[str, ...]:
        """Return the taps of a network that are paired where no places are given: its stages."""
        return network.stages

    @property
    def pairs(self) -> dict[str, str]:
        """The places, once they are known."""
        assert self.places is not None, "settings are resolved before they are read"
        return self.places

    @property
    def needs(self) -> Needs:
        """The logits of the student, and the maps of both."""
        return Needs(("logits", *self.pairs), tuple(dict.fromkeys(self.pairs.values())))

    def resolved(self, known: Known) -> Self:
        """Return these settings with the places filled in, all names in full.

        Raises:
            ParamsError: two names are the same tap.
        """
        given = self.places
        if given is None:
            stages = self.stages(known.student, "student"), self.stages(known.teacher, "teacher")
            given = dict(zip(*stages, strict=False))
        places = resolved_taps("places", given, known.student)
        features = {tap: known.teacher.resolved(feature) for tap, feature in places.items()}
        return super().resolved(known).model_copy(update={"places": features})


def require_maps(method: str, config: StagesConfig, context: Context) -> None:
    """Refuse places that are not two maps, and settings that name none.

    Raises:
        ShapeError: a tap or a feature has no height and width, or there are no places.
    """
    if not config.pairs:
        raise ShapeError(
            f"{method} pairs stages, and these networks have none in common. Name 'places', a teacher feature for each "
            "student tap, in the run's settings in params.yaml."
        )
    for tap, feature in config.pairs.items():
        student, teacher = context.student_shapes[tap], context.teacher_shapes[feature]
        if len(student) != 3 or len(teacher) != 3:
            raise ShapeError(
                f"{method} pairs two maps: student tap '{tap}' is {student}, teacher feature '{feature}' {teacher}. "
                "Choose other places, in the run's settings in params.yaml."
            )


class PhasedConfig(StagesConfig):
    """Settings of methods that teach the features in a phase of their own before the labels.

    Attributes:
        epochs: of the first phase; 0 trains both terms at once.
    """

    epochs: Epochs = 30

    def phases(self, first: str, recipe: Recipe) -> tuple[Phase, ...]:
        """Return the phase `first`, at a constant rate and with the classifier as it is, then that of the labels."""
        labels = Phase("main", recipe)
        if not self.epochs:
            return (labels,)
        return (Phase(first, recipe.over(self.epochs), frozen=("classifier",)), labels)

    def teaches(self, first: str, batch: Batch) -> bool:
        """Say whether the features are taught in the phase of a batch."""
        return batch.phase == first or not self.epochs


def key(tap: str) -> str:
    """Return the name of a module that belongs to a tap: those of inserted layers have dots, which no module's has."""
    return tap.replace(".", "_")


def before_relu(network: Architecture) -> tuple[str, ...]:
    """Return the stages' maps before their ReLU; those of MobileNetV2 end without one."""
    return tuple(f"{stage}_pre" if f"{stage}_pre" in network.taps else stage for stage in network.stages)


def smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps (B, C_S, h, w) and (B, C_T, h, w) of the smaller one's size, the larger one averaged."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    s, t = (x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
    return s, t
