"""Training a network by itself, on labels: every teacher, and every student's baseline."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from torch import Tensor

from pipeline.compute.machine import Machine
from pipeline.data.prepared import Prepared
from pipeline.networks.network import Network, Taps, build
from pipeline.networks.spec import NetworkSpec
from pipeline.params.anchors import check_anchors
from pipeline.params.recipe import Epoch, Phase, Recipe
from pipeline.params.views import ViewParams
from pipeline.params.weights import Head
from pipeline.training import assembly, linear_head
from pipeline.training.assembly import Assembly, Job, Subject
from pipeline.training.balance import label_term
from pipeline.training.batches import Views
from pipeline.training.setting import Setting, all_slots
from pipeline.training.step import Clock, Terms


class CrossEntropy:
    """Minimizes the cross-entropy of labels.

    Args:
        network: the network that is trained.
        machine: where it runs.
        smoothing: share of each label that is spread over all classes.
        weights: of the classes (K,), on the device; None weighs all alike.
    """

    def __init__(
        self, network: Network, machine: Machine, smoothing: float = 0.0, weights: Tensor | None = None
    ) -> None:
        self.network, self.machine, self.smoothing, self.weights = network, machine, smoothing, weights

    def start(self, epoch: Epoch) -> Hashable:
        """Begin an epoch; all are alike."""
        return None

    def begin(self, slot: int, index: Tensor) -> Callable[[], Taps]:
        """Read nothing."""
        return dict

    def __call__(self, views: Views, read: Taps, clock: Clock) -> tuple[Tensor, Terms]:
        """Return the loss; its only term is `ce`."""
        with self.machine.autocast():
            logits = self.network(views.image)
        # In float32, whatever the forward pass was computed in.
        loss = label_term(logits.float(), views.label, self.smoothing, self.weights, views.mixture)
        return loss, {"ce": loss}


def train(
    job: Job,
    spec: NetworkSpec,
    recipe: Recipe,
    views: ViewParams,
    prepared: Prepared,
    seed: int,
    anchors: Mapping[str, float] | None = None,
    head: Head = "own",
) -> None:
    """Train a network on labels and leave its result in the job's scratch folder; see `prepare`.

    Raises:
        DivergedError: the loss is not finite.
    """
    assembly.train(prepare(job, spec, recipe, views, prepared, seed, anchors, head))


def prepare(
    job: Job,
    spec: NetworkSpec,
    recipe: Recipe,
    views: ViewParams,
    prepared: Prepared,
    seed: int,
    anchors: Mapping[str, float] | None = None,
    head: Head = "own",
) -> Assembly:
    """Return the training of a network on labels, ready to run.

    Args:
        job: where it runs.
        spec: the network.
        recipe: how it is trained.
        views: what it sees.
        prepared: the data.
        seed: seed of init, order and views.
        anchors: shares of the epochs after which weights are kept, by name.
        head: "linear" fits the classifier first.
    """
    network = build(spec, seed)
    job.machine.place(network)
    setting = Setting.of(prepared, views, job.machine)
    if head == "linear":
        linear_head.fit(network, setting.plain("train"), job.machine)
    # All views there are: no store limits them.
    batches = setting.batches(recipe, seed, all_slots(setting.space, "all", job.title))

    steps, shares = len(batches), anchors or {}
    if steps and recipe.iterations is not None:  # others are checked already
        check_anchors([*shares.values()], recipe, f"anchors of {job.title}", steps)

    return assembly.assemble(
        job,
        Subject(network, spec),
        CrossEntropy(network, job.machine, recipe.label_smoothing, setting.class_weights(recipe, job.title)),
        setting,
        batches,
        (Phase("main", recipe),),
        anchors={name: recipe.epochs_of(share, steps) for name, share in shares.items()} if steps else {},
    )
