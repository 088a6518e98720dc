"""Matching of channels: the assignment itself, and the pass of statistics beside the teacher's forward."""

from __future__ import annotations

from functools import partial
from typing import get_args

import numpy as np
import torch

from pipeline import seeding
from pipeline.benchmark.material import Bench
from pipeline.benchmark.record import Record, record
from pipeline.benchmark.timing import interleaved, synchronize, timed
from pipeline.matching.assignment import assign
from pipeline.matching.consistency import Statistics, pooled
from pipeline.params.matchings import Measure
from pipeline.params.size import sides

IMAGES = 50_000  # what times are given for
BATCH = 250


def matching(bench: Bench) -> list[Record]:
    """Time the assignment of as many channels as ResNet50 has, and the sums of every measure."""
    return [_assignment(bench), *_statistics(bench)]


def _assignment(bench: Bench) -> Record:
    channels = bench.scale.channels
    samples = np.random.default_rng(0).normal(size=(2, 2 * channels, channels))
    matrix = np.corrcoef(samples[0].T, samples[1].T)[:channels, channels:]  # of independent channels
    run = timed(partial(assign, matrix, "bipartite", seeding.generator(0)), 1)
    rates = interleaved("assignment", {"bipartite": run}, bench.scale.rounds, warm=False)
    return record(f"matching/bipartite/{channels}x{channels}", 1 / rates.median("bipartite"), "s")


def _statistics(bench: Bench) -> list[Record]:
    """Time pooling and sums over the maps of a batch, and the teacher's forward of the same batch."""
    name = bench.scale.pairs[0][0]
    spec, teacher, machine = bench.spec(name), bench.teacher(name), bench.machine
    size = min(BATCH, bench.scale.extracted)
    draw = seeding.generator("images")
    image = torch.randn(size, 3, *sides(spec.size), generator=draw).to(machine.device)
    with torch.no_grad():
        maps = teacher.network.record(image, {"stage3"})["stage3"]
    # Stands for the student's map: of the same shape, but other channels.
    other = maps.roll(1, dims=1)

    def forward() -> None:
        with torch.no_grad(), machine.autocast():
            teacher.network(image)
        synchronize(machine.device)

    def add(statistics: Statistics) -> None:
        statistics.add(pooled(maps), pooled(other))
        synchronize(machine.device)

    width = maps.shape[1]
    runs = {"forward": timed(forward, size)}
    for measure in get_args(Measure):
        runs[measure] = timed(partial(add, Statistics(width, width, measure).to(machine.device)), size)
    rates = interleaved(f"statistics of {spec.network}", runs, bench.scale.rounds)

    records = [record("matching/teacher_forward", IMAGES / rates.median("forward"), f"s / {IMAGES:,} images")]
    for measure in get_args(Measure):
        share = 100 * rates.ratio("forward", to=measure)
        note = f"{share:.2g} % of the teacher's forward, {width}x{width} channels"
        seconds = IMAGES / rates.median(measure)
        records.append(record(f"matching/statistics/{measure}", seconds, f"s / {IMAGES:,} images", note=note))
    return records
