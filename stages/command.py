"""What every stage command shares: typer, one-line errors, machine options.

Nothing heavy is imported here; a stage imports torch and the rest inside its function, so that `--help` and
argument errors come at once.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pipeline.errors import StillhouseError

# Before torch is imported, unless the user has decided: a thread of GNU's OpenMP that is done spins for milliseconds
# until the others are, and beside busy neighbors these do not run meanwhile. A short spin costs a quiet machine little.
if not any(os.environ.get(name) for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")):
    os.environ["GOMP_SPINCOUNT"] = "1000"  # turns of a loop; the default is 300,000

Params = Annotated[Path, typer.Option("--params", help="The hyper-parameters.")]
Raw = Annotated[
    Path | None,
    typer.Option(
        envvar="STILLHOUSE_RAW",
        help="Absolute folder that relative paths of sources start from; by default the working folder.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="STILLHOUSE_DEVICE",
        help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        envvar="STILLHOUSE_PRECISION",
        help="auto, float32 (IEEE), tf32 (GPUs) or bfloat16 (autocast); auto is tf32 on a GPU, else float32.",
    ),
]

Mark = Annotated[
    list[Path] | None,
    typer.Option(help="Folder to put an about.json into, so that it is there; may be given again."),
]

Code = Annotated[
    Path | None,
    typer.Option(
        "--code",
        help="Json of the hashes of this stage's code, made by stages.code; else they are made anew.",
    ),
]


def number_or_auto(things: str) -> Callable[[str], int | None]:
    """Return the parser of an option that is a number of things, 1 or more, or "auto", which is None."""

    def parse(text: str) -> int | None:
        if text == "auto":
            return None
        if not text.isdecimal() or int(text) < 1:
            raise typer.BadParameter(f"'{text}' is no number of {things}. Give auto, or 1 or more.")
        return int(text)

    return parse


BatchSize = Annotated[
    int | None,
    typer.Option(
        envvar="STILLHOUSE_BATCH_SIZE",
        help="Images of one forward pass; auto is 256 on a CPU, and on a GPU up to 1024, fewer of large images.",
        parser=number_or_auto("images"),
        metavar="auto|N",
        show_default="auto",
    ),
]

ChannelsLast = Annotated[
    bool | None,
    typer.Option(
        "--channels-last/--channels-first",
        envvar="STILLHOUSE_CHANNELS_LAST",
        help="Keep maps in memory with the channels innermost; by default on a GPU, unless in float32.",
    ),
]

Steps = Annotated[
    str,
    typer.Option(
        "--steps",
        envvar="STILLHOUSE_STEPS",
        help="auto, eager or captured: replay training steps as CUDA graphs; auto does so on a GPU.",
    ),
]

Cohort = Annotated[
    int,
    typer.Option(
        "--cohort",
        envvar="STILLHOUSE_COHORT",
        help="Students that a GPU trains side by side at most, as branches of one graph; 0: by their size.",
        min=0,
    ),
]

Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        envvar="STILLHOUSE_DETERMINISTIC",
        help="The same bits twice on a GPU, so that a resumed training ends as an uninterrupted one; slower.",
    ),
]

Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        envvar="STILLHOUSE_COMPILE",
        help="Run networks through torch.compile: long runs pay for it.",
    ),
]

Processes = Annotated[
    int,
    typer.Option(
        "--processes",
        envvar="STILLHOUSE_PROCESSES",
        help="Processes that share the work, one a GPU; torchrun starts them.",
        min=1,
    ),
]

Resident = Annotated[
    int,
    typer.Option(
        "--resident",
        envvar="STILLHOUSE_RESIDENT",
        help="Largest stored feature, in MiB, that is kept on the device; larger ones are read batch by batch.",
        min=0,
    ),
]


INTERRUPTED = 130  # what a shell gives for Ctrl-C

# What to do, by stage, where the memory is full. Here and not in the stages: no artifact depends on this module.
_CPU = "choose --device cpu where a GPU's memory was full"
_BATCH = "Lower recipe.batch_size in params.yaml"
_MEMORY = {
    "prepare_data": "Set storage: indexed for a folder of images in params.yaml, or free memory",
    "train_teacher": f"{_BATCH} (of the teacher), or {_CPU}",
    "pretrain_student": f"{_BATCH} (of the student), set STILLHOUSE_COHORT=1, or {_CPU}",
    "distill": f"{_BATCH}, lower STILLHOUSE_RESIDENT, set STILLHOUSE_COHORT=1, or {_CPU}",
    "train_copy": f"{_BATCH} (of the copy or assistant), lower STILLHOUSE_RESIDENT or STILLHOUSE_BATCH_SIZE, or {_CPU}",
    "extract_features": f"Lower STILLHOUSE_BATCH_SIZE, or {_CPU}",
    "encode_views": f"Lower STILLHOUSE_BATCH_SIZE or the table's clusters in params.yaml, or {_CPU}",
    "fit_table": f"Lower the table's clusters, max_samples or components in params.yaml, or {_CPU}",
    "check_features": f"Lower --rows, or {_CPU}",
    "match_channels": f"Lower the matching's ranges in params.yaml, or {_CPU}",
    "evaluate": f"Free memory, or {_CPU}",
    "report": "Report on fewer runs (distill in params.yaml)",
}
_ANY_MEMORY = "Free memory, or use a machine that has more"


def run(main: Callable[..., Any]) -> None:
    """Run `main` as a typer command; an error that the user or the machine caused is one line and exit status 1."""
    if sys.platform == "win32":  # dvc.yaml's commands are those of a POSIX shell
        _exit(
            "Stillhouse runs on Linux and macOS. On Windows run it within WSL, the Linux that Windows brings along."
        )

    @functools.wraps(main)
    def reporting(*values: Any, **options: Any) -> None:
        try:
            main(*values, **options)
        except KeyboardInterrupt as error:
            _exit(
                "interrupted. Run the same command again: a training or an extraction resumes where it stopped, "
                "anything else starts over.",
                INTERRUPTED,
                error,
            )
        except StillhouseError as error:
            _exit(str(error), error=error)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] in ("pipeline", "stages"):
                raise
            _exit(
                f"{sys.executable} has no module '{error.name}'. Activate the environment that Stillhouse is installed "
                "in (. .venv/bin/activate), or complete it: pip install -e ."
            )
        except Exception as error:
            line = _of_machine(error, Path(main.__code__.co_filename).stem)
            if line is None:
                raise
            _exit(line)

    # Plain help: rich's would take longer to import than the command to answer.
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(reporting)
    app()


def warn(lines: Sequence[str]) -> None:
    """Print warnings, one line each."""
    for line in lines:
        print(f"warning: {StillhouseError(line)}", file=sys.stderr)


@contextmanager
def loading() -> Iterator[None]:
    """Import torch and the like inside the block, unseen by the garbage collector, then and at the process's exit.

    What is imported stays, and the collector would look through all of it again and again: a quarter of the time of a
    short stage.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        # Once a process: what is frozen is never collected, and a later block might freeze what should be.
        if not gc.get_freeze_count():
            gc.freeze()


