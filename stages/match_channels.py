"""Match the channels of a teacher to those of every seed of a student that was trained alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The match's json, made by stages.params.")],
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")],
    students: Annotated[Path, typer.Option(help="Folder of the students trained alone, one a seed.")],
    weights: Annotated[Path, typer.Option(help="The teacher's folder of weights.")],
    store: Annotated[Path, typer.Option(help="The teacher's store.")],
    out: Annotated[
        Path, typer.Option(help="Folder to make: SEED.npz, and measured/SEED.npz for the report.")
    ],
    metrics: Annotated[Path, typer.Option(help="Json to make: consistency, overlap and distance by seed.")],
    device: command.Device = "auto",
) -> None:
    """Match by the recipe of BLOCK, and measure the discrepancy before and after."""
    from pipeline.params.base import load
    from pipeline.params.matching import MatchBlock

    match = load(MatchBlock, block)

    from pipeline import progress
    from pipeline.artifacts import arrays, publish
    from pipeline.compute.machine import machine
    from pipeline.data.prepared import Prepared
    from pipeline.matching.discrepancy import between, measured
    from pipeline.matching.matcher import Matcher

    where = machine(device)  # a slip in an option must not cost what is there
    data = Prepared.open(prepared / match.dataset)
    numbers: dict[str, Any] = {}
    classes, counts = [], None
    stage = f"match_channels@{match.name}"
    with publish.replacing(metrics), publish.building(out) as scratch:
        (scratch / "measured").mkdir()
        for seed in match.seeds:
            alone, hint = students / str(seed), f"dvc repro extract_features@{match.teacher}"
            matcher = Matcher(match, seed, alone, weights, store, data, where, made_by=stage, hint=hint)
            with progress.bar(f"{match.name} seed {seed}", matcher.num_samples()) as advance:
                matching, sums = matcher.run(advance)
            numbers[str(seed)], pictures = measured(matcher, matching, sums)
            matching.save(scratch / f"{seed}.npz")
            arrays.write(scratch / "measured" / f"{seed}.npz", pictures)
            classes.append(pictures["student_classes"])
            counts = sums.counts.cpu()
        if counts is not None and len(classes) > 1:
            for seed, found in zip(match.seeds, between(classes, counts), strict=True):
                numbers[str(seed)]["overlap"]["students"] = found
        publish.write_json(metrics, numbers)


if __name__ == "__main__":
    command.run(main)
