"""Resolve, for every run of a pair, exactly what its students are trained from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The pair's json, made by stages.params.")],
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")],
    weights: Annotated[Path, typer.Option(help="The teacher's folder of weights.")],
    store: Annotated[Path, typer.Option(help="The teacher's store.")],
    tables: Annotated[Path, typer.Option(help="Folder of the teacher's tables.")],
    codes: Annotated[Path, typer.Option(help="Folder of the teacher's codes.")],
    copies: Annotated[Path, typer.Option(help="Folder of the teacher's copies and assistants.")],
    matchings: Annotated[Path, typer.Option(help="Folder of the pair's matchings.")],
    evaluation: Annotated[Path, typer.Option(help="The teacher's predictions.")],
    code: Annotated[Path, typer.Option(help="Folder of the code's hashes, made by stages.code.")],
    out: Annotated[Path, typer.Option(help="Folder to make: one json a run and seed, and teacher.json.")],
) -> None:
    """Write one json of inputs for every seed of every run that 'distill' asks of the pair of BLOCK."""
    from pipeline.artifacts import publish
    from pipeline.params import tasks
    from pipeline.params.base import load
    from pipeline.params.pairs import PairBlock

    if tasks.told(block) == tasks.DETECTION:
        dataset = publish.read_json(block, "dvc repro params")["student"]["dataset"]
        of_boxes = {"data": prepared / dataset, "weights": weights, "matchings": matchings, "code": code}
        found = tasks.load("inputs").run_inputs(block, of_boxes)
        with publish.building(out) as scratch:
            for name, content in found.items():
                publish.write_json(scratch / f"{name}.json", content)
        return

    pair = load(PairBlock, block)

    from pipeline.runs import teacher_record
    from pipeline.runs.resolve import Places, resolve_run, resolve_teacher

    data = prepared / pair.student.dataset
    places = Places(data, weights, store, tables, codes, copies, matchings, evaluation, code)
    with publish.building(out) as scratch:
        for run in pair.runs:
            # A file for each seed: a student reruns only when its own changes.
            for seed, inputs in resolve_run(pair, run, places).items():
                publish.write_json(scratch / run / f"{seed}.json", inputs.model_dump(mode="json"))
        # Beside them, and in none: what a card says of the teacher trains nobody anew.
        record = resolve_teacher(pair, weights)
        publish.write_json(scratch / teacher_record.FILE, record.model_dump(mode="json"))


if __name__ == "__main__":
    command.run(main)
