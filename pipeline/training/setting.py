"""What every training has in common: data on the device, views, and the evaluation at an epoch's end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.compute.machine import Machine
from pipeline.data.images import open_images
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.data.views import ViewSpace, num_slots, view_space
from pipeline.evaluation.accuracy import top
from pipeline.evaluation.forward import PlainSplit, logits
from pipeline.networks.network import Network
from pipeline.params.recipe import Recipe
from pipeline.params.views import Slots, ViewParams
from pipeline.training.batches import Batches


@dataclass(frozen=True)
class Setting:
    """Prepared data on a device, seen through views."""

    prepared: Prepared
    space: ViewSpace
    normalize: Normalize
    machine: Machine

    @classmethod
    def of(cls, prepared: Prepared, views: ViewParams, machine: Machine) -> Setting:
        """Return the setting of some data, views and machine."""
        meta = prepared.meta
        normalize = Normalize(meta.mean, meta.std, machine.device)
        return cls(prepared, view_space(views), normalize, machine)

    def batches(self, recipe: Recipe, seed: int, slots: int | None) -> Batches:
        """Return the training batches of a run."""
        images, labels = open_images(self.prepared.split("train"), self.space, self.machine.device)
        return Batches(images, labels, slots, self.normalize, seed, recipe.batch_size, recipe.drop_last)

    def plain(self, split: str) -> PlainSplit:
        """Return the plain images of a split."""
        return PlainSplit.of(self.prepared, split, self.normalize, self.machine)

    def evaluation(self, network: Network) -> Callable[[], dict[str, float]]:
        """Return the function that gives top-1 and top-5 at an epoch's end.

        The best epoch is picked on the held-out split where there is one, else on the test split, as most
        published tables do.
        """
        split = self.plain("holdout" if "holdout" in self.prepared.meta.samples else "test")

        def evaluate() -> dict[str, float]:
            scores = logits(network, split, self.machine)
            return {"top1": top(scores, split.labels, 1), "top5": top(scores, split.labels, 5)}

        return evaluate


def all_slots(space: ViewSpace, slots: Slots, what: str) -> int | None:
    """Resolve the slots of a training that needs no store: all of an unbounded space is None."""
    return None if slots == "all" and space.count is None else num_slots(space, slots, what)
