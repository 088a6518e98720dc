"""The training loop: SGD over phases of epochs, with a history, checkpoints, and the best epoch kept.

What is trained, and on which loss, is the caller's. Every random draw is keyed by seed and epoch, so a run that
is interrupted resumes from its checkpoint and ends bit for bit where it would have ended.

Several ranks (`pipeline.compute.distributed`) divide every batch. Each weighs its loss, a mean over its part, by
its part's share, and the gradients are summed. So what is a mean over samples (cross-entropy, soft targets, a map's
error) is exactly one process's, uneven last batches too. What looks across the samples of a batch is that of the
part: Gram matrices and other terms of pairs, norms over the batch (BYOT), draws of `Batch.generator`, and on CPUs
what batch norms normalize by. On GPUs batch norms are synchronized. Their running statistics are the mean over the
ranks, taken at every epoch's end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline import progress
from pipeline.compute import threads
from pipeline.compute.distributed import Ranks
from pipeline.compute.eager import EagerSGD
from pipeline.errors import DataError, DivergedError, MachineError, ParamsError
from pipeline.networks.network import Network, Rest
from pipeline.params.recipe import Phase, Recipe
from pipeline.training import checkpoint
from pipeline.training.batches import Batches, Views

CHECKPOINT_SECONDS = 10.0  # at least, between checkpoints: short epochs would wait for the disk
Row = dict[str, float | int | str]
Terms = dict[str, Tensor]  # scalars by name


@dataclass(frozen=True)
class Moment:
    """Where in the training a step stands.

    Attributes:
        phase: the phase's name.
        epoch: within the phase.
        epochs: of the phase.
        step: over all phases.
    """

    phase: str
    epoch: int
    epochs: int
    step: int


class Objective(Protocol):
    """What one step minimizes."""

    def begin(self, views: Views, moment: Moment) -> Callable[[], Any]:
        """Start fetching what the step needs; returns the function that waits for it."""
        ...

    def __call__(self, views: Views, fetched: Any, moment: Moment) -> tuple[Tensor, Terms]:
        """Return the loss and its terms, scalars by name."""
        ...


@dataclass
class Training:
    """A training.

    Attributes:
        modules: what is checkpointed, by name; "student" is the network that is saved.
        objective: what a step minimizes.
        batches: the training split; of several ranks that divide it, the first evaluates and keeps the checkpoint.
        phases: in their order.
        evaluate: gives the columns of the history that belong to an epoch's end; "top1" picks the best epoch.
        save: called with "best" when an epoch is the best so far, and with the names of anchors.
        scratch: folder of the checkpoint.
        identity: of everything that the training depends on; a checkpoint of another one is not used.
        title: of the progress bar.
        anchors: epochs done, over all phases, after which `save` is called, by name.
    """

    modules: Mapping[str, nn.Module]
    objective: Objective
    batches: Batches
    phases: tuple[Phase, ...]
    evaluate: Callable[[], dict[str, float]]
    save: Callable[[str], None]
    scratch: Path
    identity: str
    title: str
    anchors: Mapping[str, int] = field(default_factory=dict)

    @property
    def ranks(self) -> Ranks:
        """The processes that share the work."""
        return self.batches.ranks

    def run(self) -> list[Row]:
        """Train, and return the history: one row an epoch.

        Raises:
            DataError: there is one sample.
            ParamsError: there are fewer samples than one batch, and the last is left out.
            MachineError: a batch has no two samples for each rank.
            DivergedError: a term or a weight that is not finite; the checkpoint of an earlier epoch stays in the
                scratch.
        """
        self._check_batches()
        with threads.suited(self._networks(), self._plain_image, self.batches.batch_size):
            return self._run()

    def _run(self) -> list[Row]:
        path = self.scratch / "checkpoint.safetensors"
        history = self.ranks.agree(self._done(path) if self.ranks.first else [])
        # What was frozen from the start stays so in every phase.
        trained = {id(x) for module in self.modules.values() for x in module.parameters() if x.requires_grad}

        with progress.bar(self.title, sum(phase.recipe.epochs for phase in self.phases)) as advance:
            advance(len(history))
            done, saved = 0, time.monotonic()
            for phase in self.phases:
                optimizer = self._optimizer(phase, trained)
                # Only the phase that was interrupted: the momentum is that of its optimizer.
                if done < len(history) <= done + phase.recipe.epochs:
                    checkpoint.restore(path, self.modules, optimizer)

                self.ranks.share_modules(self.modules)
                for epoch in range(max(0, len(history) - done), phase.recipe.epochs):
                    history.append(self._epoch(phase, epoch, optimizer, done))
                    self._keep(history)
                    if self.ranks.first and time.monotonic() - saved > CHECKPOINT_SECONDS:
                        state = {"identity": self.identity, "history": history}
                        checkpoint.save(path, self.modules, optimizer, state)
                        saved = time.monotonic()
                    advance(1, note=f"top-1 {history[-1]['top1']:.2f}")
                done += phase.recipe.epochs
        return history

    def _check_batches(self) -> None:
        """Refuse, before the first step, batches that nothing can be learned from."""
        batches, processes = self.batches, self.ranks.size
        if batches.batch_size < 2 * processes and processes > 1:
            raise MachineError(
                f"{self.title}: a batch of {batches.batch_size} has no two samples for each of {processes} "
                f"processes. Set STILLHOUSE_PROCESSES to {batches.batch_size // 2} or less."
            )

        if not any(phase.recipe.epochs for phase in self.phases):
            return
        samples = len(batches.labels)
        if samples < 2:
            raise DataError(
                f"{self.title}: the training split has {samples} sample, expected 2 or more, because a batch norm "
                "cannot learn from one. Add images to the data set, then: dvc repro"
            )

        if len(batches) == 0:
            raise ParamsError(
                f"{self.title}: {samples} training samples make no batch of {batches.batch_size}. Lower "
                "recipe.batch_size in params.yaml, or set drop_last: false."
            )

    def _networks(self) -> list[Network]:
        """Return the networks that run in a step; heads, which read maps, add little to the network they end."""
        return [
            network
            for module in self.modules.values()
            for network in module.modules()
            if isinstance(network, Network) and not isinstance(network, Rest)
        ]

    def _plain_image(self) -> Tensor:
        """Return the first normalized image (1, C, H, W)."""
        return self.batches.normalize(self.batches.images.begin(0, torch.tensor([0]))())

    def _done(self, path: Path) -> list[Row]:
        """Return the history of the checkpoint that training resumes from."""
        resumed = checkpoint.state(path)
        history: list[Row] = resumed["history"] if resumed and resumed["identity"] == self.identity else []
        return history

    def _epoch(self, phase: Phase, epoch: int, optimizer: torch.optim.Optimizer, before: int) -> Row:
        rate = phase.recipe.rate(epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for module in self.modules.values():
            module.train()

        start = time.perf_counter()
        step = (before + epoch) * len(self.batches)
        moment = Moment(phase.name, epoch, phase.recipe.epochs, step)
        parameters = [x for group in optimizer.param_groups for x in group["params"]]

        names: list[str] = []
        rows: list[Tensor] = []
        # By the epoch of the whole training: a second phase sees new orders and views.
        for number, (views, fetch) in enumerate(self._ahead(epoch + before, moment)):
            now = Moment(moment.phase, epoch, moment.epochs, step + number)
            loss, terms = self.objective(views, fetch(), now)
            # To None: what has no gradient in this step is left alone, by weight decay too.
            optimizer.zero_grad(set_to_none=True)
            (loss * views.share).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self.ranks.sum_gradients(parameters)
            optimizer.step()
            names = [*terms, "loss"]
            # They stay on the device: reading them would make every step wait.
            row = torch.stack([*(term.detach() for term in terms.values()), loss.detach()])
            rows.append(row * views.share)

        # Before the evaluation: it reads running statistics, and may keep the weights as the best.
        means = self._means(names, self.ranks.total(torch.stack(rows)).cpu(), moment)
        self.ranks.share_statistics(self.modules)
        self._check_weights(moment, len(rows))
        # The history's speed is that of training, without evaluation.
        seconds = time.perf_counter() - start
        return {
            "epoch": before + epoch + 1,
            "phase": phase.name,
            "learning_rate": rate,
            **means,
            **self.ranks.agree(self.evaluate() if self.ranks.first else {}),
            "seconds": seconds,
            "images_per_second": sum(self.batches.sizes) / seconds,
        }

    def _ahead(self, epoch: int, moment: Moment) -> Iterator[tuple[Views, Callable[[], Any]]]:
        """Give the batches of an epoch; each has its fetch started while the one before is computed."""
        waiting: tuple[Views, Callable[[], Any]] | None = None
        for views in self.batches.epoch(epoch):
            following = (views, self.objective.begin(views, moment))
            if waiting is not None:
                yield waiting
            waiting = following
        if waiting is not None:
            yield waiting

    def _means(self, names: list[str], rows: Tensor, moment: Moment) -> dict[str, float]:
        """Average the terms (steps, terms) over an epoch, once an epoch so that no step waits for the device."""
        if not torch.isfinite(rows).all():
            step, term = (~torch.isfinite(rows)).nonzero()[0].tolist()
            raise DivergedError(
                f"{self.title}: term '{names[term]}' is {rows[step, term].item()} in epoch {moment.epoch + 1}, "
                f"step {step + 1}. Lower recipe.learning_rate or that term's weight in params.yaml, then: dvc repro"
            )
        return dict(zip(names, rows.double().mean(dim=0).tolist(), strict=True))

    def _check_weights(self, moment: Moment, step: int) -> None:
        """Refuse weights that an epoch's last step has spoiled: no later loss would tell before they are kept."""
        tensors = {
            f"{key}.{name}": x.detach()
            for key, module in self.modules.items()
            # A method's buffers are its own affair, and may well hold an infinity; the student's are saved.
            for name, x in (
                module.state_dict() if key == "student" else dict(module.named_parameters())
            ).items()
            if x.is_floating_point()
        }
        finite = torch.stack([torch.isfinite(x).all() for x in tensors.values()]).tolist()
        if not all(finite):
            name = list(tensors)[finite.index(False)]
            raise DivergedError(
                f"{self.title}: '{name}' is not finite after epoch {moment.epoch + 1}, step {step}. "
                "Lower recipe.learning_rate or the weights of the loss's terms in params.yaml, then: dvc repro"
            )

    def _keep(self, history: list[Row]) -> None:
        # Of equal epochs the first is the best, here as in the summary.
        if float(history[-1]["top1"]) > max((float(row["top1"]) for row in history[:-1]), default=-1.0):
            self.save("best")
        for name, epochs in self.anchors.items():
            if len(history) == epochs:
                self.save(name)

    def _optimizer(self, phase: Phase, trained: set[int]) -> torch.optim.Optimizer:
        """Return a phase's optimizer of the parameters `trained`, by id, that the phase does not freeze."""
        parameters = []
        for key, module in self.modules.items():
            for name, parameter in module.named_parameters():
                frozen = key == "student" and name.startswith(phase.frozen)
                parameter.requires_grad_(id(parameter) in trained and not frozen)
                if parameter.requires_grad:
                    parameters.append(parameter)
        return sgd(parameters, phase.recipe)


def sgd(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.SGD:
    """Return the optimizer of a recipe."""
    return EagerSGD(
        parameters,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
