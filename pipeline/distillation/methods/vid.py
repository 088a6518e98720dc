"""Variational information distillation (Ahn, Hu, Damianou, Lawrence and Dai 2019, arXiv:1904.05835).

L = w_ce CE(s, y) + w_information sum_l mean 1/2 [(mu_l(f_s) - f_t)^2 / v_l + log v_l], v = softplus(rho) + 1e-5

The student predicts the teacher's map with a mean of its own and one variance a channel, which is learned; the less
certain, the less it counts. mu is three 1x1 convolutions without bias, as wide as the teacher's map, with ReLUs
between. v starts at 5. Summed over the stages with weight 1, the mean over all elements, as in CRD's tables; of maps
of two sizes the larger is averaged.

What differs: mdistiller keeps rho out of the optimizer, so its variances stay 5; they are trained here, as the paper
says and RepDistiller does.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline import seeding
from pipeline.distillation.method import BaseMethod, Batch, Context, Needs, Terms, Weights
from pipeline.distillation.places import StagesConfig, key, require_maps, smaller
from pipeline.networks.network import Taps

LEAST = 1e-5  # what is added to a variance


class Config(StagesConfig):
    """Settings of VID.

    Attributes:
        variance: what the variances start at.
    """

    variance: float = Field(default=5.0, gt=1e-4, le=1e4)
    weights: Weights = {"ce": 1.0, "information": 1.0}


class Method(BaseMethod[Config]):
    """VID: the student predicts the teacher's maps and says how certain it is."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        require_maps("VID", config, context)
        self.predictors = nn.ModuleDict()
        for tap, feature in config.pairs.items():
            student, teacher = context.student_shapes[tap][0], context.teacher_shapes[feature][0]
            # Keyed by the place: a predictor starts alike whichever others there are.
            with seeding.scope(context.seed, "predictor", tap):
                self.predictors[key(tap)] = Predictor(student, teacher, config.variance)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits and the maps of both."""
        return config.needs

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `information`, summed over the places."""
        places = []
        for tap, feature in self.config.pairs.items():
            s, t = smaller(student[tap], batch.teacher[feature])
            places.append(self.predictors[key(tap)](s, t))
        ce = batch.cross_entropy(student["logits"])
        return {"ce": ce, "information": torch.stack(places).sum()}


class Predictor(nn.Module):
    """Predicts a map of the teacher from one of the student, with a variance a channel.

    Args:
        student: channels of the student's map.
        teacher: channels of the teacher's map.
        variance: what the variances start at.
    """

    def __init__(self, student: int, teacher: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student, teacher, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 1, bias=False),
        )
        self.rho = nn.Parameter(torch.full((teacher,), _inverse_softplus(variance - LEAST)))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean negative log-likelihood, without its constant, of maps (B, C_S, H, W) and (B, C_T, H, W)."""
        variance = (F.softplus(self.rho) + LEAST).view(1, -1, 1, 1)
        error: Tensor = (self.mean(student) - teacher).square()
        return (0.5 * (error / variance + variance.log())).mean()


def _inverse_softplus(value: float) -> float:
    """Return log(exp(value) - 1), in the form that no large value overflows."""
    return value + math.log(-math.expm1(-value))
