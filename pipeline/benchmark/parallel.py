"""`stages.run` beside `dvc repro`: whole jobs, students side by side, and what a stage costs beside its work.

The job is that of the project's params.yaml. The small scale cuts it down to two seeds and a tenth of the epochs: as
many kinds of stages, and less work in each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import count
from statistics import median
from typing import Any

from pipeline.artifacts.closure import root
from pipeline.benchmark.material import Bench
from pipeline.benchmark.record import Record, missing, record
from pipeline.benchmark.scratch import NEEDED, Done, Scratch
from pipeline.benchmark.timing import Run, interleaved
from pipeline.execution.local import cores
from pipeline.params import document
from pipeline.params.plug import Plug

NAME = "parallel"
SEEDS, SHARE = 2, 0.1  # of the small job: seeds at most, and what is left of the epochs
STUDENTS, EPOCHS = 12, 20
ROUNDS = 3  # of the students

REPRO, RUN = "dvc repro", "stages.run"
OF_REPRO, FASTER = "of dvc repro's time", "times as fast"
FORCED = ("--force", "--single-item", "pretrain_student")
# From a minute on it is a clock's.
_RAN = re.compile(r"^\[\d+/\d+\] \S+: ran in (?:([\d.]+) s|([\d:]+))$", re.MULTILINE)


def parallel(bench: Bench) -> list[Record]:
    """Time jobs and students by `dvc repro` and by `stages.run`, in copies of the project."""
    if not (root() / NEEDED).is_file():
        return [missing(NAME, "", f"no {NEEDED} in {root()}, where Stillhouse is installed")]
    return [*job(bench), *students(bench)]


def job(bench: Bench) -> list[Record]:
    """Time the project's job as a whole, and once more when there is nothing to do."""
    params = document.read(root() / "params.yaml")
    sources = {Plug.model_validate(dataset["source"]).name for dataset in params["datasets"].values()}
    if sources != {"digits"}:
        return [missing(f"{NAME}/job", OF_REPRO, "params.yaml has data other than the digits")]
    if bench.scale.small_job:
        params = smaller(params)

    begun = Scratch.make(bench.folder / "job", params, _environment(bench))
    return compare_jobs(begun, _devices(bench), bench.scale.job_rounds, bench.scale.rounds)


def students(bench: Bench) -> list[Record]:
    """Time twelve students one after another and two at a time, and on a GPU in one cohort."""
    gpu = bench.machine.device.type == "cuda"
    scratch = Scratch.make(bench.folder / "students", twelve(gpu=gpu), _environment(bench))
    scratch.run("student_inputs", *_devices(bench))
    return [*compare_slots(scratch, cores(), ROUNDS), *compare_cohort(scratch, ROUNDS, gpu=gpu)]


