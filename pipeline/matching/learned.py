"""KCD's learned transformations (arXiv:2103.16844, section 3.3): small networks in the place of a permutation.

`fc` is a linear map of the channels, a 1x1 convolution without bias; `residual` one basic block, 3x3 - BN - ReLU -
3x3 - BN beside a 1x1 shortcut. They read maps (B, c_T, H, W), or vectors as maps of one pixel, and give c_S channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SubNet(nn.Module):
    """One of the two.

    Args:
        strategy: "fc" or "residual".
        teacher: c_T.
        student: c_S.
    """

    def __init__(self, strategy: str, teacher: int, student: int) -> None:
        super().__init__()
        self.straight = nn.Conv2d(teacher, student, 1, bias=False)
        self.branch = nn.Sequential()
        if strategy == "residual":
            self.branch = nn.Sequential(
                nn.Conv2d(teacher, student, 3, padding=1, bias=False),
                nn.BatchNorm2d(student),
                nn.ReLU(),
                nn.Conv2d(student, student, 3, padding=1, bias=False),
                nn.BatchNorm2d(student),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, c_S, H, W) of maps (B, c_T, H, W); vectors (B, c_T) give vectors."""
        maps = x if x.ndim == 4 else x[..., None, None]
        out: Tensor = self.straight(maps)
        if len(self.branch):
            out = out + self.branch(maps)
        return out if x.ndim == 4 else out[..., 0, 0]


def trace(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the sum over channels of Pearson's coefficient within a batch: the trace of M.

    Channels that do not vary in the batch add nothing, and no gradient.

    Args:
        teacher: pooled and transformed (B, C).
        student: pooled (B, C).
    """
    a, b = teacher.float(), student.float()
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    squares = (a**2).sum(dim=0), (b**2).sum(dim=0)
    alive = (squares[0] > 0) & (squares[1] > 0)
    # Filled before the root, whose slope at 0 is unbounded.
    scale = (torch.where(alive, squares[0], 1) * torch.where(alive, squares[1], 1)).sqrt()
    return torch.where(alive, (a * b).sum(dim=0) / scale, 0).sum()
