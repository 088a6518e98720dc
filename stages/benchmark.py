"""Measure what the project promises of itself: steps, extraction, reading, memory, start-up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Small: one pair, few rounds, no methods or fits; three minutes."),
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A measurement to make; may be given again.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="File to write the records to.")] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            help="Page to write tables into, between its '<!-- measured: NAME -->' and '<!-- end -->'."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Image folder of train/CLASS and val/CLASS (or test/CLASS) that 'precision' trains on too."
        ),
    ] = None,
    device: command.Device = "auto",
    precision: command.Precision = "auto",
) -> None:
    """Time the project on generated data and print each value beside its target."""
    if out is not None and out.is_dir():
        raise typer.BadParameter(f"{out} is a folder", param_hint="--json")
    if data is not None and not (data / "train").is_dir():
        raise typer.BadParameter(f"{data} has no folder 'train'", param_hint="--data")
    from pipeline.benchmark import page, suite

    if markdown is not None and not (markdown.is_file() and page.measured(markdown.read_text("utf-8"))):
        raise typer.BadParameter(f"{markdown} has no line '<!-- measured: NAME -->'", param_hint="--markdown")
    # Before torch is imported: a name that does not exist is an error at once.
    names = suite.select(only or [], quick)

    import traceback
    from tempfile import TemporaryDirectory
    from time import perf_counter

    import torch
    from rich.console import Console

    from pipeline.benchmark import record
    from pipeline.benchmark.material import Bench, scale
    from pipeline.compute.machine import machine
    from pipeline.errors import StillhouseError

    where = machine(device, precision)
    cuda = where.device.type == "cuda"
    facts = record.facts(torch.cuda.get_device_name(where.device) if cuda else str(where.device))
    facts |= {"precision": where.precision, "threads": torch.get_num_threads()}

    records: list[record.Record] = []
    failed: list[str] = []
    console = Console(width=None if sys.stdout.isatty() else 130)  # a file has no width of its own
    for number, name in enumerate(names, start=1):
        print(f"{name} ({number} of {len(names)})", flush=True)
        start = perf_counter()
        with TemporaryDirectory(prefix="benchmark-") as folder:
            bench = Bench(scale(where.device, quick), where, Path(folder), data)
            try:
                records += suite.measure(name, bench)
            except Exception as error:  # what the others measure in minutes must not be lost with it
                if not isinstance(error, StillhouseError):
                    traceback.print_exc()
                failed.append(name)
                why = " ".join(str(error).split())[:200]
                records.append(record.missing(name, "", f"{type(error).__name__}: {why}"))
        print(f"{name}: {perf_counter() - start:.0f} s", flush=True)

    record.show(console, facts, records)
    if out is not None:
        record.write(out, facts, records)
    if markdown is not None:
        page.fill(markdown, facts, records)
    if failed:
        print(f"error: {', '.join(failed)} could not be measured; the table has the reasons", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    command.run(main)
