"""Detection as data: the files `detection*.csv` and `precision_recall.csv`, and a part of `summary.json`.

They stand apart from `results.csv` and `gains.csv`, whose columns are accuracies: an average precision is none, and
plots of these columns would take a blank for a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.params.sections import ALONE
from pipeline.report.beside import beside, cells, preferred
from pipeline.report.detectors import BEST, COSTS, CURVES, MEASURES, BoxPair, BoxRun, Detection, Detector


def rows(detection: Detection) -> Iterator[Mapping[str, Any]]:
    """Give a row for each teacher, and for each run and seed."""
    for teacher in detection.teachers.values():
        yield {
            "dataset": teacher.dataset.name,
            "pair": "",
            "teacher": teacher.name,
            "student": "",
            "run": "",
            **_numbers(teacher.trained),
            **cells(None, {}),
        }
    for pair in detection.pairs:
        listed = beside(pair)
        for run in pair.runs:
            compared = preferred(run, listed, "AP")
            for student in run.students:
                yield {
                    "dataset": pair.teacher.dataset.name,
                    "pair": pair.name,
                    "teacher": pair.teacher.name,
                    "student": pair.student,
                    "run": run.name,
                    **_numbers(student),
                    **cells(compared, student.metrics),
                }


def _numbers(detector: Detector) -> dict[str, Any]:
    """Return the numbers of a detector; a size that no object has is an empty cell."""
    metrics = detector.metrics
    return {
        "network": metrics["network"],
        "methods": metrics.get("methods", ""),
        "seed": detector.seed,
        **{name: metrics.get(name, "") for name in (*MEASURES, BEST, *COSTS, "teacher_l2")},
    }


def gains(detection: Detection) -> Iterator[Mapping[str, Any]]:
    """Give a row for each run and measure: its mean, and the gain over the student alone, paired by seed."""
    for pair in detection.pairs:
        for run in pair.runs:
            for measure in pair.measures:
                mean = run.estimate(measure)
                gain = None if run is pair.alone else run.gain(pair.alone, measure)
                # Two runs without a seed in common have no gain, and one seed has no interval.
                yield {
                    "pair": pair.name,
                    "run": run.name,
                    "measure": measure,
                    "mean": mean.mean,
                    "std": mean.std,
                    "gain": gain.mean if gain is not None and gain.count else None,
                    "gain_half": gain.half if gain is not None else None,
                    "seeds": mean.count,
                    "gain_seeds": gain.count if gain is not None else None,
                }


def histories(detection: Detection) -> Iterator[Mapping[str, Any]]:
    """Give a row for each detector and epoch: its losses, and its average precisions where it was evaluated."""
    for key, detector in detection.detectors.items():
        for epoch in range(len(detector.history.get("epoch", []))):
            yield {"detector": key} | {name: column[epoch] for name, column in detector.history.items()}


def curves(detection: Detection) -> Iterator[Mapping[str, Any]]:
    """Give a row for each detector and recall: the precision there."""
    for key, detector in detection.detectors.items():
        for place, recall in enumerate(detector.recalls.tolist()):
            precisions = {f"precision_{name}": float(detector.curves[name][place]) for name in CURVES}
            yield {"detector": key, "recall": recall, **precisions}


def summary(detection: Detection) -> dict[str, Any]:
    """Return means over seeds, by pair and run, as plain numbers: `dvc metrics diff` compares them one by one."""
    teachers = {
        name: {measure: teacher.trained.metrics[measure] for measure in teacher.trained.measures}
        for name, teacher in detection.teachers.items()
    }
    pairs = {pair.name: {run.name: _means(pair, run) for run in pair.runs} for pair in detection.pairs}
    return {"teachers": teachers, "pairs": pairs}


def _means(pair: BoxPair, run: BoxRun) -> dict[str, float]:
    means = {measure: run.estimate(measure).mean for measure in pair.measures}
    ap = run.estimate("AP")
    means["seeds"] = ap.count
    if ap.std is not None:
        means["AP_std"] = ap.std
    if run.name != ALONE:
        gain = run.gain(pair.alone, "AP")
        means["AP_gain_seeds"] = gain.count
        if gain.count:
            means["AP_gain"] = gain.mean
        if gain.half is not None:
            means["AP_gain_interval"] = gain.half
    return means
