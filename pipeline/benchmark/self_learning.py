"""SLKD's step: with the teacher cached, the self-learning teachers are all that it costs beside KD's."""

from __future__ import annotations

from statistics import median

from pipeline.benchmark.material import Bench
from pipeline.benchmark.record import Record, record
from pipeline.benchmark.step import cached_logits, distillation, training_batches
from pipeline.benchmark.timing import interleaved

NUMBER = 2  # of self-learning teachers, the schedule's default


def self_learning(bench: Bench) -> list[Record]:
    """Time SLKD's step of one pair beside the sum of its parts: KD's step, and one of each self-learning teacher."""
    teacher_name, student_name = bench.scale.pair
    spec, student = bench.spec(teacher_name), bench.spec(student_name)
    teacher = bench.teacher(teacher_name)
    samples = bench.scale.compared
    batches, cached = training_batches(bench, samples), cached_logits(bench, spec, teacher, samples)

    # A copy of the teacher learns from its logits, as a student of KD would.
    runs = {
        "kd": distillation(bench, student, cached, batches),
        "taught": distillation(bench, spec, cached, batches),
        "slkd": distillation(
            bench, student, cached, batches, schedule_name="self_learning", teacher=teacher.network
        ),
    }

    pair = f"{spec.network}-{student.network}"
    rates = interleaved(f"self-learning steps of {pair}", runs, bench.scale.rounds)
    share = median(
        rate["slkd"] * (1 / rate["kd"] + NUMBER / rate["taught"]) for rate in rates.rounds
    )  # the parts' time over the step's
    return [
        record(f"self_learning/{pair}/slkd", rates.median("slkd"), "images/s"),
        record(f"self_learning/{pair}/of_kd", rates.ratio("slkd", to="kd"), "of a KD step's rate"),
        record(f"self_learning/{pair}/of_parts", share, "of the sum of parts", at_least=0.95),
    ]
