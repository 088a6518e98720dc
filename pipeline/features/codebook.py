"""Assignments of pixels to words and sub-classes, and the scores with which a student predicts them.

Shared by the encodings that make compact codes, by the methods that make the same from whole maps, and by the
layers and predictors. A word is the center of a cluster of the teacher's pixels (QuEST,
arXiv:1912.01540); a sub-class is a cluster of one class's pixels in the space of an LDA (letKD,
arXiv:2309.02843).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.compute.precision import full_products
from pipeline.errors import ParamsError

TOP = 4  # words that a soft code keeps


def _products(x: Tensor, matrix: Tensor) -> Tensor:
    """Return what `pixelwise` does in full float32: differences of distances are small beside the distances."""
    with full_products():
        return (matrix @ x.flatten(2)).view(len(x), len(matrix), *x.shape[2:])


def squared_distances(x: Tensor, centers: Tensor) -> Tensor:
    """Return ||x - c_k||^2 for every pixel of (B, C, H, W) and centers (K, C): (B, K, H, W)."""
    norms = centers.square().sum(dim=1)[:, None, None]
    distances = x.square().sum(dim=1, keepdim=True) + norms - 2 * _products(x, centers)
    return distances.clamp(min=0)  # rounding may leave a little less than nothing


def nearest_word(x: Tensor, centers: Tensor) -> Tensor:
    """Return the nearest center of every pixel, int64 (B, H, W); the first one of equals."""
    return squared_distances(x, centers).argmin(dim=1)


def nearest_words(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centers of every pixel, nearest first, `TOP` of them or all there are.

    Returns:
        ids int64 (B, k, H, W), and how much further than the nearest each lies, squared distances (B, k, H, W).
    """
    distances, ids = squared_distances(x, centers).topk(min(TOP, len(centers)), dim=1, largest=False)
    return ids, distances - distances[:, :1]


def log_words(x: Tensor, centers: Tensor, temperature: float | Tensor) -> Tensor:
    """Return log softmax_k(-t ||x - c_k||^2) of every pixel of (B, C, H, W): (B, K, H, W).

    The paper omits the minus sign (methods.md 2.7). t multiplies, as in the authors' code.
    """
    return F.log_softmax(-temperature * squared_distances(x, centers), dim=1)


def subclass(x: Tensor, table: Mapping[str, Tensor], label: Tensor) -> Tensor:
    """Return h1: the nearest sub-class of the sample's own class for every pixel, int64 (B, H, W).

    Args:
        x: the teacher's map (B, C, H, W).
        table: `mean` (C,), `scalings` (C, D), `centers` (classes * n, D), `per_class` int64 ().
        label: int64 (B,).
    """
    per_class = int(table["per_class"])
    z = _products(x - table["mean"][:, None, None], table["scalings"].T)  # (B, D, H, W)
    centers = table["centers"].reshape(-1, per_class, z.shape[1])[label]  # (B, n, D)
    with full_products():
        inner = torch.einsum("bnd,bdhw->bnhw", centers, z)
    # Without ||z||^2, which is the same for all sub-classes of a pixel.
    distances = centers.square().sum(dim=2)[:, :, None, None] - 2 * inner
    ids: Tensor = distances.argmin(dim=1) + per_class * label[:, None, None]
    return ids


def as_code(ids: Tensor, outcomes: int) -> Tensor:
    """Return ids as uint16, which is what a store keeps of them.

    Args:
        ids: int64, any shape, in 0..outcomes-1.
        outcomes: number of words or sub-classes.

    Raises:
        ParamsError: there are more of them than 16 bits can tell apart.
    """
    if outcomes > 1 << 16:
        raise ParamsError(
            f"A code of 16 bits tells {1 << 16:,} words or sub-classes apart, and the table has {outcomes:,}. Lower "
            "'clusters' or 'per_class' in the table's settings in params.yaml, then: dvc repro"
        )
    return ids.to(torch.uint16)


def pack(ids: Tensor, distances: Tensor, words: int) -> Tensor:
    """Return ids of so many words and relative squared distances, each (B, k, H, W), as one uint16 (B, 2 k, H, W)."""
    return torch.cat([as_code(ids, words), distances.half().view(torch.uint16)], dim=1)


def unpack(code: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `pack` took: ids int64 and distances float32, of float16's precision."""
    ids, bits = code.chunk(2, dim=1)
    return ids.long(), bits.contiguous().view(torch.float16).float()
