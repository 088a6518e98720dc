"""Machine options that change no result: what they bring to a student's step and to a teacher's forward pass."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.benchmark.material import Bench
from pipeline.benchmark.record import Record, missing, record
from pipeline.benchmark.step import one_epoch, training_batches
from pipeline.benchmark.timing import Run, interleaved, synchronize, timed
from pipeline.compute import precision as precisions
from pipeline.compute.machine import Machine, cannot_compile
from pipeline.features.teacher import Teacher
from pipeline.networks.network import build
from pipeline.training.alone import CrossEntropy

DEFAULT, COMPILED = "default", "compile"


def options(bench: Bench) -> list[Record]:
    """Time the first pair under each option, beside the default."""
    teacher, student = bench.scale.pairs[0]
    machines = {
        DEFAULT: bench.machine,
        "channels_last": replace(bench.machine, channels_last=True),
        "bfloat16": replace(bench.machine, precision="bfloat16"),
        COMPILED: replace(bench.machine, compiled=True),
    }

    if bench.machine.captured:
        machines["eager"] = replace(bench.machine, captured=False)

    why = _not_compiled(bench)
    if why:
        del machines[COMPILED]

    steps = {key: _step(bench, student, machine) for key, machine in machines.items()}
    if bench.machine.device.type == "cuda":
        steps["deterministic"] = _deterministic(_step(bench, student, bench.machine))

    records = []
    for name, runs in (
        (f"step/{student.split('.')[1]}", steps),
        (
            f"forward/{teacher.split('.')[1]}",
            {key: _forward(bench, teacher, machine) for key, machine in machines.items()},
        ),
    ):
        rates = interleaved(f"options of {name}", runs, bench.scale.rounds)

        records.append(record(f"options/{name}/{DEFAULT}", rates.median(DEFAULT), "images/s"))
        records += [
            record(f"options/{name}/{key}", rates.ratio(key, to=DEFAULT), "of default")
            for key in runs
            if key != DEFAULT
        ]

        if why:
            records.append(missing(f"options/{name}/{COMPILED}", "of default", why))
    return records


def _not_compiled(bench: Bench) -> str | None:
    if not bench.scale.compiled:
        return "compiling takes minutes, leave out --quick"
    lacking = cannot_compile(bench.machine.device)
    return f"torch.compile needs {lacking}" if lacking else None


def _step(bench: Bench, name: str, machine: Machine) -> Run:
    network = build(bench.spec(name), 0)
    machine.place(network)
    machine.compile(network)
    # A step is captured after a few, and a GPU's clock needs many.
    steps = bench.scale.method_steps if machine.captured else 1
    batches = training_batches(bench, steps * bench.scale.batch_size)
    return one_epoch(
        replace(bench, machine=machine), {"student": network}, CrossEntropy(network, machine), batches
    )


def _deterministic(run: Run) -> Run:
    def reproducible() -> float:
        with precisions.same_bits_within():
            return run()

    return reproducible


def _forward(bench: Bench, name: str, machine: Machine) -> Run:
    # A network of its own: placing and compiling change it.
    teacher = Teacher(bench.teacher(name).network, machine)
    machine.place(teacher.network)
    machine.compile(teacher.network)
    size, device = bench.scale.size, machine.device
    count = bench.scale.batch_size // 2  # a teacher is several students
    image = torch.zeros(count, 3, size, size, device=device)
    label = torch.zeros(count, dtype=torch.int64, device=device)

    def work() -> None:
        teacher.features(image, ["logits"], label)
        synchronize(device)

    return timed(work, count)
