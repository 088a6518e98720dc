"""The regressor of CRD's tables (arXiv:1910.10699): a convolution that takes the student's map to the teacher's."""

from __future__ import annotations

from torch import nn

from pipeline.errors import ShapeError
from pipeline.networks.network import Shape


def regressor(student: Shape, teacher: Shape, *, relu: bool = True) -> nn.Sequential:
    """Return the layers that take maps of shape `student` (C, H, W) to shape `teacher`, BN behind the convolution.

    Args:
        student: shape of the student's map.
        teacher: shape of the teacher's map.
        relu: end with a ReLU.

    Raises:
        ShapeError: the shapes are not two maps, or the teacher's is larger in a way that no layer above makes.
    """
    if len(student) != 3 or len(teacher) != 3:
        raise ShapeError(
            f"A regressor pairs two maps; found student {student} and teacher {teacher}. Choose other taps."
        )

    (c_s, h_s, w_s), (c_t, h_t, w_t) = student, teacher
    layer: nn.Module
    if (h_s, w_s) == (2 * h_t, 2 * w_t):
        layer = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
    elif (2 * h_s, 2 * w_s) == (h_t, w_t):
        layer = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
    # Without padding a kernel of 1 + the difference leaves exactly the teacher's size.
    elif h_s >= h_t and w_s >= w_t:
        layer = nn.Conv2d(c_s, c_t, (1 + h_s - h_t, 1 + w_s - w_t))
    else:
        raise ShapeError(
            f"A regressor cannot take the student's {h_s}x{w_s} map to the teacher's {h_t}x{w_t}. "
            "Choose a teacher tap of at most twice the size, in params.yaml."
        )

    return nn.Sequential(layer, nn.BatchNorm2d(c_t), nn.ReLU() if relu else nn.Identity())
