"""Self-taught teachers (SLKD*, the sequential form of SLKD, arXiv:2304.11923): copies that have learned already.

With KL_tau(p, q) = tau^2 KL(softmax(p / tau) || softmax(q / tau)), summed over classes, mean over the batch:

L = L_method(T, s) + beta [a CE(s) + b KL_tau(sum_j w_j c_j, s)]

The copies c_j have been trained once by the stage `train_copy`, from the teacher's cached logits and for the
whole schedule, and are frozen: their stored logits are read, so a step costs what KD's costs, and all students share
them. The paper does not say whether it fuses two; `names` says which, two for what is fused with w = 0.5.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.distillation.method import Batch, Needs
from pipeline.distillation.schedule import Teaching
from pipeline.distillation.schedules.self_learning import Fused, FusedConfig
from pipeline.networks.network import Taps
from pipeline.params.numbers import Names


class Config(FusedConfig):
    """Settings.

    Attributes:
        names: keys of `copies` in params.yaml, copies of the run's teacher.
    """

    names: Names = Field(min_length=1)

    @property
    def number(self) -> int:
        """How many copies there are."""
        return len(self.names)


class Schedule(Fused[Config]):
    """The teacher's lesson, and what the student learns from copies of it that have learned already."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits of both."""
        return Needs(student=("logits",), teacher=("logits",))

    @classmethod
    def copies(cls, config: Config) -> tuple[str, ...]:
        """Return the copies' names."""
        return config.names

    def forward(self, student: Taps, batch: Batch) -> Teaching:
        """Return the lessons, and the student's terms of the fused logits."""
        return self.teach(student, batch, [batch.teacher[f"{name}/logits"] for name in self.config.names])
