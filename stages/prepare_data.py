"""Prepare a data set: raw files to uint8 arrays, labels, splits and fingerprints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages import command

if TYPE_CHECKING:
    from types import ModuleType

    from pipeline.data.dataset import DatasetConfig, Source
    from pipeline.data.raw.listing import Listed

MOST_NAMED = 20  # damaged files that are told by name


def main(
    block: Annotated[Path, typer.Argument(help="The data set's json, made by stages.params.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
    raw: command.Raw = None,
) -> None:
    """Prepare a data set: raw files to uint8 arrays, labels, splits and fingerprints."""
    from pipeline import plugin
    from pipeline.artifacts import publish
    from pipeline.errors import DataError
    from pipeline.params import tasks
    from pipeline.params.base import load, validate
    from pipeline.params.datasets import PrepareBlock

    asked = load(PrepareBlock, block)
    plug = plugin.load("datasets", asked.source)
    config = validate(plug.Config, asked.settings, f"datasets.{asked.dataset}.source.{asked.source}")

    # `out` is replaced, so a slip in --out must not cost a folder of something else.
    if out.exists() and not ((out / "meta.json").is_file() or (out.is_dir() and not any(out.iterdir()))):
        raise DataError(f"{out} exists and holds no prepared data. Remove it, or give another --out.")
    publish.remove(out)  # at once: a source that cannot be opened leaves no stale data behind

    from pipeline.data.raw import place

    if raw is not None:
        os.environ[place.VARIABLE] = str(raw)  # where each reader of raw files looks, in every stage

    with _forced(asked.stage):
        if tasks.task_of(plug) == tasks.DETECTION:
            # By name: what detection writes is in the hash of its own data sets alone.
            writer = tasks.load("prepare_data")
            listed = writer.run(plug, config, asked.source, out, asked.stage)
        else:
            listed = _prepare(plug, config, asked.source, out, asked.stage)
    if listed is not None:
        _print_raw(out, listed, asked.stage)


def _prepare(plug: ModuleType, config: DatasetConfig, name: str, out: Path, made_by: str) -> Listed | None:
    """Prepare images with one label each, say what they are, and return the raw files, where there are any."""
    from pipeline.data.preparation import prepare
    from pipeline.params.size import shown

    source: Source = plug.open_source(config)
    meta = prepare(source, name, config, out, made_by=made_by)
    counts = ", ".join(f"{split} {number}" for split, number in meta.samples.items())
    print(f"{out}: {meta.channels}x{shown(meta.size)}, {len(meta.classes)} classes, {counts}")
    return source.listed


def _print_raw(out: Path, listed: Listed, stage: str) -> None:
    """Say which raw files count, which do not, and what to do after a change of them."""
    from pipeline.artifacts import advice
    from pipeline.data.raw import listing, record
    from pipeline.errors import StillhouseError

    def say(text: str) -> None:
        print(StillhouseError(text))  # one line, whatever is in the names

    left_out = listing.described(listed.left_out)
    if left_out:
        say(f"left out of {listed.root}: {left_out}")
    skipped = record.read(out).skipped
    for name in skipped[:MOST_NAMED]:
        say(f"skipped, because it is damaged: {name}")
    if len(skipped) > MOST_NAMED:
        say(f"skipped: {len(skipped)} damaged files in all, listed in {out / record.FILE}")
    say(
        f"{listed.count:,} raw files were listed as they lie there now; after a change: "
        f"{advice.forced(f'dvc repro {stage}')}"
    )


@contextmanager
def _forced(stage: str) -> Iterator[None]:
    """Say with errors of raw files that end with `dvc repro` how to prepare them in any case.

    DVC does not look at raw files: once they were prepared, it would fetch what was made of them then.
    """
    from pipeline.artifacts import advice
    from pipeline.errors import DataError

    try:
        yield
    except DataError as error:
        text, command, rest = str(error).rpartition("dvc repro")
        if not command or rest:
            raise
        raise DataError(text + advice.forced(f"{command} {stage}")) from None


if __name__ == "__main__":
    command.run(main)
