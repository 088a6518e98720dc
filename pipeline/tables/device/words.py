"""K-means of the pixels of a map on a device: what `pipeline.tables.fits.kmeans` computes with scikit-learn else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline import progress
from pipeline.tables import clustering
from pipeline.tables.clustering import Words
from pipeline.tables.device import lloyd, nearest
from pipeline.tables.device.fixed_point import count_members
from pipeline.tables.device.gallery import exemplars
from pipeline.tables.device.rows import DeviceRows, Rows
from pipeline.tables.device.start import start
from pipeline.tables.exemplars import chosen
from pipeline.tables.pixels import Array, Pixels
from pipeline.tables.softness import Softness


def words(
    pixels: Pixels, clusters: int, iterations: int, seed: int, temperature: float, device: str
) -> Words:
    """Cluster pixels, and look at how well and how softly the clusters serve.

    Args:
        pixels: of a map.
        clusters: K.
        iterations: at most.
        seed: of the draws.
        temperature: t of p_T.
        device: name of the device.
    """
    stored = DeviceRows.of(pixels, torch.device(device))
    mean = _mean(stored)
    # Taken away in each pass anew: that is cheaper than to hold the pixels twice.
    rows = stored.map(lambda x: x - mean, stored.width, hold=False)

    with progress.bar(f"k-means of {pixels.feature}", len(rows) * iterations) as advance:
        advance(0, note="k-means++")
        found = lloyd.lloyd(rows, start(rows, clusters, seed), iterations, advance=advance)

    counts, quality = _quality(rows, found.centers, temperature)
    groups = chosen(counts)
    shown = exemplars(rows, groups, _nearness(found.centers, groups), *pixels.stream.shape[2:])
    centers = found.centers.cpu().numpy()
    known = clustering.Clusters(centers, found.iterations, found.relocated)
    return Words(mean.cpu().numpy(), known, counts, quality, shown)


def _mean(rows: DeviceRows) -> Tensor:
    """Return the mean row, float32 (D,)."""
    total = torch.zeros(rows.width, dtype=torch.float64, device=rows.device)
    for block in rows:
        total += block.x.sum(dim=0, dtype=torch.float64)
    return (total / len(rows)).float()


def _quality(rows: DeviceRows, centers: Tensor, t: float) -> tuple[Array, dict[str, float]]:
    """Return the members of each cluster, int64 (K,), and how well and how softly the clusters serve."""
    find, softness = nearest.Nearest(centers), Softness()
    counts = torch.zeros(len(centers), dtype=torch.int64, device=rows.device)
    inertia = torch.zeros((), dtype=torch.float64, device=rows.device)
    square = (centers**2).sum(dim=1)
    with progress.bar("quality of the clusters", len(rows)) as advance:
        for x, _, _ in rows:
            label = find(x)
            count_members(counts, label)
            inertia += nearest.squared_distances(x, centers[label]).sum(dtype=torch.float64)
            for tile in nearest.tiles(x, len(centers)):  # -t ||x - rho||^2, without the ||x||^2
                softness.add(torch.addmm(square, tile, centers.T, beta=-t, alpha=2 * t))
            advance(len(x))

    total = float(inertia)
    quality = {"inertia": total, "inertia_per_pixel": total / len(rows), **softness.quality()}
    return counts.cpu().numpy(), quality


def _nearness(centers: Tensor, groups: Array) -> Callable[[Rows], Tensor]:
    """Return the score of pixels: minus the squared distance to each of the centers of groups int64 (G,)."""
    shown = centers[torch.from_numpy(groups).to(centers.device)]

    def score(rows: Rows) -> Tensor:
        # One center at a time: differences to all of them, (n, G, C), would take G times the memory.
        return -torch.stack([nearest.squared_distances(rows.x, center) for center in shown], dim=1)

    return score
