"""Extraction: views, copies and the store must cost little beside the teacher's forward."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from pipeline.artifacts.publish import remove
from pipeline.benchmark.material import Bench, extraction
from pipeline.benchmark.record import Record, record
from pipeline.benchmark.timing import interleaved, synchronize, timed
from pipeline.features.extract import ON_CPU, ON_GPU, Extraction
from pipeline.features.teacher import Teacher
from pipeline.params.size import sides

REQUESTED = {"logits": (1, "float16"), "stage3": (1, "float16")}
LOGITS = 20  # augmented slots of a usual store
GPU_BATCHES = 24  # of a slot: a GPU is through with less before the store's files are opened


def extract(bench: Bench) -> list[Record]:
    """Time whole extractions beside the same number of bare forward passes, in batches of the same size."""
    return _gpu(bench) if bench.machine.device.type == "cuda" else _cpu(bench)


def _cpu(bench: Bench) -> list[Record]:
    """Time logits and stage 3 together."""
    name = bench.scale.pairs[0][0]
    samples = bench.scale.extracted
    bare, (whole,) = _rates(bench, name, samples, min(ON_CPU, samples), {"whole": REQUESTED})
    return [
        record(f"extract/{_network(name)}/bare", bare, "images/s"),
        record(f"extract/{_network(name)}/whole", whole, "of bare", at_least=0.85),
    ]


def _gpu(bench: Bench) -> list[Record]:
    """Time logits in many slots, and logits and stage 3 in two: there the disk may be what is waited for."""
    name = bench.scale.pairs[0][0]
    requested = {"logits": {"logits": (LOGITS, "float16")}, "maps": REQUESTED}
    bare, (logits, maps) = _rates(bench, name, GPU_BATCHES * ON_GPU, ON_GPU, requested)
    place = f"extract/{_network(name)}"
    return [
        record(f"{place}/bare", bare, "images/s", note=f"batches of {ON_GPU}, {bench.machine.precision}"),
        record(f"{place}/logits", logits, "of bare", at_least=0.9, note=f"{1 + LOGITS} slots"),
        record(f"{place}/logits+stage3", maps, "of bare", note="2 slots; bounded by hashing and the disk"),
    ]


def _rates(
    bench: Bench,
    name: str,
    samples: int,
    batch_size: int,
    requested: Mapping[str, Mapping[str, tuple[int, str]]],
) -> tuple[float, list[float]]:
    """Return images a second of the bare teacher, and of each extraction relative to it."""
    spec, teacher, prepared = bench.spec(name), bench.teacher(name), bench.prepared(samples)
    works = {
        what: extraction(prepared, teacher, spec, features, batch_size=batch_size)
        for what, features in requested.items()
    }
    out = bench.folder / "extracted.zarr"

    # As many as the longest extraction has: a GPU that is busy for longer is slower.
    batches = max(work.num_forwards() for work in works.values()) // batch_size
    image = torch.randn(batch_size, 3, *sides(spec.size)).to(bench.machine.device)

    def bare() -> None:
        _bare(teacher, image, batches)

    def whole(work: Extraction) -> None:
        # Else the next round would find the store whole and do nothing.
        remove(out)
        work.run(out, lambda units=1, note="": None)

    runs = {"bare": timed(bare, batches * batch_size)}
    for what, work in works.items():
        runs[what] = timed(partial(whole, work), work.num_forwards())
    rates = interleaved(f"extraction from {spec.network}", runs, bench.scale.rounds)
    return rates.median("bare"), [rates.ratio(what, to="bare") for what in works]


@torch.no_grad()
def _bare(teacher: Teacher, image: torch.Tensor, batches: int) -> None:
    with teacher.machine.autocast():
        for _ in range(batches):
            teacher.network(image)
    # A GPU is handed its work and computes on.
    synchronize(teacher.machine.device)


def _network(name: str) -> str:
    return name.split(".")[1]
