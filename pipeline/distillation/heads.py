"""Auxiliary heads on shallow places of a student: deep supervision, with or without a teacher.

A head is a fresh copy of what follows its place in the main branch (`Network.rest`), classifier included, so the path
through it is as deep as the main branch, and its maps have the main branch's shapes. Heads and projectors are trained
beside the student and dropped with the method.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import seeding
from pipeline.distillation.method import Context, MethodConfig
from pipeline.errors import ParamsError, ShapeError
from pipeline.networks.blocks import conv_bn, fan_out
from pipeline.networks.network import Network, Shape, Taps


class HeadsConfig(MethodConfig):
    """Settings of methods with auxiliary heads.

    Attributes:
        positions: student taps at which units end, one head each; None is every stage but the last: stage1 and
            stage2 of ResNets, WRNs and ShuffleNets, stage1 to stage3 of VGG8 and MobileNetV2.
    """

    positions: tuple[str, ...] | None = None


class Heads(nn.Module):
    """One head a position.

    Args:
        positions: as in `HeadsConfig`.
        context: what may be known before training.

    Raises:
        ParamsError: the network has no stage boundary, or a position is named twice.
        UnknownNameError: no unit ends at a position.
    """

    def __init__(self, positions: tuple[str, ...] | None, context: Context) -> None:
        super().__init__()
        units = list(context.student.units)
        stages = [name for name in units if name.startswith("stage")]
        if len(stages) < 2:
            raise ParamsError(
                f"The student has the units {', '.join(units) or 'none'}, and auxiliary heads stand between two "
                "stages. Choose a student of another family, in params.yaml."
            )
        self.positions = tuple(stages[:-1]) if positions is None else positions
        if len(set(self.positions)) != len(self.positions):
            raise ParamsError(
                f"positions are {', '.join(self.positions)}; name each once, in the run's config."
            )
        self.last = units[-1]
        self.autocast = context.autocast
        self.heads = nn.ModuleDict()
        for position in self.positions:
            # Keyed by the place: a head starts alike whichever others there are.
            with seeding.scope(context.seed, "head", position):
                self.heads[position] = context.student.rest(position)

    def forward(self, student: Taps, names: tuple[str, ...]) -> dict[str, Taps]:
        """Return taps of every head, by position.

        Args:
            student: taps of the student, the positions among them.
            names: taps of the head that are wanted, for instance "logits"; (B, ...), float32.
        """
        found = {}
        for position in self.positions:
            head = self.heads[position]
            assert isinstance(head, Network)
            with self.autocast():
                taps = head.record(student[position], names)
            found[position] = {name: x.float() for name, x in taps.items()}
        return found


class Projector(nn.Module):
    """Takes a map to the teacher's shape: pooled or stretched to its size, then 1x1 convolution, BN and ReLU.

    Args:
        student: shape of the student's map (C, H, W).
        teacher: shape of the teacher's.
        relu: end with the ReLU, for a teacher's map that is never negative.

    Raises:
        ShapeError: the shapes are not two maps.
    """

    def __init__(self, student: Shape, teacher: Shape, *, relu: bool) -> None:
        super().__init__()
        if len(student) != 3 or len(teacher) != 3:
            raise ShapeError(f"A projector pairs two maps; found student {student} and teacher {teacher}. "
                             "Choose another teacher_feature, in params.yaml.")  # fmt: skip
        self.size = (teacher[1], teacher[2])
        self.body = nn.Sequential(*conv_bn(student[0], teacher[0], 1), nn.ReLU() if relu else nn.Identity())
        self.body.apply(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C_T, H_T, W_T)."""
        if x.shape[2] > self.size[0] or x.shape[3] > self.size[1]:
            x = F.adaptive_avg_pool2d(x, self.size)
        elif tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        projected: Tensor = self.body(x)
        return projected


LastMap = Literal["stage", "final"]  # what the last stage ends in, or what is pooled
