"""Write a folder that the Hugging Face Hub understands: a student's weights, configuration, card and provenance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    run: Annotated[str, typer.Argument(metavar="PAIR/RUN", help="Whose student: an entry of distill.")],
    out: Annotated[Path, typer.Option(help="Folder to make; it may be there, if it is empty.")],
    seed: Annotated[
        str, typer.Option(help="A seed, or best: of the highest top-1 on the split that chooses epochs.")
    ] = "best",
    weights: Annotated[str, typer.Option(help="last, or best: those of the best epoch.")] = "last",
    base_model: Annotated[
        str | None, typer.Option(help="The teacher's name on the Hub; that of a teacher of timm's is known.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The data set's name on the Hub; by default its key in params.yaml.")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Of these weights; by default that of the teacher's, if params.yaml has it."),
    ] = None,
    licence_link: Annotated[
        str | None,
        typer.Option(
            help="Where its text is, of one that the Hub has no identifier for: https://... or LICENSE."
        ),
    ] = None,
    artifacts: Annotated[Path, typer.Option(help="Folder of all artifacts.")] = Path("artifacts"),
) -> None:
    """Write the student of PAIR/RUN as a folder to publish. Nothing is uploaded."""
    from pipeline.errors import ParamsError
    from pipeline.export import licences
    from pipeline.params import tasks
    from pipeline.params.base import validate
    from pipeline.params.exports import ExportParams, run_name

    folder, params = artifacts / "students" / run_name(run), artifacts / "params"
    if tasks.told(params / "pairs" / f"{run.partition('/')[0]}.json") == tasks.DETECTION:
        raise ParamsError(
            f"The student of {run} finds boxes, and detectors are not published. Name a classifier."
        )
    number = int(seed) if seed.isdecimal() else seed
    settings = validate(ExportParams, {"seed": number, "weights": weights}, "", "options")
    if licence:
        licences.matter(licence, licence_link or "")

    with command.loading():
        from pipeline.artifacts import publish
        from pipeline.export import publication
        from pipeline.export.student import Student, chosen_seed, seeds_of
        from pipeline.runs import teacher_record
        from pipeline.runs.inputs import RunInputs

    publication.require_empty(out)
    chosen = chosen_seed(run, folder, settings, params)
    student = Student.open(folder / str(chosen), settings.weights, params)
    if not isinstance(student.inputs, RunInputs):
        raise ParamsError(f"{student.folder} was not distilled, and has no teacher that a card could name.")
    measured = publication.metrics(artifacts, run, seeds_of(params))
    teacher = teacher_record.read(
        artifacts / "inputs/pairs", student.inputs.pair, student.inputs.teacher_weights, student.folder
    )
    facts = publication.facts_of(student, student.inputs, measured, teacher)
    facts = replace(
        facts,
        base_model=facts.base_model if base_model is None else base_model,
        dataset=facts.dataset if dataset is None else dataset,
        licence=facts.licence if licence is None else licence,
        licence_link=licence_link or "",
    )
    of_licence = licences.matter(facts.licence, facts.licence_link)

    with publish.building(out) as scratch:
        try:
            publication.write(student, student.inputs, facts, teacher, params, scratch)
        except BaseException:
            publish.remove(scratch)
            raise
    print(f"{out}: {run}, seed {chosen}, {settings.weights} weights, to be read by {facts.library}.")
    if not of_licence:
        print("The card names no licence. Give it by --licence, or as licence of the teacher in params.yaml.")
    if of_licence.get("license") == licences.OTHER and not licence_link:
        print(
            f"The Hub has no licence '{facts.licence}': the card says other, by the name {of_licence['license_name']}. "
            "Put its text into the folder as LICENSE, or give --licence-link."
        )


if __name__ == "__main__":
    command.run(main)
