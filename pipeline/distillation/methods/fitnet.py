"""FitNets (Romero et al. 2015, arXiv:1412.6550), trained jointly as in CRD's tables (arXiv:1910.10699).

L = w_ce CE(s, y) + w_hint MSE(r(f_s), f_t), the mean over all elements. The regressor r is a convolution, BN
and ReLU that takes the student's map to the teacher's shape: 3x3 with stride 2 from twice the size, 4x4
transposed with stride 2 from half of it, and else k x k without padding, k = 1 + difference of the sizes.

What differs: the original trains r and the student's first half in a stage of its own; CRD's tables, which
everyone compares with, train all at once with weight 100 at the second stage. Where the teacher's map cannot
be negative the last ReLU is harmless; `relu: false` leaves it out for pre-activations and WRN's raw sums.
`standardize` names a fitted `moments` table: teacher channels are then scaled to mean 0 and deviation 1 first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    Needs,
    Terms,
    Weights,
)
from pipeline.distillation.places import PlaceConfig
from pipeline.distillation.regressor import regressor
from pipeline.errors import ShapeError
from pipeline.networks.network import Taps


class Config(PlaceConfig):
    """Settings of FitNets.

    Attributes:
        student_tap: where the student is guided.
        teacher_feature: the hint, a map.
        relu: end the regressor with a ReLU.
        standardize: a `moments` table of the teacher's feature, or None.
    """

    student_tap: str = "stage2"
    teacher_feature: str = "stage2"
    relu: bool = True
    standardize: str | None = None
    weights: Weights = {"ce": 1.0, "hint": 100.0}


class Method(BaseMethod[Config]):
    """FitNets: the student's map predicts the teacher's through a regressor that is dropped afterwards."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        student = context.student_shapes[config.student_tap]
        teacher = context.teacher_shapes[config.teacher_feature]
        # Standardized channels have mean 0, and no ReLU gives what is below it.
        self.regressor = regressor(student, teacher, relu=config.relu and config.standardize is None)

        mean, scale = torch.zeros(1), torch.ones(1)
        if config.standardize is not None:
            table = context.tables[config.standardize]
            shapes = {name: table[name].shape for name in ("mean", "std") if name in table}
            if shapes != {"mean": teacher[:1], "std": teacher[:1]}:
                raise ShapeError(
                    f"FitNet standardizes {teacher[0]} channels of '{config.teacher_feature}', and the table "
                    f"'{config.standardize}' holds {shapes}. Fit a 'moments' table to that feature."
                )
            mean, scale = torch.from_numpy(table["mean"]).float(), torch.from_numpy(table["std"]).float()

        # A channel that never varies is left as it is, near 0, and not divided by 0.
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", scale.clamp(min=1e-6).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the two maps, the student's logits and the table."""
        tables = () if config.standardize is None else (config.standardize,)
        return config.needs | Needs(student=(), tables=tables)

    @classmethod
    def compared(cls, config: Config) -> tuple[str, str]:
        """Return the two maps."""
        return config.place

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `hint`."""
        hint = (batch.teacher[self.config.teacher_feature] - self.mean) / self.scale  # (B, C, H, W)
        guided = self.regressor(student[self.config.student_tap])  # (B, C, H, W)
        return {
            "ce": batch.cross_entropy(student["logits"]),
            "hint": F.mse_loss(guided, hint),
        }
