"""Prepare a data set: raw files to uint8 arrays, labels, splits and fingerprints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The data set's json, made by stages.params.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
) -> None:
    """Prepare a data set: raw files to uint8 arrays, labels, splits and fingerprints."""
    from pipeline import plugin
    from pipeline.artifacts import publish
    from pipeline.errors import DataError
    from pipeline.params.base import load, validate
    from pipeline.params.datasets import PrepareBlock

    asked = load(PrepareBlock, block)
    plug = plugin.load("datasets", asked.source)
    config = validate(plug.Config, asked.settings, f"datasets.{asked.dataset}.source.{asked.source}")

    # `out` is replaced, so a slip in --out must not cost a folder of something else.
    if out.exists() and not ((out / "meta.json").is_file() or (out.is_dir() and not any(out.iterdir()))):
        raise DataError(f"{out} exists and holds no prepared data. Remove it, or give another --out.")
    publish.remove(out)  # at once: a source that cannot be opened leaves no stale data behind

    from pipeline.data.preparation import prepare

    with _forced(asked.stage):
        meta = prepare(plug.open_source(config), asked.source, config, out, made_by=asked.stage)
    counts = ", ".join(f"{split} {number}" for split, number in meta.samples.items())
    print(f"{out}: {meta.channels}x{meta.size}x{meta.size}, {len(meta.classes)} classes, {counts}")


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
