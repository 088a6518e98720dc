"""From params.yaml and the artifacts to what was measured of a pair's channel matchings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import arrays
from pipeline.params.matchings import MatchBlock
from pipeline.params.names import OWN
from pipeline.report.collect.blocks import Blocks
from pipeline.report.collect.mapping import inner, mapping
from pipeline.report.results import Matched

MAPS = ("teacher_map", "transformed_map", "student_map")


def matched(artifacts: Path, pair: str, blocks: Blocks) -> tuple[Matched, ...]:
    """Read the matchings of a pair, with the maps of the first seed.

    Raises:
        MissingArtifactError: a matching that runs ask for has not been made.
        DamagedArtifactError: a file cannot be read.
    """
    return tuple(
        matching
        for folder, block in blocks.matchings(pair)
        for matching in _matched(artifacts, folder, block)
    )


def _matched(artifacts: Path, folder: str, block: MatchBlock) -> Iterator[Matched]:
    hint, seeds = f"dvc repro {block.stage}", tuple(map(str, block.seeds))
    metrics = artifacts / "metrics" / "matchings" / block.pair / f"{folder}.json"
    measured = mapping(metrics, hint, block.recipes) if block.recipes else {}

    # Pictures are of the first seed; numbers are of all.
    for name, recipe in block.recipes.items():
        path = artifacts / "matchings" / block.pair / folder / name / "measured" / f"{seeds[0]}.npz"
        by_seed = inner(metrics, hint, measured, name, seeds)
        yield Matched(
            name=name,
            teacher=block.teacher,
            borrowed="" if folder == OWN else folder,
            recipe=recipe,
            numbers=tuple(by_seed[seed] for seed in seeds),
            arrays=arrays.read(path, hint, MAPS),
        )
