"""Curriculum temperature (Li, Li, Yang, Zhao, Song, Luo, Li and Yang 2023, arXiv:2211.16231), in its global form.

L = w_ce CE(s, y) + w_kd T^2 KL(softmax(t / T) || softmax(s / T)), T = 1 + 20 sigmoid(theta)

T is learned against the student: theta climbs the loss that the student descends, so that what is asked grows harder.
How fast it climbs, r = (1 - cos(pi min(epoch, 10) / 10)) / 2, is 0 in the first epoch and 1 from the eleventh on. theta
starts at 1, and weights are KD's; both are the authors'. Which T an epoch ended with is in its history.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.distillation.losses import log_kl
from pipeline.distillation.method import BaseMethod, Batch, Context, MethodConfig, Needs, Terms, Weights
from pipeline.networks.network import Taps
from pipeline.params.numbers import Epochs, Temperature


class Config(MethodConfig):
    """Settings of CTKD.

    Attributes:
        least: of all temperatures.
        span: how far above it they go, at most.
        ramp: epochs over which the temperature comes to climb at full speed; 0 is at once.
    """

    least: Temperature = 1.0
    span: Temperature = 20.0
    ramp: Epochs = 10
    weights: Weights = {"ce": 0.1, "kd": 0.9}


class Method(BaseMethod[Config]):
    """CTKD: KD at a temperature that is learned to be hard."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.theta = nn.Parameter(torch.ones(()))

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits of both."""
        return Needs(student=("logits",), teacher=("logits",))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `kd`."""
        s, t = student["logits"], batch.teacher["logits"]  # (B, K), (B, K)
        speed = self._speed(batch.epoch)
        # theta itself, with a gradient that is turned round.
        theta = ((1 + speed) * self.theta).detach() - speed * self.theta
        temperature = self.config.least + self.config.span * torch.sigmoid(theta)

        log_p, log_q = (F.log_softmax(x / temperature, dim=1) for x in (t, s))
        return {"ce": batch.cross_entropy(s), "kd": log_kl(log_q, log_p, temperature)}

    def diagnose(self) -> dict[str, float]:
        """Return the temperature that the epoch ended with."""
        return {"temperature.last": self.config.least + self.config.span * torch.sigmoid(self.theta).item()}

    def _speed(self, epoch: Tensor) -> Tensor:
        """Return how fast the temperature climbs in an epoch, from 0 to 1."""
        if not self.config.ramp:
            return torch.ones_like(epoch, dtype=self.theta.dtype)
        share = (epoch / self.config.ramp).clamp(max=1)
        return (1 - torch.cos(math.pi * share)) / 2
