"""From params.yaml and the artifacts to what was measured of a pair's channel matchings."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import arrays
from pipeline.params.project import Sections
from pipeline.report.collect.mapping import mapping
from pipeline.report.results import Matched

MAPS = ("teacher_map", "transformed_map", "student_map")


def matched(artifacts: Path, pair: str, sections: Sections) -> tuple[Matched, ...]:
    """Read the matchings of a pair, with the maps of the first seed.

    Raises:
        MissingArtifactError: a matching that params.yaml lists has not been made.
        DamagedArtifactError: a file cannot be read.
    """
    names = [name for name, match in sections.matches.items() if match.pair == pair]
    return tuple(_matched(artifacts, name, sections) for name in names)


def _matched(artifacts: Path, name: str, sections: Sections) -> Matched:
    match, hint = sections.matches[name], f"dvc repro match_channels@{name}"
    seeds = tuple(map(str, sections.seeds))
    measured = mapping(artifacts / "metrics" / "matchings" / f"{name}.json", hint, seeds)
    path = artifacts / "matchings" / match.pair / name / "measured" / f"{seeds[0]}.npz"
    maps = arrays.read(path, hint, MAPS)
    recipe = sections.matchings[match.matching]
    return Matched(name, match.teacher, recipe, tuple(measured[seed] for seed in seeds), maps)
