"""What the networks of a pair cost to train and to run."""

from __future__ import annotations

from markupsafe import Markup

from pipeline.report.drawing import markup, text
from pipeline.report.results import BASELINE, Pair, Results

TITLE = "Training and inference cost"
LEAD = (
    "what a run's gain costs in training time and memory; inference should cost what the student alone costs."
)
GROUP, ORDER = "pair", 110

NUMBERS = {"results.csv": "one row for each run and seed"}


def section(results: Results, pair: Pair) -> Markup:
    """Return the table of a pair's costs."""
    metrics = pair.teacher.trained.metrics
    bases = [run for run in (pair.alone, pair.baseline) if run is not None]
    # In steps of these two: seconds depend on the machine, their ratio hardly does.
    speeds = [run.estimate("images_per_second").mean for run in bases]

    rows: list[markup.Row] = [
        [
            Markup("teacher <small>{}</small>").format(pair.teacher.name),
            metrics["network"],
            *(markup.Cell(text.amount(metrics[name]), metrics[name]) for name in ("params", "macs")),
            markup.Cell(f"{text.fixed(metrics['latency_ms'])} ms", metrics["latency_ms"]),
            markup.Cell(text.duration(metrics["train_seconds"]), metrics["train_seconds"]),
            markup.Cell(text.amount(metrics["images_per_second"]), metrics["images_per_second"]),
            *(markup.NOTHING for _ in bases),
            markup.Cell(text.amount(metrics["peak_bytes"], "B"), metrics["peak_bytes"]),
        ]
    ]

    for run in pair.runs:
        means = {
            name: run.estimate(name).mean
            for name in ("params", "macs", "latency_ms", "train_seconds", "images_per_second", "peak_bytes")
        }
        speed = means["images_per_second"]
        rows.append(
            [
                run.title,
                str(run.shared("network")),
                markup.Cell(text.amount(means["params"]), means["params"]),
                markup.Cell(text.amount(means["macs"]), means["macs"]),
                markup.Cell(f"{text.fixed(means['latency_ms'])} ms", means["latency_ms"]),
                markup.Cell(text.duration(means["train_seconds"]), means["train_seconds"]),
                markup.Cell(text.amount(speed), speed),
                # No speed was measured where no epoch ran.
                *(_times(base / speed if speed else 0.0) for base in speeds),
                markup.Cell(text.amount(means["peak_bytes"], "B"), means["peak_bytes"]),
            ]
        )

    head = [
        "run",
        "network",
        "parameters",
        "MACs",
        "CPU latency",
        "training",
        "images/s",
        *("step, student = 1", f"step, {BASELINE} = 1")[: len(bases)],
        "peak memory",
    ]

    return markup.table(head, rows, 2) + markup.note(
        "Parameters and multiply-accumulates are those of inference: what a method adds for training alone does not "
        "count. Latency is one image on the CPU. Training is the mean over seeds, without evaluation. "
        "A step costs that many of the named run's steps. Peak memory is the training "
        "process's, on a GPU the GPU's."
    )


def _times(value: float) -> markup.Cell | str:
    return markup.Cell(f"{text.fixed(value)}{text.TIMES}", value) if value else text.DASH
