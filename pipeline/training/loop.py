"""The training loop: an optimizer over phases of epochs, with a history, checkpoints, and the best epoch kept.

What is trained, and on which loss, is the caller's. Every random draw is keyed by seed and epoch, so a run that
is interrupted resumes from its checkpoint and ends bit for bit where it would have ended.

A step is a function of tensors on the device (`pipeline.training.step`). On a GPU the loop captures it as a CUDA graph
and replays that, and several trainings that are run together (`run`) are the branches of one graph: each ends as it
would have ended alone.

Several ranks (`pipeline.compute.distributed`) divide every batch. Each weighs its loss, a mean over its part, by
its part's share, and the gradients are summed. So what is a mean over samples (cross-entropy, soft targets, a map's
error) is exactly one process's, uneven last batches too. What looks across the samples of a batch is that of the
part: Gram matrices and other terms of pairs, norms over the batch (BYOT), draws of `Batch.uniform`, and on CPUs
what batch norms normalize by. On GPUs batch norms are synchronized. Their running statistics are the mean over the
ranks, taken at every epoch's end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline import progress
from pipeline.compute import threads
from pipeline.compute.distributed import Ranks
from pipeline.compute.graphs import side_stream
from pipeline.errors import DataError, DivergedError, MachineError, ParamsError, StillhouseError
from pipeline.networks.network import Network, Rest
from pipeline.params.recipe import Epoch, Phase
from pipeline.training import checkpoint
from pipeline.training.average import Average
from pipeline.training.batches import Sampled
from pipeline.training.optimizer import recipe_optimizer, undecayed
from pipeline.training.step import Captured, Objective, Step, take

AVERAGE = "average"  # among a training's modules
CHECKPOINT_SECONDS = 10.0  # at least, between checkpoints: short epochs would wait for the disk
Row = dict[str, float | int | str]
_SHOWN = {"top1": "top-1"}  # columns whose name is not what people call it


@dataclass
class Training:
    """A training.

    Attributes:
        modules: what is checkpointed, by name; "student" is the network that is trained.
        objective: what a step minimizes.
        batches: the training split; of several ranks that divide it, the first evaluates and keeps the checkpoint.
        phases: in their order.
        evaluate: gives the columns of the history that belong to an epoch's end; `measure` picks the best epoch.
        save: called with "best" when an epoch is the best so far, and with the names of anchors.
        scratch: folder of the checkpoint.
        identity: of everything that the training depends on; a checkpoint of another one is not used.
        title: of the progress bar.
        anchors: epochs done, over all phases, after which `save` is called, by name.
        captured: replay steps as a CUDA graph where they can be captured.
        fused: update all parameters by one kernel, at a learning rate that lies on the device; as `captured` needs it.
        measure: the column that picks the best epoch, the largest first.
        evaluated: which epochs are evaluated, by how many are done at their end.
        average: of the student over the steps, whose network is the module "average" too; None where none is kept.
    """

    modules: Mapping[str, nn.Module]
    objective: Objective
    batches: Sampled
    phases: tuple[Phase, ...]
    evaluate: Callable[[], dict[str, float]]
    save: Callable[[str], None]
    scratch: Path
    identity: str
    title: str
    anchors: Mapping[str, int] = field(default_factory=dict)
    captured: bool = False
    fused: bool = False
    measure: str = "top1"
    evaluated: Callable[[int], bool] = bool
    average: Average | None = None

    @property
    def ranks(self) -> Ranks:
        """The processes that share the work."""
        return self.batches.ranks

    @property
    def num_epochs(self) -> int:
        """Number of epochs over all phases."""
        return sum(phase.recipe.num_epochs(len(self.batches)) for phase in self.phases)

    def run(self) -> list[Row]:
        """Train, and return the history: one row an epoch.

        Raises:
            DataError: there is one sample.
            ParamsError: there are fewer samples than one batch, and the last is left out.
            MachineError: a batch has no two samples for each rank.
            DivergedError: a term or a weight that is not finite; the checkpoint of an earlier epoch stays in the
                scratch.
        """
        (outcome,) = run([self])
        if isinstance(outcome, StillhouseError):
            raise outcome
        return outcome

    def epochs(self, history: list[Row]) -> Iterator[Step]:
        """Give the step of every epoch, made ready for its first batch; when the next one is asked for, it is done.

        Args:
            history: filled with one row an epoch, those of a checkpoint first.
        """
        self._check()
        path = self.scratch / "checkpoint.safetensors"
        history.extend(self.ranks.agree(self._done(path) if self.ranks.first else []))
        # What was frozen from the start stays so in every phase.
        trained = {id(x) for module in self.modules.values() for x in module.parameters() if x.requires_grad}
        feed = self.batches.feed(fixed=self.captured)
        done, taken, saved = 0, 0, time.monotonic()
        for place, phase in enumerate(self.phases):
            recipe, steps = phase.recipe, len(self.batches)
            epochs = recipe.num_epochs(steps)
            optimizer = self._optimizer(phase, trained)
            # Only the phase that was interrupted: the momentum is that of its optimizer.
            if done < len(history) <= done + epochs:
                checkpoint.restore(path, self.modules, optimizer)
            self.ranks.share_modules(self.modules)

            step = Step(
                self.title,
                self.objective,
                self.batches,
                feed,
                optimizer,
                self.ranks,
                clip=recipe.clip,
                average=self.average,
            )
            for number in range(max(0, len(history) - done), epochs):
                for module in self.modules.values():
                    module.train()
                epoch = Epoch.of(self.phases, place, number, steps)

                step.start(epoch, done, recipe.rates(number, steps), taken + number * steps)
                yield step
                history.append(self._row(epoch, done, step))

                self._keep(history)
                if self.ranks.first and time.monotonic() - saved > CHECKPOINT_SECONDS:
                    state = {"identity": self.identity, "history": history}
                    checkpoint.save(path, self.modules, optimizer, state)
                    saved = time.monotonic()
            done, taken = done + epochs, taken + recipe.num_steps(steps)
            # A gradient that a graph has left holds a piece of the graph's memory, and with it much of the rest.
            optimizer.zero_grad(set_to_none=True)

    def _check(self) -> None:
        """Refuse, before the first step, batches that nothing can be learned from; see `run`."""
        batches, processes = self.batches, self.ranks.size
        if batches.batch_size < 2 * processes and processes > 1:
            raise MachineError(
                f"{self.title}: a batch of {batches.batch_size} has no two samples for each of {processes} "
                f"processes. Set STILLHOUSE_PROCESSES to {batches.batch_size // 2} or less."
            )

        if not any(phase.recipe.trains for phase in self.phases):
            return
        samples = batches.samples
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

    def networks(self) -> list[Network]:
        """Return the networks that run in a step; heads, which read maps, add little to the network they end."""
        return [
            network
            for key, module in self.modules.items()
            for network in module.modules()
            if key != AVERAGE and isinstance(network, Network) and not isinstance(network, Rest)
        ]

    def plain_image(self) -> Tensor:
        """Return the first normalized image (1, C, H, W)."""
        return self.batches.plain_image()

    def _done(self, path: Path) -> list[Row]:
        """Return the history of the checkpoint that training resumes from."""
        resumed = checkpoint.state(path)
        history: list[Row] = resumed["history"] if resumed and resumed["identity"] == self.identity else []
        return history

    def _row(self, epoch: Epoch, before: int, step: Step) -> Row:
        """Return the history's row of an epoch that has ended."""
        # Before the evaluation: it reads running statistics, and may keep the weights as the best.
        means = self._means(step.names, step.terms, epoch)
        self.ranks.share_statistics(self.modules)
        self._check_weights(epoch, len(step))
        done = before + epoch.number + 1
        return {
            "epoch": done,
            "phase": epoch.phase,
            "learning_rate": step.rates[-1],
            **means,
            **self.ranks.agree(self.evaluate() if self.ranks.first and self.evaluated(done) else {}),
            # The history's speed is that of training, without evaluation.
            "seconds": step.seconds,
            "images_per_second": step.images / step.seconds,
        }

    def _means(self, names: Sequence[str], rows: Tensor, epoch: Epoch) -> dict[str, float]:
        """Average the terms (steps, terms) over an epoch, once an epoch so that no step waits for the device."""
        if not torch.isfinite(rows).all():
            step, term = (~torch.isfinite(rows)).nonzero()[0].tolist()
            raise DivergedError(
                f"{self.title}: term '{names[term]}' is {rows[step, term].item()} in epoch {epoch.number + 1}, "
                f"step {step + 1}. Lower recipe.learning_rate or that term's weight in params.yaml, then: dvc repro"
            )
        return dict(zip(names, rows.double().mean(dim=0).tolist(), strict=True))

    def _check_weights(self, epoch: Epoch, step: int) -> None:
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
                f"{self.title}: '{name}' is not finite after epoch {epoch.number + 1}, step {step}. "
                "Lower recipe.learning_rate or the weights of the loss's terms in params.yaml, then: dvc repro"
            )

    def _keep(self, history: list[Row]) -> None:
        # Of equal epochs the first is the best, here as in the summary.
        values = measured(history, self.measure)
        if self.measure in history[-1] and values[-1] > max(values[:-1], default=-1.0):
            self.save("best")
        for name, epochs in self.anchors.items():
            if len(history) == epochs:
                self.save(name)

    def _optimizer(self, phase: Phase, trained: set[int]) -> Optimizer:
        """Return a phase's optimizer of the parameters `trained`, by id, that the phase does not freeze."""
        parameters = []
        for key, module in self.modules.items():
            for name, parameter in module.named_parameters():
                frozen = key == "student" and name.startswith(phase.frozen)
                parameter.requires_grad_(id(parameter) in trained and not frozen)
                if parameter.requires_grad:
                    parameters.append(parameter)
        free = undecayed(self.modules.values(), phase.recipe.undecayed)
        return recipe_optimizer(parameters, phase.recipe, fused=self.fused, undecayed=free)


