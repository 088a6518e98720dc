"""Match the channels of a teacher to those of every seed of a student that was trained alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The json of matchings, made by stages.params.")],
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")],
    students: Annotated[Path, typer.Option(help="Folder of the students trained alone, one a seed.")],
    weights: Annotated[Path, typer.Option(help="The teacher's folder of weights.")],
    store: Annotated[Path, typer.Option(help="The teacher's store.")],
    out: Annotated[
        Path, typer.Option(help="Folder to make: MATCHING/SEED.npz, and MATCHING/measured/SEED.npz.")
    ],
    metrics: Annotated[Path, typer.Option(help="Json to make: consistency, overlap and distance by seed.")],
    device: command.Device = "auto",
) -> None:
    """Match by the recipes of BLOCK, and measure the discrepancy before and after; nothing where there are none."""
    from pipeline.artifacts import publish
    from pipeline.params import tasks
    from pipeline.params.base import load
    from pipeline.params.matchings import MEASURED, MatchBlock

    if tasks.told(block) == tasks.DETECTION:
        with command.loading():
            from pipeline.compute.machine import machine

            of_boxes = tasks.load("match_channels")
        of_boxes.match_channels(block, prepared, students, weights, out, metrics, machine(device))
        return

    pair = load(MatchBlock, block)
    if not pair.recipes:
        # DVC has a stage for every pair, and expects its outs where no run asks for a matching too.
        with publish.replacing(metrics), publish.building(out):
            publish.write_json(metrics, {})
        return

    with command.loading():
        from pipeline import progress
        from pipeline.artifacts import arrays
        from pipeline.artifacts.seal import sealed
        from pipeline.compute.machine import machine
        from pipeline.data.prepared import Prepared
        from pipeline.matching.discrepancy import between, measured
        from pipeline.matching.matcher import Matcher

    where = machine(device)  # a slip in an option must not cost what is there
    data, hint = Prepared.open(prepared / pair.dataset), f"dvc repro extract_features@{pair.teacher}"
    numbers: dict[str, dict[str, Any]] = {}
    with publish.replacing(metrics), publish.building(out) as scratch:
        for match in pair.matches():
            folder, own = scratch / match.matching, numbers.setdefault(match.matching, {})
            (folder / MEASURED).mkdir(parents=True)
            classes, counts = [], None

            # Every student has an order of channels of its own, given by its init.
            for seed in pair.seeds:
                student = students / str(seed)
                matcher = Matcher(
                    match, seed, student, weights, store, data, where, made_by=pair.stage, hint=hint
                )
                title = f"{pair.pair}/{match.matching} seed {seed}"
                with progress.bar(title, matcher.num_samples()) as advance:
                    matching, sums = matcher.run(advance)

                own[str(seed)], pictures = measured(matcher, matching, sums)
                matching.save(folder / f"{seed}.npz")
                arrays.write(folder / MEASURED / f"{seed}.npz", pictures)
                classes.append(pictures["student_classes"])
                counts = sums.counts.cpu()

            # Two students with different inits are compared: KCD's measure of how much channels depend on them.
            if counts is not None and len(classes) > 1:
                for seed, overlap in zip(pair.seeds, between(classes, counts), strict=True):
                    own[str(seed)]["overlap"]["students"] = overlap
        publish.write_json(metrics, sealed(numbers, pair.model_dump(mode="json"), *pair.files(scratch)))


if __name__ == "__main__":
    command.run(main)
