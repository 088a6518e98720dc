"""Terms that several methods share. All in float32 log-space, whatever the forward pass was computed in."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(t / T) || softmax(s / T)): summed over classes, mean over the batch.

    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531; T^2 keeps the gradients' scale.

    Args:
        student: logits (B, K).
        teacher: logits (B, K).
        temperature: T.
    """
    return soft_kl_rows(student, teacher, temperature).mean()


def soft_kl_rows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `soft_kl` of every sample (B,); its arguments are the same."""
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    # Logs on both sides: a probability that underflows has a log all the same.
    return temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def pixel_kl(p: Tensor, scores: Tensor, ids: Tensor | None = None) -> Tensor:
    """Return KL(p || softmax(scores)): summed over outcomes, mean over all pixels of the batch.

    Args:
        p: probabilities (B, k, H, W); those that are 0 add nothing.
        scores: the student's (B, K, H, W).
        ids: which outcomes `p` speaks of, int64 (B, k, H, W); the others are 0. None: all of them, k = K.
    """
    log_q = F.log_softmax(scores.float(), dim=1)
    # Normalized over all K before the gather: outcomes that are left out still take their share.
    if ids is not None:
        log_q = log_q.gather(1, ids)  # (B, k, H, W)
    pixels = p.numel() // p.shape[1]  # B * H * W
    return F.kl_div(log_q, p.float(), reduction="sum") / pixels
