"""Histories in the layout of dvclive: DVC's view in VS Code and `dvc plots` show them as they grow.

A training has `metrics.json`, its last epoch, and `plots/metrics/COLUMN.tsv`; one dvc.yaml beside all names them. No
stage makes or reads the folder, so DVC hashes nothing of it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.artifacts import publish
from pipeline.errors import ParamsError
from pipeline.tracking.histories import History

METRICS, PLOTS = "metrics.json", Path("plots/metrics")


def write(histories: Sequence[History], folder: Path) -> int:
    """Bring the folder up to date, and return how many trainings have changed; a file that stays is not touched.

    Args:
        histories: the trainings; what the folder holds of others stays.
        folder: the folder.

    Raises:
        ParamsError: it has a dvc.yaml that is not of this command.
    """
    _refuse_another(folder / "dvc.yaml")
    changed = sum(_write(history, folder / history.name) for history in histories)
    names = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob(METRICS))
    if names:
        _put(folder / "dvc.yaml", _listing(names))
    return changed


def _refuse_another(listing: Path) -> None:
    if listing.exists() and not _is_ours(listing):
        raise ParamsError(
            f"{listing} is not of this command and is not replaced. Give another folder by --out."
        )


def _is_ours(listing: Path) -> bool:
    """Say whether a dvc.yaml names nothing but what `_listing` does."""
    try:
        content = YAML(typ="safe").load(listing)
    except (YAMLError, UnicodeDecodeError):
        return False
    if not isinstance(content, dict) or content.keys() != {"metrics", "plots"}:
        return content is None
    metrics, plots = content["metrics"], content["plots"]
    return (
        isinstance(metrics, list)
        and isinstance(plots, list)
        and all(str(path).endswith(f"/{METRICS}") for path in metrics)
        and all(
            isinstance(plot, dict) and all(str(path).endswith(f"/{PLOTS.as_posix()}") for path in plot)
            for plot in plots
        )
    )


def _write(history: History, folder: Path) -> bool:
    """Write a training's files, and tell whether one has changed."""
    files = {}
    for column, series in history.series().items():
        lines = [f"{step}\t{value!r}\n" for step, value in series]
        files[PLOTS / f"{column}.tsv"] = "".join([f"step\t{column}\n", *lines])

    last = {column: value for column, value in history.rows[-1].items() if column != "epoch"}
    last |= {"step": int(history.rows[-1]["epoch"])}
    files[Path(METRICS)] = json.dumps(last, indent=2) + "\n"

    for path in (folder / PLOTS).glob("*.tsv"):
        if path.relative_to(folder) not in files:  # a term that other settings had
            path.unlink()
    # All of them, whichever has changed first.
    return sum(_put(folder / path, text) for path, text in files.items()) > 0


def _listing(names: Sequence[str]) -> str:
    text = io.StringIO()
    plots = [{f"{name}/{PLOTS.as_posix()}": {"x": "step"}} for name in names]
    YAML().dump({"metrics": [f"{name}/{METRICS}" for name in names], "plots": plots}, text)
    return text.getvalue()


def _put(path: Path, text: str) -> bool:
    """Write a file unless it holds this text, in one step: whoever looks on sees a whole one."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    with publish.writing(path) as part:
        part.write_text(text, encoding="utf-8")
    return True
