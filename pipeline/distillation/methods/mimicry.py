"""Mimicry of a map, without soft targets: what KCD calls "Ours" (Han et al. 2021, arXiv:2103.16844).

L = w_ce CE(s, y) + w_mimic ||F_s - F_t||^2, the mean over all elements, with weight 100.

The paper gives neither reduction nor weight for it; both are FitNets', whose loss it is without the regressor. So
maps must have equal shapes: `transform: permutation` gives the teacher's map the student's channels (that run is
KCD), and without it this is the untransformed counterpart. `reduction: sum` adds up over channels and pixels and takes
the mean over the batch: the form of the paper's detection experiments, with weight 1e-4 on maps before their ReLU.
"""

from __future__ import annotations

from typing import Literal

from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    Needs,
    Terms,
    Weights,
)
from pipeline.distillation.places import PlaceConfig
from pipeline.errors import ShapeError
from pipeline.networks.network import Taps


class Config(PlaceConfig):
    """Settings of mimicry.

    Attributes:
        student_tap: what mimics.
        teacher_feature: what is mimicked.
        reduction: "mean" over all elements, or "sum" over those of a sample.
    """

    student_tap: str = "final"
    teacher_feature: str = "final"
    reduction: Literal["mean", "sum"] = "mean"
    weights: Weights = {"ce": 1.0, "mimic": 100.0}


class Method(BaseMethod[Config]):
    """Mimicry: the student's map is the teacher's."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        student = context.student_shapes[config.student_tap]
        teacher = context.teacher_shapes[config.teacher_feature]
        if student != teacher:
            same = student[1:] == teacher[1:]
            cure = "Add transform: permutation to the run" if same else "Choose taps of one size"
            raise ShapeError(
                f"Mimicry pairs equal shapes: student tap '{config.student_tap}' is {student}, teacher feature "
                f"'{config.teacher_feature}' {teacher}. {cure}, in params.yaml."
            )

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the two maps and the student's logits."""
        return config.needs

    @classmethod
    def compared(cls, config: Config) -> tuple[str, str]:
        """Return the two maps."""
        return config.place

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `mimic`."""
        s, t = student[self.config.student_tap], batch.teacher[self.config.teacher_feature]  # (B, C, H, W)
        per_sample = (s - t).square().flatten(1).sum(dim=1)  # (B,)
        mimic = per_sample.mean() / (s[0].numel() if self.config.reduction == "mean" else 1)
        return {"ce": batch.cross_entropy(student["logits"]), "mimic": mimic}
