"""What a store loses where it keeps the largest logits alone; the gate says whether it is true to those.

The distributions of a student's view of the teacher are compared: softmax(z / T) of the live logits, and the same of
what is read from the store. KL(live || read) is what the flat rest costs, and what rounding to the stored type does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.compute import precision as precisions
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Split
from pipeline.data.ranges import open_rows
from pipeline.data.views import ViewSpace
from pipeline.features import top
from pipeline.features.check import draw
from pipeline.features.contents import StoredTop
from pipeline.features.manifest import Manifest
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher

HIGH = 0.99  # of the samples lose less than what is reported beside the mean


@dataclass(frozen=True)
class Loss:
    """What the code of some views loses.

    Attributes:
        kept: number of logits that are kept.
        classes: of so many.
        bytes: of a view, in the store.
        whole: bytes of a view whose logits were all kept, in the same type.
        rows: number of views that were compared.
        mass: the teacher's probability, at temperature 1, of the kept classes; the mean of the views.
        top1: share of the views whose most probable class is still the same.
        kl: by temperature, in nats, of KL(live || read) the mean and the 99th percentile ("high"); and as their scale
            "flat", the mean of KL(live || uniform), which keeping nothing would lose.
    """

    kept: int
    classes: int
    bytes: int
    whole: int
    rows: int
    mass: float
    top1: float
    kl: dict[str, dict[str, float]]

    def __str__(self) -> str:
        """Say it in one line."""
        kl = ", ".join(
            f"{x['mean']:.2g} of {x['flat']:.2g} (99 %: {x['high']:.2g}) at T = {t}"
            for t, x in self.kl.items()
        )
        return (
            f"{self.kept} of {self.classes} logits are kept, {self.bytes} bytes a view for {self.whole}. They have "
            f"{100 * self.mass:.2f} % of the probability; of {self.rows} views {100 * self.top1:.1f} % keep their most "
            f"probable class; KL in nats: {kl}"
        )


def losses(
    path: Path,
    manifest: Manifest,
    teacher: Teacher,
    normalize: Normalize,
    checkpoint: str,
    splits: Mapping[str, Split],
    space: ViewSpace,
    temperatures: Iterable[float],
    rows: int,
) -> dict[str, Loss]:
    """Return what is lost in each array of a store that holds the largest logits alone, by its name.

    Args:
        path: the store.
        manifest: what it says of itself.
        teacher: the live teacher, exact.
        normalize: what images go through.
        checkpoint: the teacher's.
        splits: prepared data by split.
        space: the views of the store.
        temperatures: that the logits are read at; 1 is always among them.
        rows: views to compare in each split, drawn as those of the gate are.
    """
    coded = {name: feature.top for name, feature in manifest.features.items() if feature.top is not None}
    measured: dict[str, Loss] = {}
    for split, data in splits.items() if coded else ():
        images, device = open_rows(data, space, teacher.machine.device), teacher.machine.device
        live: dict[str, list[Tensor]] = {name: [] for name in coded}
        read: dict[str, list[Tensor]] = {name: [] for name in coded}

        for slot, index, names in draw(manifest, checkpoint, split, len(data), rows):
            wanted = names & coded.keys()
            if not wanted:
                continue
            label = torch.from_numpy(data.labels[index.numpy()]).to(device)
            with precisions.using("float32"):
                exact = teacher.features(normalize(images.begin(slot, index)()), wanted, label)
            for name in wanted:
                code = StoredArray(array_path(path, checkpoint, split, name)).read(slot, index.numpy())
                live[name].append(exact[name].cpu())
                read[name].append(top.read(torch.from_numpy(code), coded[name]))

        for name, kept in coded.items():
            part = torch.cat(live[name]), torch.cat(read[name])
            measured[f"{checkpoint}/{split}/{name}"] = _loss(*part, kept, temperatures)
    return measured


def _loss(live: Tensor, read: Tensor, kept: StoredTop, temperatures: Iterable[float]) -> Loss:
    """Compare live logits (N, K) with those that are read (N, K)."""
    live, read = live.double(), read.double()
    kl: dict[str, dict[str, float]] = {}
    for temperature in sorted({1.0, *temperatures}):
        lost = _kl(read / temperature, live / temperature)
        flat = _kl(torch.zeros_like(live), live / temperature)
        kl[f"{temperature:g}"] = {
            "mean": float(lost.mean()),
            "high": float(lost.quantile(HIGH)),
            "flat": float(flat.mean()),
        }

    largest = live.softmax(dim=1).topk(kept.kept, dim=1).values
    size = torch.finfo(getattr(torch, kept.dtype)).bits // 8
    return Loss(
        kept=kept.kept,
        classes=kept.classes,
        bytes=2 * kept.width,
        whole=size * kept.classes,
        rows=len(live),
        mass=float(largest.sum(dim=1).mean()),
        top1=float((live.argmax(dim=1) == read.argmax(dim=1)).double().mean()),
        kl=kl,
    )


def _kl(read: Tensor, live: Tensor) -> Tensor:
    """Return KL(softmax(live) || softmax(read)) of each view (N,), from logits float64 (N, K)."""
    log_p, log_q = live.log_softmax(dim=1), read.log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
