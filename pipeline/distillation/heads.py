"""Auxiliary heads on shallow places of a student: deep supervision, with or without a teacher.

A head is a fresh copy of what follows its place in the main branch (`Network.rest`), classifier included, so the path
through it is as deep as the main branch, and its maps have the main branch's shapes. Heads and projectors are trained
beside the student and dropped with the method.
"""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import seeding
from pipeline.distillation.method import Context, Known, MethodConfig
from pipeline.errors import ParamsError, ShapeError, unknown_name
from pipeline.networks.architecture import Architecture
from pipeline.networks.blocks import conv_bn, fan_out
from pipeline.networks.network import Network, Shape, Taps


class HeadsConfig(MethodConfig):
    """Settings of methods with auxiliary heads.

    Attributes:
        positions: student taps at which units end, one head each; None is every stage but the last: stage1 and
            stage2 of ResNets, WRNs and ShuffleNets, stage1 to stage3 of VGG8 and MobileNetV2.
    """

    positions: tuple[str, ...] | None = None

    @property
    def heads(self) -> tuple[str, ...]:
        """The taps that have a head, once they are known."""
        assert self.positions is not None, "settings are resolved before heads are built"
        return self.positions

    def resolved(self, known: Known) -> Self:
        """Return these settings with the positions filled in.

        Raises:
            ParamsError: the network has no stage boundary, or a position is named twice.
            UnknownNameError: no unit ends at a position.
        """
        # Filled in before training, so that a run's json names its heads.
        positions = _positions(self.positions, known.student)
        return super().resolved(known).model_copy(update={"positions": positions})


def _positions(positions: tuple[str, ...] | None, student: Architecture) -> tuple[str, ...]:
    units = student.units
    stages = [name for name in units if name.startswith("stage")]
    if len(stages) < 2:
        raise ParamsError(
            f"The student has the units {', '.join(units) or 'none'}, and auxiliary heads stand between two "
            "stages. Choose a student of another family, in params.yaml."
        )
    if positions is None:
        return tuple(stages[:-1])

    taps = tuple(student.resolved(name) for name in positions)
    if len(set(taps)) != len(taps):
        raise ParamsError(
            f"positions are {', '.join(taps)}; name each once, in the run's settings in params.yaml."
        )
    # A head is what follows a unit, so nothing is left of the last one.
    unknown = [tap for tap in taps if tap not in units[:-1]]
    if unknown:
        raise unknown_name("unit to attach a head to", unknown[0], units[:-1])
    return taps


class Heads(nn.Module):
    """One head a position.

    Args:
        positions: student taps at which units end, but not the last one.
        context: what may be known before training.
    """

    def __init__(self, positions: tuple[str, ...], context: Context) -> None:
        super().__init__()
        self.positions = positions
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
            names: the taps of a head to return, for instance "logits"; (B, ...), float32.
        """
        by_position = {}
        for position in self.positions:
            head = self.heads[position]
            assert isinstance(head, Network)
            with self.autocast():
                taps = head.record(student[position], names)
            by_position[position] = {name: x.float() for name, x in taps.items()}
        return by_position


class Projector(nn.Module):
    """Takes a map to the teacher's shape: pooled or stretched to its size, then 1x1 convolution, BN and ReLU.

    Args:
        student: shape of the student's map (C, H, W).
        teacher: shape of the teacher's map.
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
        # Pooling averages all pixels of a larger map; interpolation would skip some.
        if x.shape[2] > self.size[0] or x.shape[3] > self.size[1]:
            x = F.adaptive_avg_pool2d(x, self.size)
        elif tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        projected: Tensor = self.body(x)
        return projected
