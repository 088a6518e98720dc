"""Do what `dvc repro` does, with as many stages at a time as there is room for."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from stages import command

if TYPE_CHECKING:
    from pipeline.execution.job import Executor
    from pipeline.execution.repository import Repository
    from pipeline.execution.stage import Stage

GPU_COHORT = 8  # students that one process is given at most; it decides how many train side by side


@dataclass(frozen=True)
class _Options:
    jobs: int | None
    devices: str
    cohort: int | None
    executor: str
    address: str | None
    gpu_share: float
    through: str | None
    slurm: list[str]
    keep_going: bool
    force: bool


def main(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Stages or groups of stages, as `dvc repro` takes them; all.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "-j",
            "--jobs",
            parser=command.number_or_auto("stages"),
            metavar="auto|N",
            show_default="auto",
            help="Stages at a time; auto is up to four cores each, of more a quarter; or the GPUs and two more.",
        ),
    ] = None,
    devices: Annotated[
        str, typer.Option(help="auto takes all GPUs; cpu takes none; 0,1 names them.")
    ] = "auto",
    cohort: Annotated[
        int | None,
        typer.Option(
            parser=command.number_or_auto("students"),
            metavar="auto|N",
            show_default="auto",
            help="Students that share a process at most; auto is 8 on a GPU, and 1 on a CPU.",
        ),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("-k", "--keep-going", help="After a failure run what does not depend on it.")
    ] = False,
    dry: Annotated[bool, typer.Option("--dry", help="Say what would run, and run nothing.")] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="Run what is up to date, too.")] = False,
    executor: Annotated[
        str, typer.Option(help="local (this machine), ray (a cluster's nodes) or slurm (a queue).")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; by default RAY_ADDRESS, else one on this machine.")
    ] = None,
    gpu_share: Annotated[
        float,
        typer.Option(
            min=0.01, max=1.0, help="With ray: part of a GPU that a stage takes; 0.5 puts two on each."
        ),
    ] = 1.0,
    through: Annotated[
        str | None,
        typer.Option(help="With ray, where nodes share no folder: the DVC remote that data go through."),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Settings of Slurm's jobs, as partition=gpu,time=120 (minutes); may be given again.",
        ),
    ] = None,
    downstream: Annotated[
        bool, typer.Option("--downstream", help="From the targets on, instead of up to them.")
    ] = False,
    single: Annotated[
        bool, typer.Option("-s", "--single-item", help="The targets alone, without what they depend on.")
    ] = False,
) -> None:
    """Reproduce TARGETS: the stages, the order and the result are those of `dvc repro`."""
    from pipeline.execution.repository import Repository

    if (downstream or single) and not targets:
        raise typer.BadParameter(
            "needs targets", param_hint="--downstream" if downstream else "--single-item"
        )

    with Repository() as repository:
        stages = repository.plan(targets or [], downstream=downstream, single=single)
        if dry:
            _print_dry(repository, stages, force)
        else:
            own = (executor, address, gpu_share, through, slurm or [])
            _run(repository, stages, _Options(jobs, devices, cohort, *own, keep_going, force))


def _run(repository: Repository, stages: list[Stage], options: _Options) -> None:
    import time

    from pipeline.execution import interrupt
    from pipeline.execution.scheduler import Scheduler
    from pipeline.execution.view import summary, view

    executor, cohort = _executor(repository, options)

    start = time.monotonic()
    with interrupt.deferred() as stopping, closing(executor), view([stage.name for stage in stages]) as shown:
        scheduler = Scheduler(
            stages, repository, executor, shown,
            cohort=options.cohort or cohort, keep_going=options.keep_going, force=options.force,
        )  # fmt: skip
        outcome = scheduler.run(stopping)
        stopped = stopping()

    counts, *failures = summary(outcome, time.monotonic() - start)
    print(counts, flush=True)
    for line in failures:
        print(line, file=sys.stderr)
    if stopped:
        raise KeyboardInterrupt
    if outcome.failed:
        sys.exit(1)


def _executor(repository: Repository, options: _Options) -> tuple[Executor, int]:
    """Return the executor, and how many students share a process unless the user says it."""
    from pipeline.errors import MachineError
    from pipeline.execution import devices, local, slurm_queue

    slurm_queue.end_leftovers(repository.folder)
    if options.slurm and options.executor != "slurm":
        raise MachineError(
            f"--slurm is for --executor slurm, and this is {options.executor}. Give both or neither."
        )
    if options.through and options.executor != "ray":
        raise MachineError(
            f"--through is for --executor ray, and this is {options.executor}. Give both or neither."
        )
    if options.executor == "ray":
        return _ray(repository, options)
    if options.executor == "slurm":
        return _slurm(repository, options)
    if options.executor != "local":
        raise MachineError(f"--executor is '{options.executor}'. Give local, ray or slurm.")
    gpus = devices.gpus(options.devices)
    slots = options.jobs or (len(gpus) + 2 if gpus else local.slots())
    return local.LocalExecutor(slots, gpus, cpu=options.devices == devices.CPU), GPU_COHORT if gpus else 1


def _ray(repository: Repository, options: _Options) -> tuple[Executor, int]:
    """Return the executor of Ray, and how many students share a job unless the user says it."""
    from pipeline.errors import MachineError
    from pipeline.execution import devices, local
    from pipeline.execution.divided import DividedExecutor
    from pipeline.execution.on_ray import RayExecutor

    if options.devices not in (devices.AUTO, devices.CPU):
        raise MachineError(
            f"--devices is '{options.devices}', but Ray chooses the GPUs of its nodes. Give auto or cpu."
        )
    transfer = repository.transfer(options.through) if options.through else None
    executor = RayExecutor(
        repository.root, repository.folder,
        address=options.address, jobs=options.jobs, gpu_share=options.gpu_share, cpu=options.devices == devices.CPU,
        transfer=transfer,
    )  # fmt: skip
    cohort = GPU_COHORT if executor.gpus else 1
    if transfer is None:
        return executor, cohort
    return DividedExecutor(local.LocalExecutor(options.jobs or local.slots(), cpu=True), executor), cohort


def _slurm(repository: Repository, options: _Options) -> tuple[Executor, int]:
    """Return the executor of Slurm, and how many students share a job unless the user says it."""
    from pipeline.errors import ParamsError
    from pipeline.execution import devices, local, on_slurm, slurm_settings

    if options.devices not in (devices.AUTO, devices.CPU):
        raise ParamsError(
            f"--devices '{options.devices}' names GPUs of this machine. With --executor slurm give auto (a GPU a job) "
            "or cpu; how many and which: --slurm gres=gpu:a100:1"
        )
    gpus = options.devices == devices.AUTO
    settings = slurm_settings.settings(options.slurm, gpus=gpus)
    most = options.jobs or (None if settings.cluster == slurm_settings.SLURM else local.cores())
    return on_slurm.SlurmExecutor(repository.folder, settings, most, cpu=not gpus), GPU_COHORT if gpus else 1


def _print_dry(repository: Repository, stages: list[Stage], force: bool) -> None:
    """Print what would run; what waits for such a stage may, unless that stage makes what is there."""
    lost: set[str] = set()
    for stage in stages:
        if stage.after & lost:
            print(f"may run: {stage.name}")
        elif force or repository.outdated(stage.name):
            print(f"would run: {stage.name}")
        else:
            continue
        lost.add(stage.name)
    if not lost:
        print("Everything is up to date.")


if __name__ == "__main__":
    command.run(main)
