"""Flow of the solution procedure (Yim, Joo, Bae and Kim, CVPR 2017), as CRD's tables train it (arXiv:1910.10699).

L = w_flow sum_l mean (G_s^l - G_t^l)^2 in the phase `flow`, of 30 epochs
L = w_ce CE(s, y) in the phase `main`

G^l[i, j], the mean over pixels of F^l[i] F^(l+1)[j], is what two maps that follow each other have in common, from the
stem to the last stage; the larger one is averaged. So stages of student and teacher need the same number of channels.
w = 50. In the first phase the learning rate does not drop, and the classifier keeps its first weights.

What differs: RepDistiller keeps the statistics of what it does not train in the first phase.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from pipeline.distillation.method import BaseMethod, Batch, Context, Needs, Terms, Weights
from pipeline.distillation.places import PhasedConfig, Role, require_maps, smaller
from pipeline.errors import ShapeError
from pipeline.networks.architecture import Architecture
from pipeline.networks.network import Taps
from pipeline.params.recipe import Phase, Recipe

FIRST = "flow"  # the phase


class Config(PhasedConfig):
    """Settings of FSP.

    Attributes:
        places: teacher feature by student tap, in the networks' order, two or more. None is the stem and every stage.
    """

    weights: Weights = {"ce": 1.0, "flow": 50.0}

    @classmethod
    def stages(cls, network: Architecture, role: Role) -> tuple[str, ...]:
        """Return the stem and the stages, of either network."""
        return (*(("stem",) if "stem" in network.taps else ()), *network.stages)


class Method(BaseMethod[Config]):
    """FSP: from each stage to the next the student goes as the teacher does."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        require_maps("FSP", config, context)
        if len(config.pairs) < 2:
            raise ShapeError(
                f"FSP pairs maps that follow each other, and its places are {', '.join(config.pairs)} alone. Name two "
                "or more, in the run's settings in params.yaml."
            )
        for tap, feature in config.pairs.items():
            own, other = context.student_shapes[tap][0], context.teacher_shapes[feature][0]
            if own != other:
                raise ShapeError(
                    f"FSP pairs maps of as many channels: student tap '{tap}' has {own}, teacher feature '{feature}' "
                    f"{other}. Choose other places, in the run's settings in params.yaml."
                )

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits and the maps of both."""
        return config.needs

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        """Return the phase of the flow and that of the labels."""
        return self.config.phases(FIRST, recipe)

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `flow` in its phase, then `ce`; both where they are trained at once."""
        terms: Terms = {}
        if self.config.teaches(FIRST, batch):
            flows = [
                (flow(student[a], student[b]) - flow(batch.teacher[x], batch.teacher[y])).square().mean()
                for (a, x), (b, y) in pairwise(self.config.pairs.items())
            ]
            terms["flow"] = torch.stack(flows).sum()
        if batch.phase != FIRST:
            terms["ce"] = batch.cross_entropy(student["logits"])
        return terms


def flow(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean products (B, C, D) over pixels of two maps (B, C, H, W) and (B, D, h, w) of one network."""
    a, b = (x.flatten(2) for x in smaller(first, second))
    return a @ b.transpose(1, 2) / a.shape[2]
