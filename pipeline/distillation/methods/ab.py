"""Activation boundaries (Heo, Lee, Yun and Choi 2019, arXiv:1811.03233), as CRD's tables train them.

L = (3 / 1000) sum_l 2^(l - n) 1/B sum max(1 - sign(t) s, 0)^2 in the phase `boundary`, of 30 epochs
L = w_ce CE(s, y) in the phase `main`

s and t are maps before their ReLU, l = 1 to n the stages; s should fall on the side of 0 that t is on, by a margin of
1, and sign(0) is -1. The sum is over channels and pixels. Where the shapes of two maps differ, a regressor without ReLU
stands between. In the first phase the learning rate does not drop, and the classifier keeps its first weights. The
factor 3 / 1000 is RepDistiller's.

With `epochs: 0` there is no phase of its own and both terms are trained at once, which is how KCD's table is read:
`{epochs: 0, weights: {boundary: 10}}`. What differs: the original has a temperature of 3 and KL alone in its second
phase, and in the first one RepDistiller keeps the statistics of what it does not train.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline import seeding
from pipeline.distillation.method import BaseMethod, Batch, Context, Needs, Terms, Weights
from pipeline.distillation.places import PhasedConfig, Role, before_relu, key, require_maps
from pipeline.distillation.regressor import regressor
from pipeline.networks.architecture import Architecture
from pipeline.networks.network import Taps
from pipeline.params.recipe import Phase, Recipe

SCALE = 3 / 1000
FIRST = "boundary"  # the phase


class Config(PhasedConfig):
    """Settings of AB.

    Attributes:
        places: teacher feature by student tap, both of them maps before their ReLU. None pairs the stages of both
            networks in their order.
    """

    weights: Weights = {"ce": 1.0, "boundary": 1.0}

    @classmethod
    def stages(cls, network: Architecture, role: Role) -> tuple[str, ...]:
        """Return the stages' maps before their ReLU, of either network."""
        return before_relu(network)


class Method(BaseMethod[Config]):
    """AB: the student's neurons are active where the teacher's are."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        require_maps("AB", config, context)
        self.connectors = nn.ModuleDict()
        for tap, feature in config.pairs.items():
            student, teacher = context.student_shapes[tap], context.teacher_shapes[feature]
            with seeding.scope(context.seed, "connector", tap):
                self.connectors[key(tap)] = (
                    nn.Identity() if student == teacher else regressor(student, teacher, relu=False)
                )

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits and the maps of both."""
        return config.needs

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        """Return the phase of the boundaries and that of the labels."""
        return self.config.phases(FIRST, recipe)

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `boundary` in its phase, then `ce`; both where they are trained at once."""
        terms: Terms = {}
        if self.config.teaches(FIRST, batch):
            count = len(self.config.pairs)
            places = [
                2.0 ** (number - count)
                * boundary(self.connectors[key(tap)](student[tap]), batch.teacher[feature])
                for number, (tap, feature) in enumerate(self.config.pairs.items(), start=1)
            ]
            terms["boundary"] = SCALE * torch.stack(places).sum()
        if batch.phase != FIRST:
            terms["ce"] = batch.cross_entropy(student["logits"])
        return terms


def boundary(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how far maps (B, C, H, W) lie from the teacher's side of 0, beyond a margin of 1: a mean over samples."""
    wrong = torch.where(teacher > 0, 1 - student, 1 + student).clamp(min=0)
    return wrong.square().sum() / len(student)