def spread(module: str, processes: int) -> None:
    """Run the command of `module` again in `processes` processes and exit as they do.

    It returns at once in one process, and in those that torchrun has started.
    """
    if processes > 1 and "RANK" not in os.environ:
        from pipeline.compute.distributed import launch

        launch(module, sys.argv[1:], processes)
        sys.exit()


def require_as_many(inputs: Sequence[object], option: str, values: Sequence[object]) -> None:
    """Refuse an option that is not given once for each of the inputs."""
    if len(values) != len(inputs):
        raise typer.BadParameter(
            f"given {len(values)} times for {len(inputs)} inputs; give one for each, in their order",
            param_hint=option,
        )


@contextmanager
def fitting(device: str) -> Iterator[str | None]:
    """Give the name of the device that torch fits a table on, with full products; None is the CPU's own engine.

    On a CPU most fits do without torch, whose import takes longer than they do.

    Raises:
        MachineError: the device cannot be used.
    """
    # Of this module's imports no artifact depends: which machine there is decides nothing about a table.
    if device == "cpu" or (device == "auto" and not may_have_gpu()):
        yield None
        return

    from pipeline.compute.machine import machine
    from pipeline.compute.precision import full_products

    chosen = machine(device).device
    with full_products():
        yield None if chosen.type == "cpu" else str(chosen)


def may_have_gpu() -> bool:
    """Tell, without torch, whether it is worth asking torch for a GPU."""
    if sys.platform == "darwin":
        return False  # torch computes there with Metal, which "auto" does not take
    nodes = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvmap")  # NVIDIA's, WSL's, AMD's and Jetson's
    return sys.platform != "linux" or any(Path(node).exists() for node in nodes)


def mark(folders: list[Path] | None) -> None:
    """Put an `about.json` into folders that other stages fill: what depends on a folder finds it there, if empty."""
    from pipeline.artifacts.publish import write_json

    for folder in folders or ():
        write_json(folder / "about.json", {"holds": f"what stages make of {folder.name}"})


def _exit(line: str, status: int = 1, error: BaseException | None = None) -> NoReturn:
    if "RANK" not in os.environ:
        print(f"error: {line}", file=sys.stderr)
        sys.exit(status)
    from pipeline.compute.distributed import reports

    if reports(error):
        print(f"error: {line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # at once: threads of torch would wait for ranks that do not come


def _of_machine(error: Exception, stage: str) -> str | None:
    """Return the line for a disk or a memory that is full or closed to us; None where it is our mistake."""
    text = " ".join(str(error).split())
    # torch is not imported here, so its errors are recognized by their names and texts.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: can't allocate memory" in text
    ):
        cure = _MEMORY.get(stage, _ANY_MEMORY)
        return f"The memory is full: {text[:200] or 'no more can be had'}. {cure}, then run the same command again."

    # Only now: of this module's imports no artifact depends, and not every stage has this one.
    from pipeline.artifacts import system

    refused = system.system_error(error)
    return None if refused is None else system.line(refused)
