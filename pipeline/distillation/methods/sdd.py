"""Scale-decoupled distillation (Wei, Luo and Luo 2024, arXiv:2403.13512): logits of regions, beside those of the image.

L = w_ce CE(s, y) + r [w_consistent sum over C of D + w_complementary sum over the others of D] / (B R)

The map that is pooled, `final` of both networks, is averaged over 1x1, 2x2 and 4x4 cells, R = 21 regions, and each goes
through its network's own classifier. C are the regions that the teacher is right of, where it is right of the whole
image, and those that it is wrong of, where it is wrong; the others are complementary. r = min(epoch / 20, 1), epochs
from 1. D is of a region's logits, by `base`:

* `dkd`: T^2 [KL(b_t || b_s) + w KL(q_t || q_s)], as in DKD (arXiv:2203.08679)
* `nkd`: -p_t(y) log p_s(y) - w T^2 sum q_t log q_s, as in NKD (arXiv:2303.13005), p at T = 1
* `kd`: T^2 KL(p_t || p_s); the paper's weights are those of KD, {ce: 0.1, consistent: 0.9, complementary: 1.8}, and its
  code has no warm-up for it: `warmup: 0`

b is the label against all other classes, q the softmax over these alone, and w is `others`: 8, 6 or 2 by pair, as in
DKD. Pairs of one kind of architecture have `scales: [1, 2]`.

What differs: the paper compares the region's class with the image's, sums over regions and warms up for 30 epochs; its
code does what stands above. Its larger cells are means of the 4x4 ones, which is the same where 4 divides the map's
size; here each is a mean of the map itself, so that the whole image has the network's own logits. Where a map is
smaller than the cells, a pixel is several of them. The code's NKD is meant to leave the label out of q by a mask that
leaves nothing out; here it is left out.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.distillation.losses import log_kl_rows, one_against_others
from pipeline.distillation.mean import require_mean
from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    Known,
    MethodConfig,
    Needs,
    StepWeights,
    Terms,
    Weights,
    warmed_up,
)
from pipeline.networks.network import Taps
from pipeline.params.numbers import Epochs, Once, Temperature, Weight

PLACE = "final"  # of both: what is pooled, and read by the classifier
Scale = Annotated[int, Field(ge=1, le=32)]


class Config(MethodConfig):
    """Settings of SDD.

    Attributes:
        base: the loss of a region: kd, dkd or nkd.
        scales: cells a side, of each scale.
        temperature: T of the softmaxes.
        others: the weight of the other classes beside the label's, in dkd and nkd; None is 8 there, and kd has none.
        warmup: epochs in which the weights of both terms of the teacher grow; 0 is none.
    """

    base: Literal["kd", "dkd", "nkd"] = "dkd"
    scales: Annotated[tuple[Scale, ...], Field(min_length=1), Once] = (1, 2, 4)
    temperature: Temperature = 4.0
    others: Weight | None = None
    warmup: Epochs = 20
    weights: Weights = {"ce": 1.0, "consistent": 1.0, "complementary": 2.0}

    @model_validator(mode="after")
    def _check_others(self) -> Self:
        if self.base == "kd" and self.others is not None:
            raise ValueError(
                "'others' weighs a part of dkd and nkd, and base is kd. Drop it, or choose another base"
            )
        return self

    def resolved(self, known: Known) -> Self:
        """Return these settings with the weight of the other classes filled in.

        Raises:
            ParamsError: a network's classifier does not read the mean of its last map.
        """
        require_mean("SDD", "student", known.student)
        require_mean("SDD", "teacher", known.teacher)
        config = super().resolved(known)
        if self.base == "kd" or self.others is not None:
            return config
        return config.model_copy(update={"others": 8.0})


class Method(BaseMethod[Config]):
    """SDD: the student learns what the teacher says of parts of the image, most where it says something else there."""

    weight: Tensor
    bias: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        # In a tuple, which torch does not look into: it is the student's, and trained as a part of it.
        self.student = (context.student.classifier,)
        shape = context.num_classes, context.teacher_shapes[PLACE][0]
        teacher = None if context.teacher is None else context.teacher.classifier
        # A rehearsal has no teacher, and classifies nothing.
        weight = torch.zeros(shape) if teacher is None else teacher.weight.detach().clone()
        bias = torch.zeros(shape[0]) if teacher is None else teacher.bias.detach().clone()
        self.register_buffer("weight", weight, persistent=False)  # (K, C)
        self.register_buffer("bias", bias, persistent=False)  # (K,)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits, the last maps of both, the teacher's classifier and the label."""
        return Needs(("logits", PLACE), (PLACE,), network=True, label=True)

    def weights(self, batch: Batch) -> StepWeights:
        """Return the weights of an epoch: those of the teacher's terms grow over the first ones."""
        return warmed_up(self.config.weights, ("consistent", "complementary"), self.config.warmup, batch)

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, `consistent` and `complementary`."""
        (classifier,) = self.student
        s = classifier(regions(student[PLACE], self.config.scales))  # (B, R, K)
        t = F.linear(regions(batch.teacher[PLACE], self.config.scales), self.weight, self.bias)
        count = s.shape[1]
        rows = self._rows(s.flatten(0, 1), t.flatten(0, 1), batch.label.repeat_interleave(count))
        losses = rows.view(-1, count)  # (B, R)

        whole = F.linear(batch.teacher[PLACE].mean(dim=(2, 3)), self.weight, self.bias)  # (B, K)
        right = t.argmax(dim=2) == batch.label[:, None]  # (B, R)
        consistent = right == (whole.argmax(dim=1) == batch.label)[:, None]
        return {
            "ce": batch.cross_entropy(student["logits"]),
            "consistent": torch.where(consistent, losses, 0.0).sum() / losses.numel(),
            "complementary": torch.where(consistent, 0.0, losses).sum() / losses.numel(),
        }

    def _rows(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        """Return the loss (N,) of every row of logits (N, K), by their labels int64 (N,)."""
        temperature, others = self.config.temperature, self.config.others
        if self.config.base == "kd":
            s, t = (F.log_softmax(x / temperature, dim=1) for x in (student, teacher))
            return log_kl_rows(s, t, temperature)

        assert others is not None, "settings are resolved before they are read"
        (s, s_rest), (t, t_rest) = (one_against_others(x / temperature, label) for x in (student, teacher))
        if self.config.base == "dkd":
            return log_kl_rows(s, t, temperature) + others * log_kl_rows(s_rest, t_rest, temperature)
        log_q, log_p = (F.log_softmax(x, dim=1).gather(1, label[:, None])[:, 0] for x in (student, teacher))
        return -log_p.exp() * log_q - others * temperature**2 * (t_rest.exp() * s_rest).sum(dim=1)


def regions(x: Tensor, scales: tuple[int, ...]) -> Tensor:
    """Return the means (B, R, C) of the cells of a map (B, C, H, W), of each scale in its turn."""
    cells = [F.adaptive_avg_pool2d(x, scale).flatten(2) for scale in scales]  # (B, C, scale * scale)
    return torch.cat(cells, dim=2).transpose(1, 2)
