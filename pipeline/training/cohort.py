"""Several students in one process: on a GPU they are trained side by side, elsewhere one after another.

Each has its folder, its history, its checkpoint and its result, which are those that it has alone. One that fails does
not take the others with it.

How many run side by side is the machine's option. By default it follows from their size: on one H200 at batch 64,
images a second of 1, 2, 4 and 8 students together were 55,800, 80,100, 98,000, 90,000 (ResNet8x4), 36,800, 59,100,
87,400, 110,700 (ResNet20), and 44,200, 69,700, 94,500, 105,100 (WRN-16-2). Small networks leave more of a GPU idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.compute import work
from pipeline.compute.machine import Machine
from pipeline.errors import CohortError, ParamsError, StillhouseError
from pipeline.params.recipe import Recipe
from pipeline.training import assembly
from pipeline.training.assembly import Assembly
from pipeline.training.loop import Training

# Multiply-accumulates of a step's forward passes, and how many students of at most that size a GPU trains together.
# A step of 64 images of ResNet20 or WRN-16-2 is below the first of them, one of ResNet8x4 below the second.
SIZES = ((8e9, 8), (1.6e10, 4), (6.4e10, 2))
SPARE = 0.8  # share of the free memory that a cohort may fill


@dataclass(frozen=True)
class Member:
    """A student of a cohort.

    Attributes:
        building: gives its scratch folder, and publishes it if the block ends well.
        prepare: makes its training ready in that folder.
        finish: writes what else belongs there.
    """

    building: AbstractContextManager[Path]
    prepare: Callable[[Path], Assembly]
    finish: Callable[[Path], None]


def require_alike(students: Sequence[tuple[str, str, Recipe]]) -> None:
    """Refuse students that cannot take their steps together.

    Args:
        students: title, data and recipe of each.

    Raises:
        ParamsError: their data or their batches differ.
    """
    first = students[0]
    for other in students[1:]:
        for what, one, two in (
            ("the data", first[1], other[1]),
            ("batches of", first[2].batch_size, other[2].batch_size),
            ("drop_last", first[2].drop_last, other[2].drop_last),
        ):
            if one != two:
                raise ParamsError(
                    f"{first[0]} has {what} {one} and {other[0]} has {two}; students of one command have the same "
                    "data and batches. Train them by a command each."
                )


def train(members: Sequence[Member], machine: Machine) -> None:
    """Train students, as many side by side as the machine takes.

    Raises:
        StillhouseError: one of them has failed; all others have their results.
        CohortError: several have.
    """
    waiting = deque(members)
    failures: list[StillhouseError] = []
    while waiting:
        failures += _side_by_side(waiting, machine)

    if len(failures) == 1:
        raise failures[0]
    if failures:
        lines = " / ".join(map(str, failures))
        raise CohortError(f"{len(failures)} of {len(members)} students have no result: {lines}")


def _side_by_side(waiting: deque[Member], machine: Machine) -> list[StillhouseError]:
    """Train the next members together, and return what went wrong."""
    failures: list[StillhouseError] = []
    ready: list[tuple[Member, ExitStack, Path, Assembly]] = []
    with ExitStack() as stack:
        while waiting and len(ready) < (size(ready[0][3].training, machine) if ready else 1):
            member = waiting.popleft()
            own = stack.enter_context(ExitStack())  # left by itself where the training fails
            try:
                scratch = own.enter_context(member.building)
                ready.append((member, own, scratch, member.prepare(scratch)))
            except StillhouseError as error:
                _leave(own, error)
                failures.append(error)

        outcomes = assembly.run([each[3] for each in ready]) if ready else []
        for (member, own, scratch, _), failure in zip(ready, outcomes, strict=True):
            if failure is None:
                member.finish(scratch)
                own.close()
            else:
                _leave(own, failure)
                failures.append(failure)
    return failures


def _leave(own: ExitStack, error: StillhouseError) -> None:
    """Leave a member's folder as if the error had been raised within it: nothing is published."""
    with suppress(StillhouseError), own:
        raise error


def size(training: Training, machine: Machine) -> int:
    """Return how many students like this one are trained side by side."""
    if not training.captured:
        return 1
    if machine.cohort is not None:
        return machine.cohort

    networks, image, batch = training.networks(), training.plain_image(), training.batches.batch_size
    if any(network.compiled for network in networks):
        return 1  # layers that are compiled into one cannot be counted
    macs = batch * sum(work.macs(network, image) for network in networks)
    by_kind = next((number for largest, number in SIZES if macs <= largest), 1)
    if machine.device.type != "cuda":
        return by_kind
    # Values and gradients, once for the steps that Python takes and once in the graph's own memory.
    needed = 4 * batch * sum(work.activation_bytes(network, image) for network in networks)
    free, _ = torch.cuda.mem_get_info(machine.device)
    # What torch keeps of the cohort before counts as used there, and is given back before a capture.
    idle = torch.cuda.memory_reserved(machine.device) - torch.cuda.memory_allocated(machine.device)
    return max(1, min(by_kind, int(SPARE * (free + idle) / needed)))
