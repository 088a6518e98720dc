"""Extraction: writing the store must cost little beside the teacher's forward."""

from __future__ import annotations

import torch

from pipeline.artifacts.publish import remove
from pipeline.benchmark.material import Bench, extraction
from pipeline.benchmark.record import Record, record
from pipeline.benchmark.timing import interleaved, synchronize, timed

REQUESTED = {"logits": (1, "float16"), "stage3": (1, "float16")}


def extract(bench: Bench) -> list[Record]:
    """Time a whole extraction of logits and stage 3 beside the same number of bare forward passes."""
    name = bench.scale.pairs[0][0]
    spec, teacher, machine = bench.spec(name), bench.teacher(name), bench.machine
    samples, batch_size = bench.scale.extracted, min(256, bench.scale.extracted)
    work = extraction(bench.prepared(samples), teacher, spec, REQUESTED, batch_size=batch_size)
    image = torch.randn(batch_size, 3, spec.size, spec.size).to(machine.device)
    out = bench.folder / "extracted.zarr"

    def bare() -> None:
        with torch.no_grad(), machine.autocast():
            for _ in range(work.num_forwards() // batch_size):
                teacher.network(image)
        # A GPU is handed its work and computes on.
        synchronize(machine.device)

    def whole() -> None:
        # Else the next round would find the store whole and do nothing.
        remove(out)
        work.run(out, lambda units=1, note="": None)

    runs = {
        "bare": timed(bare, work.num_forwards() // batch_size * batch_size),
        "whole": timed(whole, work.num_forwards()),
    }
    rates = interleaved(f"extraction from {spec.network}", runs, bench.scale.rounds)
    return [
        record(f"extract/{spec.network}/bare", rates.median("bare"), "images/s"),
        record(f"extract/{spec.network}/whole", rates.ratio("whole", to="bare"), "of bare", at_least=0.85),
    ]
