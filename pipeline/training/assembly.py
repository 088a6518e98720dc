"""What all trainings have in common: a network on its machine, the loop over it, and the folder that it leaves.

Several may run in one process (`run`): each ends as it would have ended alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from pipeline import progress
from pipeline.compute import distributed
from pipeline.compute.machine import Machine
from pipeline.errors import StillhouseError
from pipeline.networks.network import Network
from pipeline.params.base import Block
from pipeline.params.recipe import Phase
from pipeline.training import loop, result
from pipeline.training.average import Average
from pipeline.training.batches import Sampled
from pipeline.training.loop import AVERAGE, Row, Training
from pipeline.training.step import Objective


@dataclass(frozen=True)
class Job:
    """Where a training runs and what it is known by.

    Attributes:
        scratch: an existing folder; training resumes from a checkpoint in it that has the same identity.
        machine: the device and the processes.
        identity: hash of everything that the result depends on.
        title: title of the progress bar.
        made_by: DVC's name of the stage.
        inputs: hash of what it is trained from, as a reader of its result can know it; empty where nobody asks.
    """

    scratch: Path
    machine: Machine
    identity: str
    title: str
    made_by: str
    inputs: str = ""


@dataclass(frozen=True)
class Subject:
    """The network that is trained, and what is trained beside it.

    Attributes:
        network: the network that is saved, placed on the machine.
        spec: what it is.
        beside: modules that are trained and checkpointed with it and dropped afterwards, by name.
        frozen: networks that run beside it and learn nothing.
    """

    network: nn.Module
    spec: Block
    beside: Mapping[str, nn.Module] = field(default_factory=dict)
    frozen: Iterable[Network] = ()


class Evaluating(Protocol):
    """Knows how a network is evaluated at an epoch's end."""

    def evaluation(self, network: Any) -> Callable[[], dict[str, float]]:
        """Return the function that gives the history's columns of it."""
        ...


@dataclass(frozen=True)
class Assembly:
    """A training that is ready to run.

    Attributes:
        training: the loop.
        finish: writes its result from its history.
    """

    training: Training
    finish: Callable[[list[Row]], None]


def train(assembly: Assembly) -> None:
    """Run a training and leave its result.

    Raises:
        DivergedError: a term is not finite.
    """
    assembly.finish(assembly.training.run())


def run(assemblies: Sequence[Assembly]) -> list[StillhouseError | None]:
    """Run trainings of one data set and batch size; return for each why it has no result, or None.

    One that fails does not stop the others.
    """
    failures: list[StillhouseError | None] = []
    outcomes = loop.run([assembly.training for assembly in assemblies])
    for assembly, outcome in zip(assemblies, outcomes, strict=True):
        if isinstance(outcome, StillhouseError):
            failures.append(outcome)
        else:
            assembly.finish(outcome)
            failures.append(None)
    return failures


def assemble(
    job: Job,
    subject: Subject,
    objective: Objective,
    setting: Evaluating,
    batches: Sampled,
    phases: tuple[Phase, ...],
    *,
    diagnose: Callable[[], dict[str, float]] = dict,
    anchors: Mapping[str, int] | None = None,
    finish: Callable[[], None] = lambda: None,
    measure: str = "top1",
    evaluated: Callable[[int], bool] = bool,
) -> Assembly:
    """Make a training ready, which leaves in the job's scratch folder init, last, best and anchor weights.

    Args:
        job: where it runs.
        subject: what is trained.
        objective: what a step minimizes.
        setting: the data, as it is evaluated.
        batches: the training batches.
        phases: parts of the training, in their order; the last one says whether an average of the weights is kept.
        diagnose: what an epoch showed beside its terms.
        anchors: epochs after which weights are kept, by name.
        finish: called before the result is written.
        measure: the column of the history that picks the best epoch.
        evaluated: which epochs are evaluated, by how many are done at their end.
    """
    machine, network = job.machine, subject.network
    folder = result.begin(job.scratch, job.identity, subject.spec, machine.ranks, anchors)
    # Before anything is placed or compiled: it is evaluated alone.
    decay = phases[-1].recipe.ema
    average = None if decay is None else Average(network, decay)
    kept = network if average is None else average.network
    save = result.saver(kept, folder, machine.ranks)
    # Before a checkpoint fills the network: a resumed training keeps its first weights too.
    save("init")

    # Synchronized batch norms are other modules, which have to be placed and compiled in their turn.
    modules = {"student": network, **subject.beside}
    if average is not None:
        modules[AVERAGE] = average.network
    for module in modules.values():
        distributed.synchronized(module, machine.device, machine.ranks)
    for module in (*modules.values(), *subject.frozen):
        machine.place(module)
    for module in (network, *subject.frozen):
        machine.compile(module)

    evaluate = setting.evaluation(kept)
    training = Training(
        modules=modules,
        objective=objective,
        batches=batches.divided(machine.ranks),
        phases=phases,
        evaluate=lambda: evaluate() | diagnose(),
        save=save,
        scratch=job.scratch,
        identity=job.identity,
        title=job.title,
        anchors=anchors or {},
        captured=machine.captured and machine.ranks.size == 1,
        fused=machine.fused,
        measure=measure,
        evaluated=evaluated,
        average=average,
    )
    if machine.captured and machine.ranks.size > 1:
        progress.say(
            f"{job.title}: its steps run eagerly and are not captured, because ranks exchange gradients"
        )

    def write(history: list[Row]) -> None:
        finish()
        result.finish(job.scratch, history, save, machine, job.made_by, job.inputs, measure)

    return Assembly(training, write)
