"""The report as data: `results.csv`, `gains.csv`, `curves.csv`, `confusion/<pair>.csv` and `summary.json`.

They are what `dvc plots` and `dvc metrics` read, and what a notebook starts from. `published.csv` is there where a
published accuracy is of a pair's networks and data, and `detection_published.csv` where an average precision is; what
`boxes.py` gives is there where data have boxes. `provenance.json` stands beside them: it holds the date, so that no
other file does.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.artifacts.publish import write_json
from pipeline.report import boxes
from pipeline.report.beside import beside, cells, preferred
from pipeline.report.detectors import BoxPair
from pipeline.report.results import ACCURACIES, COSTS, Pair, Results, Run, Trained
from pipeline.report.trainings import BASELINE, Settings

RESULT_METRICS = (*ACCURACIES, "agreement", *COSTS)
# What a spreadsheet takes for the start of a formula, also in full width, and blanks that it passes over.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def export(results: Results, folder: Path) -> None:
    """Write every file into `folder`."""
    _write(folder / "results.csv", _results(results))
    _write(folder / "gains.csv", _gains(results))
    compared = list(_published(results.pairs))
    if compared:  # its section is on the page then, and links it
        _write(folder / "published.csv", compared)
    _write(folder / "curves.csv", _curves(results))
    if results.detection.teachers:
        _write(folder / "detection.csv", boxes.rows(results.detection))
        _write(folder / "detection_curves.csv", boxes.histories(results.detection))
        _write(folder / "precision_recall.csv", boxes.curves(results.detection))
    if results.detection.pairs:
        _write(folder / "detection_gains.csv", boxes.gains(results.detection))
    # Apart from accuracies, as all of detection is.
    compared = list(_published(results.detection.pairs))
    if compared:
        _write(folder / "detection_published.csv", compared)

    (folder / "confusion").mkdir(exist_ok=True)
    for pair in results.pairs:
        _write(folder / "confusion" / f"{pair.name}.csv", _confusion(pair))

    write_json(folder / "summary.json", summary(results))
    write_json(folder / "provenance.json", asdict(results.provenance))


def summary(results: Results) -> dict[str, Any]:
    """Return means over seeds, by pair and run, and what is left out."""
    pairs = {pair.name: {run.name: _means(pair, run) for run in pair.runs} for pair in results.pairs}
    teachers = {
        name: {key: teacher.trained.metrics[key] for key in ("top1", "best_top1")}
        for name, teacher in results.teachers.items()
    }
    missing = [asdict(entry) | {"command": entry.command} for entry in results.missing]
    whole = {"teachers": teachers, "pairs": pairs, "missing": missing}
    return whole | ({"detection": boxes.summary(results.detection)} if results.detection.teachers else {})


def _means(pair: Pair, run: Run) -> dict[str, float]:
    top1 = run.estimate("top1")
    # Plain numbers alone: `dvc metrics diff` compares them one by one.
    means = {
        "top1": top1.mean,
        "best_top1": run.estimate("best_top1").mean,
        "agreement": run.estimate("agreement").mean,
    }
    means["seeds"] = top1.count
    if top1.std is not None:
        means["top1_std"] = top1.std

    if run is not pair.alone:
        gain = run.gain(pair.alone)
        means["gain_seeds"] = gain.count
        if gain.count:
            means["gain"] = gain.mean
        if gain.half is not None:
            means["gain_interval"] = gain.half
    return means


def _results(results: Results) -> Iterable[Mapping[str, Any]]:
    listed = {pair.name: beside(pair) for pair in results.pairs}
    for pair, run, student in _students(results):
        metrics = student.metrics
        yield {
            "dataset": pair.dataset.name,
            "pair": pair.name,
            "teacher": pair.teacher.name,
            "teacher_network": pair.teacher.trained.metrics["network"],
            "student": pair.student,
            "student_network": metrics["network"],
            "run": run.name,
            **_settings(run.settings),
            "seed": student.seed,
            "teacher_top1": pair.teacher.trained.metrics["top1"],
            **{name: metrics[name] for name in RESULT_METRICS},
            # Only runs that can be compared with the teacher have these.
            **{name: metrics.get(name, "") for name in ("teacher_kl", "teacher_l2")},
            **cells(preferred(run, listed[pair.name]), metrics),
        }


def _published(pairs: Iterable[Pair | BoxPair]) -> Iterator[Mapping[str, Any]]:
    """Give a row for each published number: it, ours, and the difference by its rule."""
    for pair in pairs:
        for compared in beside(pair):
            row, last, best = compared.row, compared.last, compared.best
            yield {
                "dataset": row.dataset,
                "pair": pair.name,
                "run": compared.name,
                "key": row.run,
                "metric": row.metric,
                "source": row.source,
                "tables": ", ".join(compared.tables),
                "method": row.method,
                "published": row.value,
                "published_std": row.std,
                "published_rule": row.rule,
                "published_epochs": row.epochs,
                "ours": last.mean,
                "ours_half": last.half,
                "ours_best": best.mean,
                "ours_best_half": best.half,
                "difference": compared.difference.mean,
                "seeds": last.count,
                "epochs": compared.epochs,
                "remarks": "; ".join(compared.remarks),
            }


def _gains(results: Results) -> Iterator[Mapping[str, Any]]:
    """Give a row for each run: gains paired by seed, with half their 95 % intervals, over alone and the baseline."""
    for pair in results.pairs:
        for run in pair.runs:
            top1 = run.estimate("top1")
            yield {
                "pair": pair.name,
                "run": run.name,
                "key": run.key,
                "mean": top1.mean,
                "std": top1.std,
                **_gain("gain", run, pair.alone),
                **_gain(f"gain_over_{BASELINE}", run, pair.baseline),
                "seeds": top1.count,
            }


def _gain(name: str, run: Run, base: Run | None) -> dict[str, Any]:
    gain = None if base is None or run is base else run.gain(base)
    # Two runs without a seed in common have no gain, and one seed has no interval.
    mean, half = (None, None) if gain is None or not gain.count else (gain.mean, gain.half)
    return {name: mean, f"{name}_half": half}


def _settings(settings: Settings) -> dict[str, Any]:
    """Return what a run is composed of; all of it is empty for a student alone."""
    return {
        "methods": " + ".join(settings.methods),
        "schedule": " + ".join(settings.schedule),
        "transform": " + ".join(settings.transform),
        "source": settings.source,
        "slots": "unbounded" if settings.source and settings.slots is None else settings.slots,
        "views": settings.views,
    }


def _curves(results: Results) -> Iterable[Mapping[str, Any]]:
    for pair, run, student in _students(results):
        for epoch in range(len(student.history.get("epoch", []))):
            row = {name: column[epoch] for name, column in student.history.items()}
            yield {"pair": pair.name, "run": run.name, "seed": student.seed, **row}


def _confusion(pair: Pair) -> Iterable[Mapping[str, Any]]:
    """Give label and prediction of every test sample: the best run, its first seed."""
    classes = pair.dataset.classes
    prediction = pair.best.students[0].prediction
    for actual, predicted in zip(pair.dataset.labels.tolist(), prediction.tolist(), strict=True):
        yield {"actual": classes[actual], "predicted": classes[predicted]}


def _students(results: Results) -> Iterable[tuple[Pair, Run, Trained]]:
    for pair in results.pairs:
        for run in pair.runs:
            for student in run.students:
                yield pair, run, student


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    cells = [{_cell(name): _cell(value) for name, value in row.items()} for row in rows]
    # Runs differ in their terms: a column that a row lacks is an empty cell.
    columns = list(dict.fromkeys(name for row in cells for name in row))

    with path.open("w", newline="", encoding="utf-8") as file:
        # Texts in quotes: after a carriage return without them, a name would continue as a row of its own.
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        writer.writerows(cells)


def _cell(value: Any) -> Any:
    """Return `value` as a spreadsheet takes it for a text: an apostrophe before what would be a formula.

    Other texts stay different ones: what has the apostrophe already gets another.
    """
    formula = isinstance(value, str) and value.lstrip("'").startswith(FORMULA)
    return f"'{value}" if formula else value
