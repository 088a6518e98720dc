"""How far a student is from its teacher: in its answers, and in its maps (KCD, arXiv:2103.16844, table 11)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def prediction_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(softmax(t) || softmax(s)) of each sample (B,), from logits (B, K)."""
    log_p, log_q = F.log_softmax(teacher.float(), dim=1), F.log_softmax(student.float(), dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def map_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Euclidean distance of each sample's features (B,), from (B, ...)."""
    distance: Tensor = (student.float() - teacher.float()).flatten(1).square().sum(dim=1).sqrt()
    return distance
