"""From params.yaml and the artifacts to `Results`.

params.yaml decides what is read, so what a removed run has left behind is not reported. What is listed and not
there, or made from something else, is an error that names the stage to run.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.artifacts import advice, arrays
from pipeline.data.prepared import Prepared
from pipeline.errors import DamagedArtifactError, MissingArtifactError, StaleArtifactError
from pipeline.params.pairs import PairBlock, RunBlock
from pipeline.params.sections import ALONE, Sections
from pipeline.params.views import view_params
from pipeline.report.collect.blocks import Blocks
from pipeline.report.collect.mapping import mapping, require
from pipeline.report.collect.matched import matched
from pipeline.report.collect.settings import alone_settings, run_settings
from pipeline.report.collect.tables import codes, tables
from pipeline.report.provenance import gather
from pipeline.report.results import Dataset, History, Matched, Pair, Results, Run, Teacher, Trained

NEEDED = (
    "top1",
    "top5",
    "best_top1",
    "best_epoch",
    "epochs",
    "network",
    "params",
    "macs",
    "latency_ms",
    "train_seconds",
    "images_per_second",
    "peak_bytes",
)

ARRAYS = ("last", "correlation", "pooled", "pooled_index")  # of the predictions


@dataclass(frozen=True)
class _Source:
    """Where a trained network's results lie, and which stages make them.

    Attributes:
        key: its path below `artifacts`, `artifacts/metrics` and `artifacts/predictions`.
        evaluated: the stage that makes metrics and predictions.
        trained: the stage that makes the history.
        expected: what its metrics must say.
        needed: metrics that it has beside those that every network has.
    """

    key: str
    evaluated: str
    trained: str
    expected: dict[str, Any]
    needed: tuple[str, ...] = ()


def collect(params: Path, artifacts: Path, prepared: Path) -> Results:
    """Read everything that is reported.

    Args:
        params: folder of the blocks of params.yaml.
        artifacts: folder of all artifacts.
        prepared: folder of all prepared data sets.

    Raises:
        ParamsError: params.yaml is wrong.
        MissingArtifactError: something that it lists has not been made.
        StaleArtifactError: something was made from other settings or data.
        DamagedArtifactError: a file cannot be read.
    """
    blocks = Blocks.of(params)
    sections = blocks.sections
    datasets = {
        name: Dataset(
            name,
            Prepared.open(prepared / name),
            view_params(entry.views, f"datasets.{name}.views"),
        )
        for name, entry in sections.datasets.items()
    }

    teachers = {
        name: _teacher(artifacts, name, datasets[entry.dataset]) for name, entry in sections.teachers.items()
    }

    pairs = []
    for name in sections.pairs if sections.seeds else ():  # without a seed no student is trained
        block = blocks.pair(name)
        matchings = matched(artifacts, name, blocks)
        pairs.append(_pair(artifacts, block, teachers[block.teacher], sections, matchings))

    return Results(
        seeds=sections.seeds,
        datasets=datasets,
        teachers=teachers,
        pairs=tuple(pairs),
        tables=tables(artifacts, blocks, teachers),
        codes=codes(artifacts, blocks),
        provenance=gather(Path()),
    )


def _teacher(artifacts: Path, name: str, dataset: Dataset) -> Teacher:
    source = _Source(f"teachers/{name}", f"evaluate_teacher@{name}", f"train_teacher@{name}", {})
    trained = _trained(artifacts, source, dataset, 0)

    hint = f"dvc repro check_features@{name}"
    store = mapping(artifacts / "checks" / f"{name}.json", hint, ("features",))
    needed = ("precision", "largest_error", "largest_share", "error", "bytes", "files")
    check = mapping(artifacts / "metrics" / "features" / f"{name}.json", hint, needed)
    return Teacher(name, dataset, trained, store, check)


def _pair(
    artifacts: Path,
    block: PairBlock,
    teacher: Teacher,
    sections: Sections,
    matchings: tuple[Matched, ...],
) -> Pair:
    name, student, dataset = block.pair, block.student.student, teacher.dataset
    seeds = sections.seeds
    about = {"dataset": dataset.name, "student": student}

    alone = []
    for seed in seeds:
        source = _Source(
            f"pretrained/{student}/{seed}",
            f"evaluate_pretrained@{student}-{seed}",
            f"pretrain_student@{student}-{seed}",
            about | {"seed": seed},
        )
        trained = _trained(artifacts, source, dataset, seed)

        # It was evaluated without a teacher, so its agreement with this pair's is counted here.
        agreeing = trained.prediction == teacher.trained.prediction
        trained.metrics["agreement"] = 100 * float(agreeing.mean())
        alone.append(trained)

    recipe = block.student.recipe
    runs = [Run(ALONE, "alone", tuple(alone), alone_settings(recipe))]
    for run in sections.runs_of(name):  # in the order of params.yaml, which the block's json does not keep
        settings = block.runs[run]
        # What a file says of itself must be what params.yaml has now: its path may hold what earlier settings made.
        expected = about | {
            "pair": name,
            "run": run,
            "teacher": teacher.name,
            "methods": " + ".join(plug.name for plug in settings.methods),
            "source": settings.source,
            "slots": settings.slots,
        }

        students = []
        for seed in seeds:
            source = _Source(
                f"students/{name}/{run}/{seed}",
                f"evaluate@{name}/{run}-{seed}",
                f"distill@{name}/{run}-{seed}",
                expected | {"seed": seed},
                ("agreement",),
            )
            students.append(_trained(artifacts, source, dataset, seed))
        runs.append(Run(run, _composition(settings), tuple(students), run_settings(settings, recipe)))

    return Pair(name, teacher, student, tuple(runs), matchings)


def _composition(settings: RunBlock) -> str:
    """Return methods, transform and schedule in words."""
    words = [plug.name for plug in settings.methods]
    if settings.transform is not None:
        words.append(settings.transform.name)
    if settings.schedule.name != "final":
        words.append(settings.schedule.name)
    return " + ".join(words)


def _trained(artifacts: Path, source: _Source, dataset: Dataset, seed: int) -> Trained:
    hint = f"dvc repro {source.evaluated}"
    path = artifacts / "metrics" / f"{source.key}.json"
    metrics = mapping(path, hint, (*NEEDED, *source.needed))
    require(path, hint, metrics, source.expected)
    predictions = _predictions(artifacts / "predictions" / f"{source.key}.npz", hint, dataset)

    epochs = int(metrics["epochs"])  # none where weights were taken as they are

    folder, made_by = artifacts / source.key, f"dvc repro {source.trained}"
    history = _history(folder / "history.csv", made_by, epochs) if epochs else {}
    device = str(mapping(folder / "training.json", made_by, ("device",))["device"])
    return Trained(
        seed=seed,
        metrics=metrics,
        prediction=predictions["last"],
        history=history,
        correlation=predictions["correlation"],
        pooled=predictions["pooled"],
        pooled_index=predictions["pooled_index"],
        device=device,
    )


def _predictions(path: Path, hint: str, dataset: Dataset) -> dict[str, NDArray[Any]]:
    # First of all: of other data, predictions have another length and another meaning.
    fingerprint = str(arrays.read(path, hint, ("fingerprint",))["fingerprint"])
    if fingerprint != dataset.prepared.meta.fingerprint["test"]:
        raise StaleArtifactError(
            f"{path} was made with other data than {dataset.prepared.folder}. {advice.again(hint)}"
        )
    return arrays.read(path, hint, ARRAYS)


def _history(path: Path, hint: str, epochs: int) -> History:
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise MissingArtifactError(f"{path} does not exist. Make it with: {hint}") from None
    except (ValueError, csv.Error) as error:  # bytes that are no text
        raise DamagedArtifactError(f"{path} cannot be read ({error}). {advice.again(hint)}") from None

    if len(rows) != epochs:
        raise DamagedArtifactError(
            f"{path} has {len(rows)} epochs, the metrics say {epochs}. {advice.again(hint)}"
        )

    # A line that is cut short has None in its last cells.
    columns = {name: [row[name] or "" for row in rows] for name in rows[0]}
    # Read once here, so that a cell that is no number is an error which names the file.
    for name in columns.keys() - {"phase"}:
        for cell in columns[name]:
            try:
                float(cell or 0)
            except ValueError:
                message = f"{path} has {name} '{cell}', expected a number. {advice.again(hint)}"
                raise DamagedArtifactError(message) from None
    return columns
