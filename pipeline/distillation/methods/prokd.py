"""Pro-KD (Rezagholizadeh et al. 2021, arXiv:2110.08532): the student follows the teacher's footsteps, then the labels.

L = 1/K ||s - phi t||^2, a mean over the batch, in the phase `general`; phi = T / tau, T = 1 + floor(tau e / E)
L = CE(s, y) in the phase `main`

e is the epoch from 0 to E - 1: the teacher's logits are softened the most at first, and are taken as they are in the
last epochs (where E is tau at least). t are those of a checkpoint of the teacher's own training, and the schedule says
of which: `anchors: {anchors: [anchor_025, anchor_050, anchor_075, last]}` splits them evenly over `general`, which has
the student's recipe. With the schedule `final` it is Annealing-KD (Jafari et al. 2021, arXiv:2104.07163).

Of the paper the abstract alone could be read: the student follows the teacher's checkpoints, at a temperature that
adapts, in a general step without labels, and learns the labels afterwards. The squared distance, phi, and tau = 10 are
choices: those of Annealing-KD, by the same authors, whose code for CIFAR is public. So is the phase of the labels: half
as long as `general` (100 epochs after 200), and its learning rate starts anew and drops at the same shares of it. What
differs: that code goes on from the student's best epoch of the first phase, here it goes on from the last.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field

from pipeline.distillation.method import BaseMethod, Batch, MethodConfig, Needs, Terms, Weights
from pipeline.networks.network import Taps
from pipeline.params.recipe import Phase, Recipe

FIRST = "general"  # the phase


class Config(MethodConfig):
    """Settings of Pro-KD.

    Attributes:
        temperatures: tau, how many factors phi goes through; 1 takes the teacher's logits as they are.
        labels: epochs of the phase `main`, as a share of the recipe's, which are those of `general`.
    """

    temperatures: int = Field(default=10, ge=1, le=1000)
    labels: float = Field(default=0.5, gt=0, le=1)
    weights: Weights = {"ce": 1.0, "logits": 1.0}


class Method(BaseMethod[Config]):
    """Pro-KD: the teacher's logits, ever less softened, and then the labels alone."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits of both."""
        return Needs(student=("logits",), teacher=("logits",))

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        """Return the phase of the teacher and that of the labels, over which no checkpoints are spread."""
        return (Phase(FIRST, recipe), Phase("main", recipe.shortened(self.config.labels), taught=False))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `logits` in the phase of the teacher, then `ce`."""
        s = student["logits"]  # (B, K)
        if batch.phase != FIRST:
            return {"ce": batch.cross_entropy(s)}
        factors = self.config.temperatures
        phi = (1 + factors * batch.epoch // batch.epochs) / factors
        return {"logits": F.mse_loss(s, phi * batch.teacher["logits"])}
