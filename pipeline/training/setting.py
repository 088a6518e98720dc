"""What every training has in common: data on the device, views, and the evaluation at an epoch's end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from pipeline.compute.machine import Machine
from pipeline.data.images import open_images
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.data.two_views import TwoViewsImages
from pipeline.data.views import ViewSpace, mixing, num_slots, view_space
from pipeline.evaluation.accuracy import top
from pipeline.evaluation.forward import PlainSplit, logits
from pipeline.networks.network import Network
from pipeline.params.recipe import Recipe
from pipeline.params.views import Slots, ViewParams
from pipeline.training import balance
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

    def batches(self, recipe: Recipe, seed: int, slots: int | None, *, strong: bool = False) -> Batches:
        """Return the training batches of a run.

        Args:
            recipe: how it is trained.
            seed: of the run.
            slots: how many views are shown; None where they are unbounded.
            strong: show the strong view of each sample too, where the views have one.
        """
        split = self.prepared.split("train")
        images, labels = open_images(split, self.space, self.machine.device)
        groups = balance.by_class(split.labels) if recipe.sampling == "balanced" else ()
        batches = Batches(
            images,
            labels,
            slots,
            self.normalize,
            seed,
            recipe.batch_size,
            recipe.drop_last,
            groups=groups,
            # Plain views are not mixed.
            mixing=None if slots == 0 else mixing(self.space),
        )
        if not isinstance(images, TwoViewsImages):
            return batches
        return replace(batches, images=images.weak, paired=True, strong=images.strong if strong else None)

    def class_weights(self, recipe: Recipe, title: str) -> Tensor | None:
        """Return what labels weigh by their class (K,), on the device; None where all weigh the same.

        Raises:
            UnknownNameError: the recipe names a class that is not there.
            ParamsError: it weighs every image with 0.
        """
        labels = self.prepared.split("train").labels
        weights = balance.class_weights(recipe, labels, self.prepared.meta.classes, title)
        return None if weights is None else weights.to(self.machine.device)

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
