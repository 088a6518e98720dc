"""OFD, an overhaul of feature distillation (Heo, Kim, Yun, Park, Kwak and Choi 2019, arXiv:1904.01866).

L = w_ce CE(s, y) + w_overhaul sum_l 2^(l - n) 1/B sum over channels and pixels of d(r(s), max(t, m))

s and t are maps before their ReLU, l = 1 to n the stages. d(a, b) is (a - b)^2 where a > b or b > 0, and 0 elsewhere:
what is to be inactive may lie lower. r is a 1x1 convolution with BN, and the teacher's map is averaged to the
student's size. The margin m of a channel is the mean of what its ReLU cuts off, E[x | x < 0] of a normal x whose mean b
and deviation g are the bias and the absolute weight of the teacher's BN before it:

m = b - g exp(-(b / g)^2 / 2) / (sqrt(2 pi) Phi(-b / g)), and -3 g where Phi(-b / g) <= 0.001

Which BN that is, the network says (`Network.norms`): the last one of a residual block's branch, the next block's first
one of a WRN. In ShuffleNetV2 half of the channels have none, so it cannot teach, and neither can networks of timm.
The weight is 1e-3 on CIFAR, and 1e-4 from ResNet50 to MobileNetV1 on ImageNet. Where one network has more stages, the
last ones are paired, as in mdistiller.

What differs: the authors, and mdistiller after them, leave the teacher in training mode, so that its BNs use the batch;
here they use their own statistics, as for every method.
"""

from __future__ import annotations

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import seeding
from pipeline.distillation.method import BaseMethod, Batch, Context, Known, Needs, Terms, Weights
from pipeline.distillation.places import StagesConfig, before_relu, key, require_maps
from pipeline.errors import ParamsError
from pipeline.features.encoding import Feature
from pipeline.networks.architecture import Architecture
from pipeline.networks.blocks import conv_bn, fan_out
from pipeline.networks.network import Taps

RARE = 1e-3  # the share of a channel below 0 from which on its mean there is not asked for


class Config(StagesConfig):
    """Settings of OFD.

    Attributes:
        places: teacher feature by student tap, both of them maps before their ReLU; the teacher's has a BN before it.
            None pairs the stages of both networks in their order, the last ones where one has more.
    """

    weights: Weights = {"ce": 1.0, "overhaul": 1e-3}

    def resolved(self, known: Known) -> Self:
        """Return these settings with the places filled in, all names in full.

        Raises:
            ParamsError: two names are the same tap, or the teacher has no BN before a feature.
        """
        config = super().resolved(known)
        if self.places is None:
            student, teacher = before_relu(known.student), before_relu(known.teacher)
            count = min(len(student), len(teacher))
            last = (names[len(names) - count :] for names in (student, teacher))
            config = config.model_copy(update={"places": dict(zip(*last, strict=True))})
        for feature in config.pairs.values():
            _check_norm(feature, known.teacher)
        return config


class Method(BaseMethod[Config]):
    """OFD: what the teacher activates, the student matches; what it does not, the student stays below."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        require_maps("OFD", config, context)
        teacher = context.teacher
        self.connectors = nn.ModuleDict()
        for tap, feature in config.pairs.items():
            channels = context.teacher_shapes[feature][0]
            with seeding.scope(context.seed, "connector", tap):
                self.connectors[key(tap)] = conv_bn(context.student_shapes[tap][0], channels, 1).apply(
                    fan_out
                )
            # A rehearsal has no teacher, and reads no margin.
            values = torch.zeros(channels) if teacher is None else margin(teacher.norms()[feature])
            self.register_buffer(_margin_of(tap), values.view(-1, 1, 1), persistent=False)  # (C, 1, 1)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits, the maps of both, and the teacher's BNs."""
        return config.needs | Needs(student=(), network=True)

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `overhaul`, summed over the places."""
        count = len(self.config.pairs)
        places = []
        for number, (tap, feature) in enumerate(self.config.pairs.items(), start=1):
            s = self.connectors[key(tap)](student[tap])  # (B, C, H, W)
            t = batch.teacher[feature]
            if t.shape != s.shape:
                t = F.adaptive_avg_pool2d(t, (s.shape[2], s.shape[3]))
            target = torch.maximum(t, self.get_buffer(_margin_of(tap)))
            places.append(2.0 ** (number - count) * partial(s, target))
        return {"ce": batch.cross_entropy(student["logits"]), "overhaul": torch.stack(places).sum()}


def partial(student: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of maps (B, C, H, W) where one is to be active, or is too much so: a mean over B."""
    counts = (student > target) | (target > 0)
    return torch.where(counts, student - target, 0.0).square().sum() / len(student)


@torch.no_grad()
def margin(norm: nn.BatchNorm2d) -> Tensor:
    """Return the mean of each channel (C,) that a BN gives, where it is below 0."""
    # A weight of 0 makes a channel that is its bias everywhere.
    scale = norm.weight.double().abs().clamp(min=1e-12)
    shift = norm.bias.double()
    share = torch.special.ndtr(-shift / scale)
    density = torch.exp(-((shift / scale) ** 2) / 2) / math.sqrt(2 * math.pi)
    return torch.where(share > RARE, shift - scale * density / share, -3 * scale).to(norm.weight.dtype)


def _margin_of(tap: str) -> str:
    return f"margin_{key(tap)}"


def _check_norm(feature: str, teacher: Architecture) -> None:
    """Refuse a feature of the teacher that has no BN before it; one that does not exist is refused elsewhere."""
    if Feature.parse(feature).tap in teacher.taps and feature not in teacher.norms:
        raise ParamsError(
            f"OFD reads the BN before teacher feature '{feature}', and this teacher has none there, but before "
            f"{', '.join(teacher.norms) or 'no tap at all'}. Choose other places, or a teacher of another family, in "
            "params.yaml."
        )
