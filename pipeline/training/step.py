"""A training step as a function of tensors on the device, and who takes it: Python, or a CUDA graph.

The step's inputs are filled before it: samples, views and slot (`Feed`), epoch and step (`Clock`), the learning rate.
It leaves its terms in a row of a table. No tensor is made on the CPU in it or copied from there, no value is read, and
no branch depends on one. So the first steps of an epoch can be taken by Python and the others by a graph that repeats
them (`Captured`), with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from pipeline import progress
from pipeline.compute import graphs
from pipeline.compute.distributed import Ranks
from pipeline.errors import StillhouseError
from pipeline.networks.network import Taps
from pipeline.params.recipe import Epoch
from pipeline.training.average import Average
from pipeline.training.batches import Feeding, Held, Sampled
from pipeline.training.optimizer import set_rate

Terms = dict[str, Tensor]  # scalars by name
WARM = (
    3  # steps that Python takes before a capture: they choose kernels and make what lasts from step to step
)


@dataclass(frozen=True)
class Clock:
    """Where in the training a step stands, on the device.

    Attributes:
        epoch: within the phase, int64 ().
        step: over all phases, int64 ().
        number: of the step within the epoch, int64 (1,).
    """

    epoch: Tensor
    step: Tensor
    number: Tensor

    @classmethod
    def on(cls, device: torch.device) -> Clock:
        """Return a clock that stands at 0."""
        return cls(*(torch.zeros(shape, dtype=torch.int64, device=device) for shape in ((), (), (1,))))

    def set(self, epoch: int, step: int) -> None:
        """Begin an epoch."""
        self.epoch.fill_(epoch)
        self.step.fill_(step)
        self.number.zero_()

    def tick(self) -> None:
        """Count a step."""
        self.step.add_(1)
        self.number.add_(1)


class Objective(Protocol):
    """What one step minimizes."""

    def start(self, epoch: Epoch) -> Hashable:
        """Begin an epoch, and return what its steps depend on beside tensors; a graph is captured for each."""
        ...

    def begin(self, slot: int, index: Tensor) -> Callable[[], Taps]:
        """Start to read what a step needs and is not on the device; return the function that waits for it.

        Args:
            slot: the view slot.
            index: sample indices int64 (B,), on the CPU.
        """
        ...

    def __call__(self, views: Any, read: Taps, clock: Clock) -> tuple[Tensor, Terms]:
        """Return the loss and its terms, scalars by name.

        Args:
            views: a batch of the training, mostly `Views`.
            read: what `begin` has read.
            clock: where the step stands.
        """
        ...


class Step:
    """The steps of one training in one phase, epoch after epoch.

    Args:
        title: of the training.
        objective: what is minimized.
        batches: the training split.
        feed: gives the batches.
        optimizer: of the phase.
        ranks: who divide each batch.
        clip: largest norm of the gradient; None lets it be any.
        average: follows every step, where one is kept.

    Attributes:
        key: what the steps of this epoch depend on beside tensors.
        names: of the terms, and of the loss as the last one.
        rates: the learning rate of each of the epoch's steps.
        rows: terms of the epoch's steps (steps, terms), as many as a whole epoch has.
        terms: the same when the epoch has ended, over all ranks and on the CPU.
        seconds: that the epoch took.
    """

    def __init__(
        self,
        title: str,
        objective: Objective,
        batches: Sampled,
        feed: Feeding,
        optimizer: Optimizer,
        ranks: Ranks,
        *,
        clip: float | None = None,
        average: Average | None = None,
    ) -> None:
        self.title, self.objective, self.batches, self.feed = title, objective, batches, feed
        self.optimizer, self.ranks = optimizer, ranks
        self.clip, self.average = clip, average
        self.device = batches.device
        self.key: Hashable = None
        self.names: list[str] = []
        self.rates: Sequence[float] = ()
        self.rows = self.terms = torch.empty(0)
        self.seconds = 0.0
        self._clock, self._held = Clock.on(self.device), Held(feed.fixed)
        self._parameters = [x for group in optimizer.param_groups for x in group["params"]]
        self._slot, self._begun = 0, 0.0
        self._waiting: Callable[[], Taps] = dict
        self._read: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of steps of the epoch; the last one of a recipe in iterations may have fewer."""
        return len(self.rates)

    @property
    def images(self) -> int:
        """Number of images that the epoch shows, to all ranks."""
        return sum(self.batches.sizes[: len(self)])

    def start(self, epoch: Epoch, before: int, rates: Sequence[float], taken: int) -> None:
        """Begin an epoch.

        Args:
            epoch: which.
            before: how many epochs the phases before it have.
            rates: the learning rate of each of its steps.
            taken: steps of all epochs before it.
        """
        start = time.perf_counter()
        whole, self.rates = before + epoch.number, rates
        # By the epoch of the whole training: a second phase sees new orders and views.
        self.feed.start(whole, len(rates))
        set_rate(self.optimizer, rates[0])
        self._clock.set(epoch.number, taken)
        self._slot = self.batches.slot(whole)

        key = epoch.phase, self.objective.start(epoch)
        if key != self.key:
            self.key, self.names = key, []
        self._waiting = self.objective.begin(self._slot, self.feed.parts[0])
        self.seconds = time.perf_counter() - start

    def go(self) -> None:
        """Let the time of the epoch's steps begin."""
        self._begun = time.perf_counter()

    def stop(self) -> None:
        """End an epoch: wait for its steps, and for those of all ranks."""
        self.terms = self.ranks.total(self.rows[: len(self)]).cpu()
        self.seconds += time.perf_counter() - self._begun

    def advance(self, number: int) -> None:
        """Bring what the step `number` reads and is not on the device, and start to read what the next one does."""
        # Where it changes alone: on a GPU it is filled in, between the replays that read it.
        if number and self.rates[number] != self.rates[number - 1]:
            set_rate(self.optimizer, self.rates[number])

        take = self._waiting
        if number + 1 < len(self):
            self._waiting = self.objective.begin(self._slot, self.feed.parts[number + 1])
        self.feed.advance(number)

        read = take()
        for name, x in read.items():
            self._held.put(name, x)
        self._read = tuple(read)

    def __call__(self, number: int) -> None:
        """Take the next step, whose number within the epoch is `number`: of it, the size of the batch is read alone."""
        views = self.feed.views(number)
        read = {name: self._held.get(name, len(views.index)) for name in self._read}
        loss, terms = self.objective(views, read, self._clock)

        # To None: what has no gradient in this step is left alone, by weight decay too.
        self.optimizer.zero_grad(set_to_none=True)
        (loss * views.share).backward()
        self.ranks.sum_gradients(self._parameters)
        if self.clip is not None:
            clip_grad_norm_(self._parameters, self.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

        # They stay on the device: reading them would make every step wait.
        row = torch.stack([*(term.detach() for term in terms.values()), loss.detach()]) * views.share
        if not self.names:
            self.names = [*terms, "loss"]
            # Of a whole epoch: a graph writes to it in a shorter one, too.
            self.rows = torch.zeros(len(self.feed.sizes), len(row), dtype=row.dtype, device=row.device)
        self.rows.index_copy_(0, self._clock.number, row[None])
        self._clock.tick()


Failures = dict[Step, StillhouseError]  # what has kept a training from its step


def take(steps: Sequence[Step], number: int) -> Failures:
    """Let Python take the step `number` of trainings, one after another; return those that failed."""
    ready, failures = _each(steps, lambda step: step.advance(number))
    return failures | _each(ready, lambda step: step(number))[1]


class Captured:
    """Takes steps of several trainings, of equal sizes, as branches of a CUDA graph.

    The first steps are taken by Python, one of them watched. What cannot be captured runs on so, and it is said why.
    A batch of another size than the first of its epoch, mostly the last one, is Python's too.

    Args:
        device: the GPU.
        watched: watch a step before the capture; what torch.compile has made cannot be watched.
    """

    def __init__(self, device: torch.device, *, watched: bool = True) -> None:
        self.device, self.watched = device, watched
        self._key: Hashable = None
        self._taken = 0
        self._graph: graphs.Graph | None = None
        self._tied: list[Step] = []  # those that Python takes

    def take(self, steps: Sequence[Step], number: int) -> Failures:
        """Take the step `number` of trainings; see the function `take`."""
        steps, failures = _each(steps, lambda step: step.advance(number))
        if not steps:
            return failures
        if steps[0].feed.sizes[number] != steps[0].feed.sizes[0]:
            return failures | _each(steps, lambda step: step(number))[1]

        key = tuple((step, step.key) for step in steps)
        if key != self._key:
            # The old graph's memory first: it is as large as the new one's.
            self._key, self._graph, self._taken, self._tied = key, None, 0, []
        if self._graph is None:
            return failures | self._warm_up(steps, number)
        self._graph.replay()
        return failures | _each(self._tied, lambda step: step(number))[1]

    def _warm_up(self, steps: Sequence[Step], number: int) -> Failures:
        """Take a step by Python, and capture the next ones where enough have been taken."""
        # The first one makes what lasts, and may read what it likes.
        watching = self.watched and self._taken == 1
        steps, failures = _each(steps, lambda step: self._watch(step, number) if watching else step(number))
        self._taken += 1

        free = [step for step in steps if step not in self._tied]
        if self._taken == WARM and free and not failures:
            try:
                self._graph = graphs.Graph([partial(step, 0) for step in free])
            except RuntimeError as error:
                for step in free:
                    _say(step, _first_line(error))
        return failures

    def _watch(self, step: Step, number: int) -> None:
        """Take a step, and see whether it can be captured."""
        watch = graphs.Watch(self.device)
        with watch:
            step(number)
        if watch.found is not None:
            self._tied.append(step)
            _say(step, watch.found)


def _each(steps: Sequence[Step], work: Callable[[Step], None]) -> tuple[list[Step], Failures]:
    """Do something with each training; return those that it succeeded with, and the others' errors."""
    done: list[Step] = []
    failures: Failures = {}
    for step in steps:
        try:
            work(step)
            done.append(step)
        except StillhouseError as error:
            failures[step] = error
    return done, failures


def _first_line(error: BaseException) -> str:
    """Return what an error says that came first: where a capture breaks off, its end fails too, and knows no reason."""
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(str(error).split())[:200]


def _say(step: Step, why: str) -> None:
    progress.say(f"{step.title}: its steps run eagerly and are not captured, because {why}")
