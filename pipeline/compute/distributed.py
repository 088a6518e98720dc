"""One process or many: the ranks of a run that torchrun started, and what they exchange.

Every rank runs the same command. It takes its part of every batch, gradients are summed, and only the first rank
writes. An error ends all ranks: torchrun ends the others, and one of them reports it. Ranks meet in collectives of
torch.distributed, and wait there for at most `TIMEOUT`.

Gradients are summed by one plain all-reduce of a flat bucket, and not by DistributedDataParallel. DDP wraps one
module whose forward makes the loss; here an objective calls the student tap by tap beside a method and a schedule
with parameters of their own, phases freeze some of them, and some get no gradient in some steps. The bucket takes
all of that as it comes, and leaves every parameter's name as it was.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from pipeline.artifacts import publish
from pipeline.errors import LostRankError, MachineError
from pipeline.progress import Advance

TIMEOUT = 600.0  # seconds: the first rank evaluates and writes while the others wait
# Seconds without a unit of anybody's work after which a rank that has done its own gives up.
STANDSTILL = 600.0
GRACE = 5.0  # seconds in which torchrun ends a rank whose fellow has died
_AGAIN = "Run the same command again: a training or an extraction resumes where it stopped."
T = TypeVar("T")
_STORE: list[Any] = []  # a torch.distributed.Store: of the run that this process has joined


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them. Alone, every exchange gives back what it was given.

    Attributes:
        rank: this process, counted from 0.
        size: number of processes.
        local: this process among those of its machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Say whether this is the rank that writes."""
        return self.rank == 0

    def connect(self, device: torch.device) -> None:
        """Open the collectives: gloo between CPUs, nccl between GPUs.

        Raises:
            LostRankError: the other ranks do not come.
        """
        if self.size == 1 or dist.is_initialized():
            return
        # Collectives use the current device, which would be the first GPU for all ranks.
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # torch warns of a group that is still open at the exit.
        atexit.register(dist.destroy_process_group)
        # What lies on the CPU goes over gloo, even where gradients go over nccl.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"

        _met(
            lambda: dist.init_process_group(
                backend,
                store=_STORE[0],
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=TIMEOUT),
            )
        )

    def part(self, index: Tensor) -> Tensor:
        """Return this rank's part of a global batch, int64 (B,): parts follow each other, sizes differ by one at most.

        Every rank takes the whole of a batch that has no two samples for each: a batch norm needs two,
        and the mean over such a batch stays what it is.
        """
        if len(index) < 2 * self.size:
            return index
        return torch.tensor_split(index, self.size)[self.rank]

    def share(self, samples: int) -> float:
        """Return the weight of this rank's mean in the mean over a global batch of `samples`."""
        if samples < 2 * self.size:
            return 1 / self.size
        # As torch.tensor_split cuts it: the first ranks take one sample more.
        return (samples // self.size + (self.rank < samples % self.size)) / samples

    def agree(self, value: T) -> T:
        """Return the first rank's `value`, anything that pickle takes."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        _met(lambda: dist.broadcast_object_list(values, src=0))
        agreed: T = values[0]
        return agreed

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.agree(None)  # the others hear of the first, ...
        self.total(torch.zeros(1))  # ... and it hears of them

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, the same bits on each."""
        if self.size > 1:
            # The exchange works in place.
            x = x.clone()
            _met(lambda: dist.all_reduce(x))
        return x

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradients by their sums over the ranks, in one exchange.

        A parameter that has a gradient on some ranks has one on all of them afterwards; one that has none
        anywhere keeps none, so that the optimizer leaves it alone as it does in one process.
        """
        if self.size == 1 or not parameters:
            return
        present = [x.grad is not None for x in parameters]
        parts = [(torch.zeros_like(x) if x.grad is None else x.grad).reshape(-1) for x in parameters]

        counts = torch.tensor(present, dtype=parts[0].dtype, device=parts[0].device)
        bucket = self.total(torch.cat([*parts, counts]))

        *sums, counts = torch.split(bucket, [*(x.numel() for x in parameters), len(present)])

        everywhere = all(present)  # then nobody's counts are read, and no step waits for the device
        for x, summed, count in zip(
            parameters, sums, [1.0] * len(present) if everywhere else counts.tolist(), strict=True
        ):
            if count:
                # In the parameter's own memory format; a view would also keep the whole bucket alive.
                x.grad = torch.empty_like(x).copy_(summed.view_as(x))

    def share_modules(self, modules: Mapping[str, nn.Module]) -> None:
        """Give all ranks the first one's parameters and buffers: the start of a training."""
        if self.size == 1:
            return
        for module in modules.values():
            for x in (*module.parameters(), *module.buffers()):
                _met(partial(dist.broadcast, x.detach(), src=0))

    def share_statistics(self, modules: Mapping[str, nn.Module]) -> None:
        """Make buffers the same on all ranks: running statistics of batch norms become their mean.

        Raises:
            MachineError: another buffer differs, a memory bank say: no mean of those stands for one process's.
        """
        if self.size == 1:
            return
        for key, module in modules.items():
            for place, owner in module.named_modules():
                for name, buffer in owner.named_buffers(recurse=False):
                    statistic = (
                        isinstance(owner, nn.modules.batchnorm._BatchNorm) and buffer.is_floating_point()
                    )
                    # Each rank's norm saw its own part of the batches.
                    if statistic:
                        buffer.copy_(self.total(buffer) / self.size)
                    else:
                        self._same(f"{key}.{place}.{name}".replace("..", "."), buffer)

    def _same(self, name: str, buffer: Tensor) -> None:
        first = buffer.clone()
        _met(lambda: dist.broadcast(first, src=0))
        # Bytes, so that one that is not a number is equal to itself.
        alike = torch.equal(
            first.reshape(-1).view(torch.uint8), buffer.contiguous().reshape(-1).view(torch.uint8)
        )
        if self.total(torch.tensor([float(not alike)], device=buffer.device)).item():
            raise MachineError(
                f"'{name}' is kept from step to step and differs between processes, which do not share it. "
                "Run this in one process: unset STILLHOUSE_PROCESSES."
            )


ALONE = Ranks()


class Tally:
    """Counts work over all ranks, and shows it on the first; ranks that have done theirs wait for the others.

    Args:
        ranks: the processes that share the work.
        advance: shows it.
        units: number of units of all ranks together.
    """

    def __init__(self, ranks: Ranks, advance: Advance, units: int) -> None:
        self.ranks, self.advance, self.units = ranks, advance, units
        self._shown = 0

    def __call__(self, units: int = 1, note: str = "") -> None:
        """Add `units` of this rank's work."""
        if self.ranks.size == 1:
            self.advance(units, note)
        else:
            self._show(_met(lambda: _STORE[0].add("tally", units)), note)

    def wait(self) -> None:
        """Return when all units are done.

        Raises:
            LostRankError: nothing was done for `STANDSTILL`.
        """
        if self.ranks.size == 1:
            return
        before, since = -1, time.monotonic()
        while (done := _met(lambda: _STORE[0].add("tally", 0))) < self.units:
            self._show(done)
            if done > before:
                before, since = done, time.monotonic()
            elif time.monotonic() - since > STANDSTILL:
                raise LostRankError(
                    f"No other process of this run has done anything for {STANDSTILL:.0f} s. {_AGAIN}"
                )
            time.sleep(0.1)
        self._show(done)
        self.ranks.wait()

    def _show(self, done: int, note: str = "") -> None:
        if self.ranks.first:
            self.advance(done - self._shown, note)
            self._shown = done


def join() -> Ranks:
    """Join the run that torchrun has started this process for; without torchrun, be alone.

    Raises:
        LostRankError: the other ranks do not come.
    """
    if (size := _size()) == 1:
        return ALONE
    rank = int(os.environ["RANK"])
    if not _STORE:
        store, _, _ = _met(lambda: next(rendezvous("env://", rank, size, timeout=timedelta(seconds=TIMEOUT))))
        _STORE.append(store)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return Ranks(rank, size, int(os.environ.get("LOCAL_RANK", rank)))


@contextmanager
def building(out: Path, ranks: Ranks) -> Iterator[Path]:
    """Give all ranks the scratch folder of `out`, which the first one holds, keeps for a resume, and publishes.

    Raises:
        MachineError: another run is making it.
    """
    own = publish.building(out, resume=True) if ranks.first else nullcontext(publish.scratch(out))
    with own as scratch:
        ranks.wait()
        yield scratch
        ranks.wait()  # whatever the others had to write is there


def synchronized(module: nn.Module, device: torch.device, ranks: Ranks) -> None:
    """Make the batch norms of a module normalize by the whole global batch, in place; names stay as they are.

    That is nn.SyncBatchNorm, which runs on GPUs alone. On a CPU each rank normalizes by its own part.
    """
    if ranks.size > 1 and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def reports(error: BaseException | None = None) -> bool:
    """Say whether this rank is the one that reports why the run fails; the others end silently.

    Args:
        error: why. A rank that lost another first leaves torchrun the time to end it: the other one knows more.
            Ctrl-C goes to the process that started the ranks, which reports it.
    """
    if _size() == 1:
        return True
    if isinstance(error, KeyboardInterrupt) and "TORCHELASTIC_RUN_ID" in os.environ:
        return False
    if not _STORE:  # before ranks meet, all of them fail alike
        return os.environ.get("RANK") == "0"
    if isinstance(error, LostRankError):
        time.sleep(GRACE)
    try:
        return int(_STORE[0].add("reported", 1)) == 1
    except RuntimeError:  # the process that held the store is gone
        return True


def launch(module: str, arguments: Sequence[str], processes: int) -> None:
    """Run `python -m module arguments` under torchrun in so many processes of this machine, and wait.

    Raises:
        SystemExit: a rank has failed and reported why.
        MachineError: a rank was ended by a signal.
        KeyboardInterrupt: this process was asked to end.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun would give every rank a single thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.disable()  # torchrun's own messages; ours are one line

    options = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={processes}", "--max-restarts=0"]
    try:
        parsed = run.get_args_parser().parse_args([*options, "-m", module, *arguments])
        run.run(parsed)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    except ChildFailedError as error:
        failures = error.failures.values()
        # A rank that exits has said why; one that was ended by a signal could not.
        reported = [failure.exitcode for failure in failures if failure.exitcode > 0]
        if reported:
            sys.exit(reported[0])

        rank, failure = error.get_first_failure()
        name = Signals(-failure.exitcode).name
        raise MachineError(
            f"Process {rank} of {processes} was ended by {name}{' (no memory left?)' * (name == 'SIGKILL')}. {_AGAIN}"
        ) from None
    except SignalException as error:
        if error.sigval == SIGINT:
            raise KeyboardInterrupt from None
        # As a shell reports a process that a signal has ended.
        sys.exit(128 + (error.sigval or SIGTERM))


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def _met(exchange: Callable[[], T]) -> T:
    """Return what an exchange gives; torch's many errors of lost and late ranks become one."""
    try:
        return exchange()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise LostRankError(f"The processes of this run have lost each other: {reason}. {_AGAIN}") from None


def _end_with(parent: int) -> None:
    """End this process when torchrun, its parent, is gone, even by a SIGKILL: nobody else would."""
    while os.getppid() == parent:
        time.sleep(0.5)
    # sys.exit would end this thread alone.
    os._exit(1)
