"""List the matchings of one pair, so that its folder is there where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The pair's json of matches, made by stages.params.")],
    out: Annotated[Path, typer.Option(help="Json to make.")],
) -> None:
    """Write which of 'matches' are of the pair of BLOCK."""
    from pipeline.artifacts import publish
    from pipeline.params.base import load
    from pipeline.params.matching import MatchesBlock

    found = load(MatchesBlock, block)
    with publish.replacing(out):
        publish.write_json(out, found.model_dump(mode="json"))


if __name__ == "__main__":
    command.run(main)
