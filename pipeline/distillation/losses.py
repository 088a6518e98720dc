"""Terms that several methods share. All in float32 log-space, whatever the forward pass was computed in."""

from __future__ import annotations

import torch
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
    return log_kl_rows(log_q, log_p, temperature)


def log_kl(log_q: Tensor, log_p: Tensor, temperature: float | Tensor) -> Tensor:
    """Return T^2 KL(p || q), the mean over the batch.

    Args:
        log_q: log-probabilities of the student (B, K), of logits / T.
        log_p: of the teacher (B, K).
        temperature: T, which may be learned.
    """
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def log_kl_rows(log_q: Tensor, log_p: Tensor, temperature: float) -> Tensor:
    """Return `log_kl` of every sample (B,); its arguments are the same."""
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


def one_against_others(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return log (p, 1 - p) (B, 2) of one class against all others, and log-softmax (B, K - 1) over these alone.

    In log-space: a probability that underflows still has a gradient.

    Args:
        logits: (B, K), divided by T.
        label: the class of each sample, int64 (B,).
    """
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    # All classes but the label: those from it on move up by one.
    others = logits.gather(1, places + (places >= label[:, None]))  # (B, K - 1)
    own = logits.gather(1, label[:, None])  # (B, 1)
    pair = torch.cat([own, others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(pair, dim=1), F.log_softmax(others, dim=1)
