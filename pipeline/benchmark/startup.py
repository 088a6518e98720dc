"""Start-up: every stage's `--help` comes at once, because heavy imports wait until they are needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

from pipeline.artifacts.closure import root
from pipeline.benchmark.material import Bench
from pipeline.benchmark.record import Record, record
from pipeline.benchmark.timing import interleaved, timed

PASSED_OVER = ("__init__", "command")


def startup(bench: Bench) -> list[Record]:
    """Time `--help` of all stages beside the bare import of typer."""
    stages = sorted(path.stem for path in (root() / "stages").glob("*.py") if path.stem not in PASSED_OVER)
    return compare(stages, bench.scale.rounds)


def compare(stages: Sequence[str], rounds: int) -> list[Record]:
    """Return the slowest stage's time and the middle one's, relative to the import of typer."""
    commands = {stage: ["-m", f"stages.{stage}", "--help"] for stage in stages}
    runs = {stage: timed(_started(command), 1) for stage, command in commands.items()}
    # Every stage imports typer, so none can start faster.
    runs["import typer"] = timed(_started(["-c", "import typer"]), 1)
    rates = interleaved("--help", runs, rounds)

    ratios = {stage: rates.ratio("import typer", to=stage) for stage in stages}
    worst = max(ratios, key=lambda stage: ratios[stage])
    middle = sorted(ratios.values())[len(ratios) // 2]
    return [
        record("startup/typer", 1000 / rates.median("import typer"), "ms"),
        record("startup/middle", middle, "of import typer"),
        record("startup/worst", ratios[worst], "of import typer", at_most=1.5, note=f"stages.{worst}"),
    ]


def _started(arguments: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *arguments], cwd=root(), capture_output=True, check=True)