def smaller(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return params whose job has the same kinds of stages, and fewer seeds and epochs."""
    recipes = {
        name: {**recipe, "epochs": max(1, round(recipe["epochs"] * SHARE)), "milestones": []}
        for name, recipe in params["recipes"].items()
        if "epochs" in recipe
    }
    return {**params, "seeds": params["seeds"][:SEEDS], "recipes": {**params["recipes"], **recipes}}


def twelve(*, gpu: bool) -> dict[str, Any]:
    """Return params of students of one network, that differ by their seeds."""
    image = {"size": 32, "channels": 3} if gpu else {}
    return {
        "seeds": list(range(STUDENTS)),
        "recipes": {"twenty": {"epochs": EPOCHS, "batch_size": 64, "learning_rate": 0.05, "milestones": []}},
        "datasets": {
            "digits": {"source": {"digits": image}, "views": {"crop_flip": {"padding": 1, "flip": False}}}
        },
        "students": {
            "student": {
                "dataset": "digits",
                "network": "resnet8x4" if gpu else "resnet8x0.25",
                "recipe": "twenty",
            }
        },
        "distill": [],
    }


# --- Comparisons ---


def compare_jobs(begun: Scratch, devices: tuple[str, str], rounds: int, idle_rounds: int) -> list[Record]:
    """Return the time of a job by `stages.run` relative to `dvc repro`'s, what a stage costs, and that of a no-op.

    Args:
        begun: a copy of the project in which nothing has run.
        devices: the option of `stages.run` that names them.
        rounds: how often the job is timed.
        idle_rounds: how often a no-op is timed, after a round that is not.
    """
    number, costs, last = count(), list[float](), dict[str, Scratch]()
    stages = 0

    def anew(name: str, call: Callable[[Scratch], Done]) -> Run:
        def run() -> float:
            nonlocal stages
            scratch = last[name] = begun.again(begun.folder.with_name(f"{begun.folder.name}-{next(number)}"))
            done = call(scratch)
            if name == "one slot":
                stages = len(_RAN.findall(done.output))
                costs.append(cost(done))
            return 1 / done.seconds

        return run

    calls = {
        REPRO: lambda scratch: scratch.repro(),
        RUN: lambda scratch: scratch.run(*devices),
        "one slot": lambda scratch: scratch.run("--jobs", "1", "--cohort", "1", *devices),
    }
    rates = interleaved("job", {name: anew(name, call) for name, call in calls.items()}, rounds, warm=False)
    ended = last[RUN]
    idle = {REPRO: lambda: 1 / ended.repro().seconds, RUN: lambda: 1 / ended.run(*devices).seconds}
    nothing = interleaved("no-op", idle, idle_rounds)

    note = f"{stages} stages"
    return [
        record(f"{NAME}/job/dvc_repro", 1 / rates.median(REPRO), "s", note=note),
        record(f"{NAME}/job/stages_run", 1 / rates.median(RUN), "s", note=note),
        record(f"{NAME}/job/ratio", rates.ratio(REPRO, to=RUN), OF_REPRO, at_most=0.5, note=note),
        record(
            f"{NAME}/job/overhead",
            median(costs),
            "s a stage",
            at_most=0.5,
            note="stages.run -j 1: its start, DVC's part, and the shortest stage's whole process",
        ),
        record(f"{NAME}/no_op/dvc_repro", 1 / nothing.median(REPRO), "s", note=note),
        record(f"{NAME}/no_op/stages_run", 1 / nothing.median(RUN), "s", note=note),
        record(f"{NAME}/no_op/ratio", nothing.ratio(REPRO, to=RUN), OF_REPRO, at_most=1, note=note),
    ]


def cost(done: Done) -> float:
    """Return the seconds that each stage of `stages.run -j 1` has cost beside its work.

    That is what the run has taken beyond its stages' processes, shared by all, and the shortest of these processes:
    one that had next to nothing to do.
    """
    seconds = [float(short) if short else _clock(long) for short, long in _RAN.findall(done.output)]
    return (done.seconds - sum(seconds)) / len(seconds) + min(seconds)


def compare_slots(scratch: Scratch, cores: int, rounds: int) -> list[Record]:
    """Return how much faster students are two at a time on a CPU, with one thread each.

    Args:
        scratch: a copy of the project whose students are ready to train.
        cores: of this machine.
        rounds: how often they are trained.
    """
    if cores < 2:
        return [missing(f"{NAME}/slots/ratio", FASTER, "there is one core")]

    def train(jobs: int, **variables: str) -> Run:
        arguments = ("--jobs", str(jobs), "--cohort", "1", "--devices", "cpu", *FORCED)
        return lambda: 1 / scratch.run(*arguments, **variables).seconds

    runs = {"one": train(1), "two": train(2, OMP_NUM_THREADS="1")}
    rates = interleaved("students", runs, rounds, warm=False)
    note = f"{STUDENTS} students on {cores} cores"
    return [
        record(f"{NAME}/slots/one", 1 / rates.median("one"), "s", note=note),
        record(f"{NAME}/slots/two", 1 / rates.median("two"), "s", note=note),
        record(f"{NAME}/slots/ratio", rates.ratio("two", to="one"), FASTER, at_least=1.6, note=note),
    ]


def compare_cohort(scratch: Scratch, rounds: int, *, gpu: bool) -> list[Record]:
    """Return how much faster students are in one cohort than by `dvc repro`, on a GPU.

    Args:
        scratch: a copy of the project whose students are ready to train.
        rounds: how often they are trained.
        gpu: there is one.
    """
    if not gpu:
        return [missing(f"{NAME}/cohort/ratio", FASTER, "the device is no GPU")]

    runs: dict[str, Run] = {
        REPRO: lambda: 1 / scratch.repro(*FORCED).seconds,
        RUN: lambda: 1 / scratch.run("--cohort", str(STUDENTS), *FORCED).seconds,
    }
    rates = interleaved("cohort", runs, rounds, warm=False)
    note = f"{STUDENTS} students of {EPOCHS} epochs"
    return [
        record(f"{NAME}/cohort/dvc_repro", 1 / rates.median(REPRO), "s", note=note),
        record(f"{NAME}/cohort/stages_run", 1 / rates.median(RUN), "s", note=note),
        record(f"{NAME}/cohort/ratio", rates.ratio(RUN, to=REPRO), FASTER, at_least=5, note=note),
    ]


def _clock(text: str) -> float:
    """Return the seconds of "1:05" or "2:01:05"."""
    return float(sum(60**power * int(part) for power, part in enumerate(reversed(text.split(":")))))


def _devices(bench: Bench) -> tuple[str, str]:
    return ("--devices", "cpu" if bench.machine.device.type == "cpu" else "auto")


def _environment(bench: Bench) -> dict[str, str]:
    return {
        "STILLHOUSE_DEVICE": bench.machine.device.type,
        "STILLHOUSE_PRECISION": bench.machine.precision,
    }
