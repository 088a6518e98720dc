"""How far a student's channels and answers are from the teacher's (KCD, arXiv:2103.16844, tables 10, 11; figure 1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.distance import map_distance, prediction_kl
from pipeline.features import top
from pipeline.features.ranges import StoredRanges
from pipeline.features.store import StoredArray
from pipeline.matching.consistency import pooled
from pipeline.matching.matcher import Matcher
from pipeline.matching.matching import Matching
from pipeline.matching.rearrangement import Rearrangement
from pipeline.matching.sums import Sums
from pipeline.networks.network import Network

TOP = (10, 20, 50, 100)
Numbers = dict[str, Any]  # nested, numbers at its leaves


def overlap(first: Tensor, second: Tensor, counts: Tensor) -> dict[str, float]:
    """Return which share of the k most active channels of each class two networks have in common, in percent.

    Args:
        first: mean pooled activation by class (K, C).
        second: the same of the other network (K, C); an index is the same place in both.
        counts: samples by class (K,); classes without any do not count.

    Returns:
        The mean over classes for every k of `TOP` below C, as "top10".
    """
    shared = {}
    for k in TOP:
        if k >= first.shape[1]:
            break  # all channels are among the most active
        shares = [
            len(set(a.topk(k).indices.tolist()) & set(b.topk(k).indices.tolist())) / k
            for a, b, count in zip(first, second, counts.tolist(), strict=True)
            if count
        ]
        shared[f"top{k}"] = 100 * float(np.mean(shares))
    return shared


def measured(matcher: Matcher, matching: Matching, sums: Sums) -> tuple[Numbers, dict[str, NDArray[Any]]]:
    """Return all numbers of a matching, and the arrays that the report draws."""
    width = matching.width
    # Dead are those that vary in no range of labels.
    dead = [
        torch.stack(flags).all(dim=0)
        for flags in zip(*(part.dead() for part in sums.statistics), strict=True)
    ]
    moved, moved_map = _rearranged(matcher, matching, sums)

    numbers: Numbers = {
        "gamma": sums.gammas(matching.recipe.seed),
        "channels": {"teacher": matching.origin.channels, "student": width},
        "dead": {"teacher": int(dead[0].sum()), "student": int(dead[1].sum())},
        "overlap": {"transformed": overlap(moved, sums.student, sums.counts)},
        "theta0": distance(matcher, matcher.student("init"), matching),
        "alone": distance(matcher, matcher.student("last"), matching),
    }
    # In the teacher's own order, where it has channels enough for every place of the student.
    own = sums.teacher[:, :width]
    if own.shape[1] == width:
        numbers["overlap"]["plain"] = overlap(own, sums.student, sums.counts)

    shown = sums.counts[matcher.block.recipe.pictured].clamp(min=1)
    arrays: dict[str, NDArray[Any]] = {
        "matrix": np.stack(sums.matrices()).astype(np.float32),
        "teacher_map": (sums.teacher_map[:width] / shown).float().cpu().numpy(),
        "transformed_map": (moved_map / shown).float().cpu().numpy(),
        "student_map": (sums.student_map / shown).float().cpu().numpy(),
        "student_classes": (sums.student / sums.counts.clamp(min=1)[:, None]).cpu().numpy(),
        "pictured": np.array(matcher.block.recipe.pictured),
    }
    return numbers, arrays


@torch.no_grad()
def distance(matcher: Matcher, student: Network, matching: Matching) -> dict[str, float]:
    """Return what lies between a student and the teacher on the test split.

    Returns:
        "kl" of the predictions, where the store holds the logits; "l2", the mean over images of the distance of the
        maps in the teacher's own order, where it has channels enough; "l2_transformed" after the matching.
    """
    recipe, device = matcher.block.recipe, matcher.machine.device
    moved = Rearrangement(matching).to(device).eval()
    totals: dict[str, Tensor] = {}  # read once, so that no batch waits for the one before

    def add(name: str, values: Tensor) -> None:
        total = values.double().sum()
        totals[name] = totals[name] + total if name in totals else total

    for a, b, label in matcher.features(student, "test"):
        if a.ndim != b.ndim:  # a pooled feature against a map
            a, b = pooled(a), pooled(b)
        if a.shape[1] >= b.shape[1]:
            add("l2", map_distance(b, a[:, : b.shape[1]]))
        add("l2_transformed", map_distance(b, moved(a.float(), label)))

    if (logits := matcher.stored.features.get("logits")) is not None:
        array = StoredArray.of(matcher.store, recipe.teacher_checkpoint, "test", "logits", matcher.hint)
        stored = StoredRanges(array, 0, device)
        for start, stop, ours in matcher.passed(student, "test", "logits"):
            add("kl", prediction_kl(ours, top.read(stored.take(start, stop), logits.top)))

    return {name: float(total) / len(matcher.prepared.split("test")) for name, total in totals.items()}


def between(students: Iterable[NDArray[Any]], counts: Tensor) -> list[dict[str, float]]:
    """Return the overlap of each student with the next one, the last with the first.

    Args:
        students: mean pooled activations by class (K, C), one for each seed, two at least.
        counts: samples by class (K,).
    """
    means = [torch.from_numpy(student) for student in students]
    return [overlap(a, b, counts) for a, b in zip(means, means[1:] + means[:1], strict=True)]


def _rearranged(matcher: Matcher, matching: Matching, sums: Sums) -> tuple[Tensor, Tensor]:
    """Return the teacher's class means (K, c_S) and summed map of the pictured class after the matching."""
    if sums.learned is not None:
        return sums.learned.teacher, sums.learned.teacher_map
    gather = Rearrangement(matching).to(sums.teacher.device)
    label = torch.arange(len(sums.teacher), device=sums.teacher.device)
    pictured = label[matcher.block.recipe.pictured : matcher.block.recipe.pictured + 1]
    return gather(sums.teacher, label), gather(sums.teacher_map[None], pictured)[0]
