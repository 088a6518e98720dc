"""Training a network by itself, on labels: every teacher, and every student's baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from pipeline.compute import distributed
from pipeline.compute.machine import Machine
from pipeline.data.prepared import Prepared
from pipeline.networks.network import Network, build
from pipeline.networks.spec import NetworkSpec
from pipeline.params.recipe import Phase, Recipe
from pipeline.params.views import ViewParams
from pipeline.training import result
from pipeline.training.batches import Views
from pipeline.training.loop import Moment, Terms, Training
from pipeline.training.setting import Setting, all_slots


class CrossEntropy:
    """Minimises the cross-entropy of labels."""

    def __init__(self, network: Network, machine: Machine) -> None:
        self.network, self.machine = network, machine

    def begin(self, views: Views, moment: Moment) -> Callable[[], None]:
        """Nothing is fetched."""
        return lambda: None

    def __call__(self, views: Views, fetched: None, moment: Moment) -> tuple[Tensor, Terms]:
        """Return the loss; its only term is `ce`."""
        with self.machine.autocast():
            logits = self.network(views.image)
        loss = F.cross_entropy(logits.float(), views.label)
        return loss, {"ce": loss}


def train(
    scratch: Path,
    spec: NetworkSpec,
    recipe: Recipe,
    views: ViewParams,
    prepared: Prepared,
    seed: int,
    machine: Machine,
    *,
    identity: str,
    title: str,
    anchors: Mapping[str, float] | None = None,
) -> None:
    """Train a network on labels and leave its result in `scratch`: init, last, best and anchor weights.

    Args:
        scratch: an existing folder; a checkpoint in it with the same identity is gone on from.
        spec: the network.
        recipe: how it is trained.
        views: what it sees.
        prepared: the data.
        seed: of init, order and views.
        machine: where it runs.
        identity: of everything that the result depends on.
        title: of the progress bar.
        anchors: shares of the epochs after which weights are kept, by name.

    Raises:
        DivergedError: the loss is not finite.
    """
    weights = result.begin(scratch, identity, spec, machine.ranks)
    network = build(spec, seed)
    machine.place(network)
    save = result.saver(network, weights, machine.ranks)
    save("init")
    distributed.synchronized(network, machine.device, machine.ranks)
    machine.compile(network)
    setting = Setting.of(prepared, views, machine)
    batches = setting.batches(recipe, seed, all_slots(setting.space, "all", title))
    training = Training(
        modules={"student": network},
        objective=CrossEntropy(network, machine),
        batches=replace(batches, ranks=machine.ranks),
        phases=(Phase("main", recipe),),
        evaluate=setting.evaluation(network),
        save=save,
        scratch=scratch,
        identity=identity,
        title=title,
        anchors={name: max(1, round(share * recipe.epochs)) for name, share in (anchors or {}).items()},
    )
    result.finish(scratch, training.run(), save, machine)
