"""What every stage command shares: typer, one-line errors, machine options.

Nothing heavy is imported here; a stage imports torch and the rest inside its function, so that `--help` and
argument errors come at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import StillhouseError

Params = Annotated[Path, typer.Option("--params", help="The hyper-parameters.")]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="STILLHOUSE_DEVICE",
        help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.",
    ),
]
Precision = Annotated[
    str, typer.Option("--precision", envvar="STILLHOUSE_PRECISION", help="float32 or bfloat16 (autocast).")
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


def run(main: Callable[..., Any]) -> None:
    """Run `main` as a typer command; an error that the user caused is one line and exit status 1."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except StillhouseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