def measured(history: Sequence[Row], measure: str) -> list[float]:
    """Return a column of a history, of the epochs that have it."""
    return [float(row[measure]) for row in history if measure in row]


Outcome = list[Row] | StillhouseError  # the history, or why there is none


def run(trainings: Sequence[Training]) -> list[Outcome]:
    """Run trainings, and return what came of each; one that fails does not stop the others.

    Those that are captured take their steps together, as branches of one graph: they must have the same number of
    steps an epoch, and batches of the same sizes. The others follow one another.
    """
    if all(training.captured for training in trainings):
        return _together(trainings)
    return [outcome for training in trainings for outcome in _together([training])]


def _together(trainings: Sequence[Training]) -> list[Outcome]:
    """Run trainings epoch by epoch, each epoch step by step."""
    histories: list[list[Row]] = [[] for _ in trainings]
    outcomes: list[Outcome] = [*histories]
    title = trainings[0].title if len(trainings) == 1 else f"{len(trainings)} students"
    device = trainings[0].batches.device

    with ExitStack() as stack:
        total = sum(training.num_epochs for training in trainings)
        advance, shown = stack.enter_context(progress.bar(title, total)), 0
        stack.enter_context(side_stream(device))
        for training in trainings:
            suited = threads.suited(training.networks(), training.plain_image, training.batches.batch_size)
            stack.enter_context(suited)

        taking = take
        if trainings[0].captured:
            networks = [network for training in trainings for network in training.networks()]
            taking = Captured(device, watched=not any(network.compiled for network in networks)).take

        running = {
            number: training.epochs(history)
            for number, (training, history) in enumerate(zip(trainings, histories, strict=True))
        }
        while running:
            steps: dict[Step, int] = {}
            for number, epochs in list(running.items()):
                try:
                    steps[next(epochs)] = number  # the epoch before ends here
                except StopIteration:
                    del running[number]
                except StillhouseError as error:
                    outcomes[number] = error
                    del running[number]

            done = sum(map(len, histories))
            measure = trainings[0].measure
            best = max(
                (values[-1] for history in histories if (values := measured(history, measure))), default=0.0
            )
            advance(done - shown, note=f"{_SHOWN.get(measure, measure)} {best:.2f}")
            shown = done

            # Now, when all have been made ready: what an epoch's end takes, its evaluation above all, is not timed.
            for step in steps:
                step.go()
            for number in range(max(map(len, steps), default=0)):
                # One whose last epoch is shorter is done before the others.
                for step, why in taking([step for step in steps if number < len(step)], number).items():
                    outcomes[steps[step]] = why
                    del running[steps.pop(step)]
            for step in steps:
                step.stop()
    return outcomes
