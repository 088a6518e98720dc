"""Knowledge review (Chen, Liu, Zhao and Jia 2021, arXiv:2104.09044).

L = w_ce CE(s, y) + r w_review sum_l h(u_l, t_l), r = min(epoch / 20, 1), epochs from 1

h(u, t) = [MSE(u, t) + sum_k 2^-k MSE(pool_k u, pool_k t)] / (1 + sum_k 2^-k), pooled to 4, 2 and 1 pixels a side

A level of the teacher is learned by all levels of the student from it on. From the last to the first: the student's map
goes through a 1x1 convolution and BN, is joined with what comes from the level behind it, x a + y b by two maps of
weights (a, b) = sigmoid of a 1x1 convolution of both, is brought to the teacher's size, and a 3x3 convolution with BN
gives u. The levels are the stages and, behind them, the pooled features: the student's as they are, the teacher's
before their ReLU. Sizes that are not smaller than the map are left out of the pools.

Weights: 5 for WRNs, ResNet32x4 and ShuffleNetV1, 8 for ShuffleNetV2, 0.6 for ResNet56 -> 20, 1 for ResNet110 -> 32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import seeding
from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    Needs,
    StepWeights,
    Terms,
    Weights,
    warmed_up,
)
from pipeline.distillation.places import Role, StagesConfig, before_relu, key, require_maps
from pipeline.networks.architecture import Architecture
from pipeline.networks.network import Shape, Taps
from pipeline.params.numbers import Epochs

WIDEST = 512  # channels of what goes from level to level, at most
POOLS = (4, 2, 1)
LAST = "pooled"


class Config(StagesConfig):
    """Settings of ReviewKD.

    Attributes:
        places: teacher feature by student tap, maps in the networks' order; the pooled features of both follow them.
            None pairs the student's stages with the teacher's before their ReLU.
        warmup: epochs in which the weight of `review` grows; 0 is none.
    """

    warmup: Epochs = 20
    weights: Weights = {"ce": 1.0, "review": 5.0}

    @classmethod
    def stages(cls, network: Architecture, role: Role) -> tuple[str, ...]:
        """Return the student's stages, and the teacher's before their ReLU."""
        return network.stages if role == "student" else before_relu(network)


class Method(BaseMethod[Config]):
    """ReviewKD: deep levels of the student help its shallow ones to learn the teacher's."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        require_maps("ReviewKD", config, context)
        student = [_map(context.student_shapes[tap]) for tap in (*config.pairs, LAST)]
        teacher = [_map(context.teacher_shapes[feature]) for feature in (*config.pairs.values(), LAST)]

        width = min(WIDEST, student[-1][0])
        self.levels = nn.ModuleDict()
        for name, own, other in zip((*config.pairs, LAST), student, teacher, strict=True):
            with seeding.scope(context.seed, "level", name):
                self.levels[key(name)] = Level(own, other, width, joined=name != LAST)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits, and the maps and pooled features of both."""
        return config.needs | Needs((LAST,), (LAST,))

    def weights(self, batch: Batch) -> StepWeights:
        """Return the weights of an epoch: that of `review` grows over the first ones."""
        return warmed_up(self.config.weights, ("review",), self.config.warmup, batch)

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `review`."""
        passed: Tensor | None = None
        levels = []
        for tap, feature in reversed([*self.config.pairs.items(), (LAST, LAST)]):
            learned, passed = self.levels[key(tap)](_pixels(student[tap]), passed)
            levels.append(hierarchical(learned, _pixels(batch.teacher[feature])))
        return {"ce": batch.cross_entropy(student["logits"]), "review": torch.stack(levels).sum()}


class Level(nn.Module):
    """One level of the student, joined with those behind it.

    Args:
        student: shape of its map (C, H, W).
        teacher: shape of the map that it learns.
        width: channels of what goes from level to level.
        joined: there is a level behind it.
    """

    def __init__(self, student: Shape, teacher: Shape, width: int, *, joined: bool) -> None:
        super().__init__()
        self.own, self.size = student[1:], teacher[1:]
        self.enter = nn.Sequential(nn.Conv2d(student[0], width, 1, bias=False), nn.BatchNorm2d(width))
        self.leave = nn.Sequential(
            nn.Conv2d(width, teacher[0], 3, padding=1, bias=False), nn.BatchNorm2d(teacher[0])
        )
        self.join = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if joined else None
        for layer in (*self.enter, *self.leave):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(self, x: Tensor, behind: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what learns the teacher's map (B, C_T, h, w), and what the next level is joined with.

        Args:
            x: the student's map (B, C, H, W).
            behind: what the level behind it has passed on (B, width, ...).
        """
        x = self.enter(x)
        if self.join is not None:
            assert behind is not None
            behind = F.interpolate(behind, self.own, mode="nearest")
            weights = self.join(torch.cat([x, behind], dim=1))  # (B, 2, H, W)
            x = x * weights[:, :1] + behind * weights[:, 1:]
        if tuple(x.shape[2:]) != tuple(self.size):
            x = F.interpolate(x, self.size, mode="nearest")
        return self.leave(x), x


def hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error of two maps (B, C, H, W) at several sizes."""
    total, weight, whole = F.mse_loss(student, teacher), 1.0, 1.0
    for size in POOLS:
        if size >= min(student.shape[2:]):
            continue
        weight /= 2
        whole += weight
        u, t = (F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
        total = total + weight * F.mse_loss(u, t)
    return total / whole


def _map(shape: Shape) -> Shape:
    return shape if len(shape) == 3 else (*shape, 1, 1)


def _pixels(x: Tensor) -> Tensor:
    return x if x.ndim == 4 else x[..., None, None]
