"""letKD's and QuEST's training steps beside a student-only step: what the layer and its supervision cost.

The teacher's side is given from memory, as small codes are in training; what reading costs is measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.benchmark.material import Bench
from pipeline.benchmark.record import Record, record
from pipeline.benchmark.step import distillation, one_epoch, training_batches
from pipeline.benchmark.timing import Run, interleaved
from pipeline.distillation.method import Tables
from pipeline.features import codebook
from pipeline.networks.network import Taps, build, probe
from pipeline.training.alone import CrossEntropy

WORDS = 4096  # of the papers
FORMS = {"nearest": "final:nearest@words", "top4": "final:top4@words", "map": "final"}


class Given:
    """A source that gives the same features for every batch.

    Args:
        taps: features (B, ...) of a whole batch, by name.
    """

    def __init__(self, taps: Taps) -> None:
        self.taps = taps

    def begin(self, checkpoint: str, slot: int, index: Tensor) -> Callable[[], Taps]:
        """Read nothing."""
        return dict

    def features(
        self, checkpoint: str, slot: Tensor, index: Tensor, image: Tensor, label: Tensor, read: Taps
    ) -> Taps:
        """Return the features of as many samples."""
        return {name: x[: len(index)] for name, x in self.taps.items()}


def word_step(bench: Bench) -> list[Record]:
    """Time steps of letKD-1 from each form of supervision, of QuEST, and of the student alone."""
    _, name = bench.scale.pair
    spec, batches, device = (
        bench.spec(name),
        training_batches(bench, bench.scale.compared),
        bench.machine.device,
    )
    network = build(spec, 0)
    bench.machine.place(network)
    shape = probe(network, spec.size, spec.channels)["final"]

    draw = np.random.default_rng(0)
    centers = draw.random((WORDS, shape[0]), np.float32)
    tables: Tables = {"words": {"centers": centers, "counts": np.ones(WORDS, np.int64)}}
    # One batch stands for all: a step's time does not depend on what it learns.
    pixels = torch.from_numpy(draw.random((bench.scale.batch_size, *shape), np.float32)).to(device)
    codewords = torch.from_numpy(centers).to(device)

    features = {
        "nearest": codebook.as_code(codebook.nearest_word(pixels, codewords), len(codewords)),
        "top4": codebook.pack(*codebook.nearest_words(pixels, codewords), len(codewords)),
        "map": pixels,
    }

    def taught(method: str, form: str) -> Run:
        feature = FORMS[form]
        place = {"table": "words", "encoding": None if form == "map" else form}
        settings = {"places": {"final": place}}
        source = Given({feature: features[form]})
        seen = {feature: tuple(features[form].shape[1:])}
        return distillation(
            bench, spec, source, batches, name=method, settings=settings, features=seen, tables=tables
        )

    alone = one_epoch(bench, {"student": network}, CrossEntropy(network, bench.machine), batches)
    runs = {"alone": alone, "quest, nearest": taught("quest", "nearest")}
    runs |= {f"letkd, {form}": taught("letkd", form) for form in FORMS}
    rates = interleaved(f"steps of {spec.network} with {WORDS} words", runs, bench.scale.rounds)

    return [
        *(
            record(
                f"word_step/{spec.network}/{run.replace(', ', '/')}", rates.ratio(run, to="alone"), "of alone"
            )
            for run in list(runs)[1:]
        ),
        record(
            f"word_step/{spec.network}/layer",
            rates.ratio("letkd, nearest", to="quest, nearest"),
            "with / without the layer",
            note="the same supervision, without what stays at inference",
        ),
    ]
