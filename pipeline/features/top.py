"""The code of a view's logits by its k largest: they keep their values, and the others share what is left evenly.

A view of 1,000 classes in float16 is 2,000 bytes, and its 16 largest logits are 66: the classes' ids, the logits,
largest first, and one number for all others, log((sum of their exp z) / (K - k)), which keeps the logsumexp. So at
temperature 1 the kept probabilities are the teacher's own, but for the rounding to the stored type; at a higher
temperature the flat rest weighs otherwise than the true one, which the gate measures (`pipeline.features.loss`).

All of it is uint16 (B, W), the bits of floats included, as a store keeps codes. It is no encoding of the catalogue: a
method reads those by name, and this is how a store keeps what all methods read as "logits".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.errors import ParamsError
from pipeline.features.contents import StoredTop
from pipeline.params.top import Top

IDS = 1 << 16  # classes that 16 bits tell apart


def encode(logits: Tensor, top: Top) -> Tensor:
    """Return the code uint16 (B, W) of logits float32 (B, K).

    Of equal logits the class with the smaller id counts as the larger, on any device: in bfloat16 ties are frequent.

    Raises:
        ParamsError: there are more classes than 16 bits tell apart.
    """
    if logits.shape[1] > IDS:
        raise ParamsError(
            f"The ids of the largest logits have 16 bits, for {IDS:,} classes, and the teacher has "
            f"{logits.shape[1]:,}. Drop 'top' of its logits in params.yaml, then: dvc repro"
        )
    dtype = getattr(torch, top.dtype)
    values, ids = logits.sort(dim=1, descending=True, stable=True)
    others = values[:, top.kept :]
    rest = others.logsumexp(dim=1, keepdim=True) - math.log(others.shape[1])

    # Finite: an infinite logit makes 0 * inf of a probability that is 0.
    bound = torch.finfo(dtype).max
    numbers = torch.cat([values[:, : top.kept], rest], dim=1).clamp(-bound, bound).to(dtype)
    return torch.cat([ids[:, : top.kept].to(torch.uint16), numbers.view(torch.uint16)], dim=1)


def decode(code: Tensor, top: Top, classes: int) -> Tensor:
    """Return the logits float32 (B, K) of a code uint16 (B, W)."""
    ids, numbers = unpack(code, top)
    # The last number is that of all classes which are not named.
    return numbers[:, top.kept :].expand(-1, classes).scatter(1, ids, numbers[:, : top.kept])


def unpack(code: Tensor, top: Top) -> tuple[Tensor, Tensor]:
    """Return the parts of a code (B, W): ids int64 (B, k), and float32 (B, k + 1), the logits and that of the rest."""
    numbers = code[:, top.kept :].contiguous().view(getattr(torch, top.dtype))
    return code[:, : top.kept].long(), numbers.float()


def kept(logits: Tensor, top: Top) -> Tensor:
    """Return what a reader of the code sees of logits float32 (B, K): encoded and decoded, float32 (B, K)."""
    return decode(encode(logits, top), top, logits.shape[1])


def read(code: Tensor, top: StoredTop | None) -> Tensor:
    """Return stored values as they are read: codes of logits as logits (B, K), and floats as float32.

    What else there is stays as it is.

    Args:
        code: as it is stored, (B, ...).
        top: what the store says of it; None where it keeps all logits, or is of another feature.
    """
    if top is not None:
        return decode(code, top, top.classes)
    return code.float() if code.is_floating_point() else code


def beside(code: Tensor, logits: Tensor, top: Top) -> tuple[Tensor, Tensor]:
    """Return what a code claims beside what it should claim, as the gate compares them, each float32 (B, 2 k + 1).

    The numbers of the code stand beside those of the live logits, which hardly move where rounding makes a class the
    k-th instead of another one; and once more beside the live logits of the very classes that it names.

    Args:
        code: as it is stored, uint16 (B, W).
        logits: of the live teacher, float32 (B, K).
        top: what the code keeps.
    """
    ids, numbers = unpack(code, top)
    exact = top.model_copy(update={"dtype": "float32"})
    _, live = unpack(encode(logits, exact), exact)
    return torch.cat([numbers, numbers[:, : top.kept]], dim=1), torch.cat(
        [live, logits.gather(1, ids)], dim=1
    )
