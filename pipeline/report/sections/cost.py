"""What the networks of a pair cost to train and to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from markupsafe import Markup

from pipeline.report.detectors import BoxPair
from pipeline.report.drawing import markup, text
from pipeline.report.results import Pair, Results
from pipeline.report.trainings import BASELINE

TITLE = "Training and inference cost"
LEAD = (
    "what a run's gain costs in training time and memory; inference should cost what the student alone costs."
)
GROUP, ORDER = "pair", 110

NUMBERS = {"results.csv": "one row for each run and seed"}
DETECTION = {"detection.csv": "one row for each teacher, and for each run and seed"}

COLUMNS: Mapping[str, tuple[str, Callable[[float], str]]] = {  # its head, and how it is written
    "params": ("parameters", text.amount),
    "macs": ("MACs", text.amount),
    "latency_ms": ("CPU latency", lambda value: f"{text.fixed(value)} ms"),
    "train_seconds": ("training", text.duration),
    "images_per_second": ("images/s", text.amount),
}
MEMORY = "peak_bytes"


def section(results: Results, pair: Pair | BoxPair) -> Markup:
    """Return the table of a pair's costs."""
    metrics = pair.teacher.trained.metrics
    shown = [name for name in COLUMNS if name in metrics]  # of detectors not all are measured
    bases = [run for run in (pair.alone, pair.baseline) if run is not None]
    # In steps of these two: seconds depend on the machine, their ratio hardly does.
    speeds = [run.estimate("images_per_second").mean for run in bases]

    teacher = Markup("teacher <small>{}</small>").format(pair.teacher.name)
    rows: list[markup.Row] = [
        [
            teacher,
            metrics["network"],
            *_cells({name: metrics[name] for name in shown}),
            *(markup.NOTHING for _ in bases),
            _memory(metrics[MEMORY]),
        ]
    ]
    for run in pair.runs:
        means = {name: run.estimate(name).mean for name in shown}
        # No speed was measured where no epoch ran.
        speed = means["images_per_second"]
        steps = [_times(base / speed if speed else 0.0) for base in speeds]
        network = str(run.shared("network"))
        rows.append([run.title, network, *_cells(means), *steps, _memory(run.estimate(MEMORY).mean)])

    steps_of = ("step, student = 1", f"step, {BASELINE} = 1")[: len(bases)]
    head = ["run", "network", *(COLUMNS[name][0] for name in shown), *steps_of, "peak memory"]
    return markup.table(head, rows, 2) + markup.note(_how(shown))


def _cells(values: Mapping[str, float]) -> list[markup.Cell]:
    return [markup.Cell(COLUMNS[name][1](value), value) for name, value in values.items()]


def _memory(value: float) -> markup.Cell:
    return markup.Cell(text.amount(value, "B"), value)


def _how(shown: list[str]) -> str:
    """Return how the numbers are measured."""
    counted = "Parameters and multiply-accumulates" if "macs" in shown else "Parameters"
    words = [f"{counted} are those of inference: what a method adds for training alone does not count."]
    if "latency_ms" in shown:
        words.append("Latency is one image on the CPU.")
    words.append(
        "Training is the mean over seeds, without evaluation. A step costs that many of the named run's steps. Peak "
        "memory is the training process's, on a GPU the GPU's."
    )
    return " ".join(words)


def _times(value: float) -> markup.Cell | str:
    return markup.Cell(f"{text.fixed(value)}{text.TIMES}", value) if value else text.DASH
