"""What every method costs: time and memory of its step, what is trained beside the student, what a store must hold.

The listing of the methods' folder is the list, each with its defaults, and KD under schedules that train networks of
their own stands beside them. Features and tables are given from memory, as small features are in training; tables are
those of a rehearsal, of which the sizes count alone. A method with phases is measured in its first one, in which the
features are taught.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from pipeline import plugin
from pipeline.benchmark.material import VIEWS, Bench
from pipeline.benchmark.record import Record, missing, record
from pipeline.benchmark.step import Learner, learner, side_by_side, training_batches
from pipeline.benchmark.timing import Run, interleaved
from pipeline.benchmark.words import Given
from pipeline.data.views import view_space
from pipeline.distillation.method import Known, MethodConfig, Needs, Tables
from pipeline.errors import StillhouseError
from pipeline.evaluation.cost import num_params
from pipeline.features.extract import stored_features
from pipeline.features.layout import Layout
from pipeline.features.teacher import Teacher, on_device
from pipeline.networks.architecture import architecture
from pipeline.networks.network import Network
from pipeline.networks.spec import NetworkSpec
from pipeline.params.recipe import Epoch
from pipeline.runs.planning import store_bytes
from pipeline.tables.table import TableConfig
from pipeline.training.batches import Batches
from pipeline.training.step import Clock

KD = "kd"
SCHEDULES = ("self_learning",)  # that train networks of their own; others change what is cached alone
FEATURE = "final"  # what tables are fitted to
ROUNDS = 3  # at most: each is a training of every method
DTYPE = "float16"  # of what is cached: the default of params.yaml
UNITS = {
    "step": "of KD's",
    "memory": "MB",
    "trained beside": "parameters",
    "state beside": "MB",
    "at inference": "parameters",
    "all views": "GB",
}


class Fitted(dict[str, str]):
    """Every table that a method names is there, and fitted to one feature."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return FEATURE


@dataclass(frozen=True)
class Pair:
    """Teacher and student of the measurement.

    Attributes:
        teacher: what it is.
        student: what it is, plain.
        network: the teacher's, with random weights.
        known: what settings are filled in from.
        batches: the training data.
    """

    teacher: NetworkSpec
    student: NetworkSpec
    network: Network
    known: Known
    batches: Batches


@dataclass(frozen=True)
class Row:
    """A method, ready to be measured.

    Attributes:
        needs: what it reads.
        tables: arrays of the tables among that.
        learner: what a step trains.
    """

    needs: Needs
    tables: Tables
    learner: Learner


