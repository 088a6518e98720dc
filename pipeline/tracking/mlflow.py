"""Histories for MLflow: one run a training, made once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import MachineError
from pipeline.tracking.histories import History
from pipeline.tracking.settings import flat

NAME, DIGEST = "stillhouse.training", "stillhouse.history"  # tags of a run
METRICS, PARAMS, LENGTH = 1000, 100, 500  # what MLflow takes in a call, and letters of a param

REFUSED = re.compile(r"[^\w./: -]")  # in a name


def export(histories: Sequence[History], uri: str | None, experiment: str) -> int:
    """Log trainings that the experiment does not hold yet, each as a run; return how many.

    Args:
        histories: the trainings.
        uri: of the tracking server or store; None is what MLflow takes by itself.
        experiment: name of the experiment, made where there is none.

    Raises:
        MachineError: MLflow is not installed, or refuses.
    """
    # Before the import, unless the user has decided.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise MachineError('MLflow is not installed. Install it with: pip install -e ".[mlflow]"') from None

    try:
        client = MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(experiment)
        number = client.create_experiment(experiment) if known is None else known.experiment_id
        fresh = [history for history in histories if not _holds(client, number, history)]
        for history in fresh:
            _log(client, number, history)
    except MlflowException as error:
        reason = " ".join(str(error).split())
        raise MachineError(f"MLflow refuses: {reason[:300]}. See --uri and MLFLOW_TRACKING_URI.") from None
    return len(fresh)


def _holds(client: Any, experiment: str, history: History) -> bool:
    """Tell whether an experiment has a finished run of just this history."""
    return bool(client.search_runs([experiment], f"tags.`{DIGEST}` = '{history.digest}'", max_results=1))


def _log(client: Any, experiment: str, history: History) -> None:
    from mlflow.entities import Metric, Param

    params = [Param(REFUSED.sub("_", key), value[:LENGTH]) for key, value in flat(history.settings).items()]
    metrics = [
        Metric(column, value, 0, epoch)
        for column, series in history.series().items()
        for epoch, value in series
    ]

    run = client.create_run(experiment, run_name=history.name, tags={NAME: history.name}).info.run_id
    try:
        for part in _parts(params, PARAMS):
            client.log_batch(run, params=part)
        for part in _parts(metrics, METRICS):
            client.log_batch(run, metrics=part)
        client.set_tag(run, DIGEST, history.digest)  # last: a run that was cut short is made again
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
