"""What all trainings have in common: a network on its machine, the loop over it, and the folder that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from pipeline.compute import distributed
from pipeline.compute.machine import Machine
from pipeline.networks.network import Network
from pipeline.networks.spec import NetworkSpec
from pipeline.params.recipe import Phase
from pipeline.training import result
from pipeline.training.batches import Batches
from pipeline.training.loop import Objective, Training
from pipeline.training.setting import Setting


@dataclass(frozen=True)
class Job:
    """Where a training runs and what it is known by.

    Attributes:
        scratch: an existing folder; training resumes from a checkpoint in it that has the same identity.
        machine: the device and the processes.
        identity: hash of everything that the result depends on.
        title: title of the progress bar.
        made_by: DVC's name of the stage.
    """

    scratch: Path
    machine: Machine
    identity: str
    title: str
    made_by: str


@dataclass(frozen=True)
class Subject:
    """The network that is trained, and what is trained beside it.

    Attributes:
        network: the network that is saved, placed on the machine.
        spec: what it is.
        beside: modules that are trained and checkpointed with it and dropped afterwards, by name.
        frozen: networks that run beside it and learn nothing.
    """

    network: Network
    spec: NetworkSpec
    beside: Mapping[str, nn.Module] = field(default_factory=dict)
    frozen: Iterable[Network] = ()


def train(
    job: Job,
    subject: Subject,
    objective: Objective,
    setting: Setting,
    batches: Batches,
    phases: tuple[Phase, ...],
    *,
    diagnose: Callable[[], dict[str, float]] = dict,
    anchors: Mapping[str, int] | None = None,
) -> None:
    """Train a network and leave its result in the job's scratch folder: init, last, best and anchor weights.

    Args:
        job: where it runs.
        subject: what is trained.
        objective: what a step minimizes.
        setting: the data.
        batches: the training batches.
        phases: parts of the training, in their order.
        diagnose: what an epoch showed beside its terms.
        anchors: epochs after which weights are kept, by name.

    Raises:
        DivergedError: a term is not finite.
    """
    machine, network = job.machine, subject.network
    folder = result.begin(job.scratch, job.identity, subject.spec, machine.ranks)
    save = result.saver(network, folder, machine.ranks)
    # Before a checkpoint fills the network: a resumed training keeps its first weights too.
    save("init")

    # Synchronized batch norms are other modules, which have to be placed and compiled in their turn.
    modules = {"student": network, **subject.beside}
    for module in modules.values():
        distributed.synchronized(module, machine.device, machine.ranks)
    for module in (*modules.values(), *subject.frozen):
        machine.place(module)
    for module in (network, *subject.frozen):
        machine.compile(module)

    evaluate = setting.evaluation(network)
    training = Training(
        modules=modules,
        objective=objective,
        batches=replace(batches, ranks=machine.ranks),
        phases=phases,
        evaluate=lambda: evaluate() | diagnose(),
        save=save,
        scratch=job.scratch,
        identity=job.identity,
        title=job.title,
        anchors=anchors or {},
    )
    result.finish(job.scratch, training.run(), save, machine, job.made_by)