def costs(bench: Bench) -> list[Record]:
    """Measure every method by its defaults, and KD under the schedules that train networks of their own."""
    teacher, student = bench.scale.pairs[0]
    specs = bench.spec(teacher), bench.spec(student)
    known = Known(architecture(specs[1]), architecture(specs[0]), Fitted())
    # A few steps: there are dozens of methods.
    steps = max(1, bench.scale.method_steps // 4)
    batches = training_batches(bench, steps * bench.scale.batch_size)
    pair = Pair(*specs, bench.teacher(teacher).network, known, batches)

    rows: dict[str, Row] = {}
    runs: dict[str, Run] = {}
    lacking: dict[str, str] = {}
    for name in (*plugin.names("methods"), *SCHEDULES):
        try:
            row = _row(bench, pair, name)
            run = side_by_side(bench, [row.learner], _shown(row, batches))
            run()  # the round that does not count; what cannot be trained so takes no other with it
        except (StillhouseError, ValueError) as error:
            lacking[name] = " ".join(str(error).split())[:200]
        else:
            rows[name], runs[name] = row, run

    title = f"{pair.teacher.network}-{pair.student.network}"
    rates = interleaved(f"steps of {title}", runs, min(ROUNDS, bench.scale.rounds), warm=False)
    records: list[Record] = []
    for name in sorted((*rows, *lacking)):
        place = f"costs/{title}/{name}"
        if name in lacking:
            records += [missing(f"{place}/{key}", unit, lacking[name]) for key, unit in UNITS.items()]
            continue
        # Of rates, so the other way round.
        values = {"step": rates.ratio(KD, to=name)} | _sizes(bench, pair, rows[name])
        needs = rows[name].needs
        notes = {"all views": "reads " + (", ".join((*needs.teacher, *needs.tables)) or "nothing")}
        records += [
            record(f"{place}/{key}", values[key], unit, note=notes.get(key, ""))
            for key, unit in UNITS.items()
        ]
    return records


def memory(bench: Bench, measured: Learner, batches: Batches) -> int:
    """Return the bytes of a step that are there for its backward pass; on a GPU what is allocated at most in a step.

    Weights and other state, which stay from step to step, do not count.

    Args:
        bench: where it is measured.
        measured: what a step trains.
        batches: of which one is shown.
    """
    device, objective = bench.machine.device, measured.objective
    views, clock = next(batches.epoch(0)), Clock.on(device)
    for module in measured.modules.values():
        module.train()
    objective.start(Epoch(measured.phase, 0, 1))

    def loss() -> Tensor:
        return objective(views, objective.begin(0, views.index.cpu())(), clock)[0]

    if device.type == "cuda":
        # A first step, which makes its kernels and workspaces.
        loss().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _drop_gradients(measured)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        loss().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        peak = torch.cuda.max_memory_allocated(device) - before
        _drop_gradients(measured)
        return peak

    with kept(_state(measured)) as storages:
        total = loss()
    del total
    return sum(x.untyped_storage().nbytes() for x in storages.values())


@contextmanager
def kept(state: Sequence[Tensor]) -> Iterator[dict[int, Tensor]]:
    """Note what autograd saves for the backward pass, by its storage: each once, however many views of it are saved.

    Args:
        state: tensors that are there anyway.
    """
    own = {x.untyped_storage().data_ptr() for x in state}
    storages: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if (place := x.untyped_storage().data_ptr()) not in own:
            storages[place] = x  # held, so that no other takes its place
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield storages


def cached_bytes(bench: Bench, pair: Pair, row: Row) -> int:
    """Return what the store of a method's features takes on the disk for all views of the images of a full epoch."""
    count = view_space(VIEWS).count
    assert count is not None, "the benchmark's views are counted"
    requested = dict.fromkeys(row.needs.teacher, (count, DTYPE))
    stored = stored_features(requested, _teacher(bench, pair, row.tables), 3, pair.teacher.size)
    return sum(
        store_bytes(Layout.plan((1 + count, bench.scale.images, *feature.shape), feature.dtype))
        for feature in stored.values()
    )


def _row(bench: Bench, pair: Pair, name: str) -> Row:
    """Return a method with its defaults, or KD under the schedule of that name, ready to be measured."""
    method, schedule = (KD, name) if name in SCHEDULES else (name, "final")
    module = plugin.load("methods", method)
    config: MethodConfig = module.Config().resolved(pair.known)
    needs: Needs = module.Method.needs(config)
    tables = {table: _stand_in(pair, table) for table in needs.tables}

    # One batch stands for all: a step's time does not depend on what it learns.
    views = next(pair.batches.epoch(0))
    given = _teacher(bench, pair, tables).features(views.image, needs.teacher, views.label)
    measured = learner(
        bench,
        pair.student,
        Given(given),
        pair.batches,
        name=method,
        features={feature: tuple(x.shape[1:]) for feature, x in given.items()},
        tables=tables,
        schedule_name=schedule,
        teacher=pair.network if needs.network or schedule in SCHEDULES else None,
        known=pair.known,
        samples=bench.scale.images,
    )
    return Row(needs, tables, measured)


def _shown(row: Row, batches: Batches) -> Batches:
    """Return the batches that a method learns from: for a strong view stands the same one."""
    return replace(batches, strong=batches.images) if row.needs.strong else batches


def _stand_in(pair: Pair, table: str) -> Mapping[str, Any]:
    """Return arrays of a table's sizes: of the fit that its name begins with, and of words where there is none."""
    fit = next((name for name in plugin.names("tables") if table.startswith(name)), "kmeans")
    module = plugin.load("tables", fit)
    config: TableConfig = module.Config(feature=FEATURE)
    channels = pair.known.teacher.taps[FEATURE][0]
    arrays: Mapping[str, Any] = module.stand_in(config, channels, pair.teacher.classes)
    return arrays


def _teacher(bench: Bench, pair: Pair, tables: Tables) -> Teacher:
    return Teacher(pair.network, bench.machine, on_device(tables, bench.machine))


def _sizes(bench: Bench, pair: Pair, row: Row) -> dict[str, float]:
    """Return what a method takes up: in a step, beside the student, at inference, in a store."""
    modules = row.learner.modules
    beside = [module for key, module in modules.items() if key != "student"]
    parameters = [x for module in beside for x in module.parameters()]
    still = [x for x in parameters if not x.requires_grad]
    return {
        "memory": memory(bench, row.learner, _shown(row, pair.batches)) / 1e6,
        "trained beside": sum(x.numel() for x in parameters if x.requires_grad),
        "state beside": sum(x.nbytes for x in chain(still, *(module.buffers() for module in beside))) / 1e6,
        "at inference": num_params(modules["student"]),
        "all views": cached_bytes(bench, pair, row) / 1e9,
    }


def _state(measured: Learner) -> list[Tensor]:
    modules = measured.modules.values()
    return [x for module in modules for x in chain(module.parameters(), module.buffers())]


def _drop_gradients(measured: Learner) -> None:
    for module in measured.modules.values():
        module.zero_grad(set_to_none=True)
