"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu and Liang 2022, arXiv:2203.08679).

L = w_ce CE(s, y) + r T^2 [w_target KL(b_t || b_s) + w_others KL(q_t || q_s)], r = min(epoch / 20, 1), epochs from 1

b = (p_y, 1 - p_y) is what a network says of the label against all other classes, and q the softmax over the other
classes alone, both of logits / T; the means are over the batch. The paper's alpha is `target`: 1. Its beta is `others`:
8 for pairs with ResNet32x4 as teacher, 6 for VGGs and WRNs, 2 for ResNet56 and 110; ImageNet has T = 1, 0.5 or 2, and a
warm-up of one epoch.

What differs: the authors keep the label out of q by subtracting 1000 from its logit; here it is left out. The sums are
taken in log-space, so that probabilities that underflow still have a gradient.
"""

from __future__ import annotations

from pipeline.distillation.losses import log_kl, one_against_others
from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    MethodConfig,
    Needs,
    StepWeights,
    Terms,
    Weights,
    warmed_up,
)
from pipeline.networks.network import Taps
from pipeline.params.numbers import Epochs, Temperature


class Config(MethodConfig):
    """Settings of DKD.

    Attributes:
        temperature: T of all softmaxes.
        warmup: epochs in which the weights of `target` and `others` grow; 0 is none.
    """

    temperature: Temperature = 4.0
    warmup: Epochs = 20
    weights: Weights = {"ce": 1.0, "target": 1.0, "others": 8.0}


class Method(BaseMethod[Config]):
    """DKD: what the teacher says of the label, and of the other classes, each with a weight of its own."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits of both, and the label."""
        return Needs(student=("logits",), teacher=("logits",), label=True)

    def weights(self, batch: Batch) -> StepWeights:
        """Return the weights of an epoch: those of `target` and `others` grow over the first ones."""
        return warmed_up(self.config.weights, ("target", "others"), self.config.warmup, batch)

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, `target` and `others`."""
        temperature = self.config.temperature
        (s, s_rest), (t, t_rest) = (
            one_against_others(x / temperature, batch.label)
            for x in (student["logits"], batch.teacher["logits"])
        )
        return {
            "ce": batch.cross_entropy(student["logits"]),
            "target": log_kl(s, t, temperature),
            "others": log_kl(s_rest, t_rest, temperature),
        }
