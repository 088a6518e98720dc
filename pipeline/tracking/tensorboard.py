"""Histories for TensorBoard: one folder of events a training, made once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.artifacts import publish
from pipeline.errors import DamagedArtifactError, MachineError
from pipeline.tracking.histories import History
from pipeline.tracking.settings import flat

ABOUT = "history.json"  # the hash of what a folder was made from


def export(histories: Sequence[History], folder: Path) -> int:
    """Write trainings that the folder does not hold yet, or holds otherwise; return how many.

    Raises:
        MachineError: TensorBoard is not installed.
        DamagedArtifactError: a training's folder is there, and is not of this command.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MachineError(
            'TensorBoard is not installed. Install it with: pip install -e ".[tensorboard]"'
        ) from None

    fresh = [history for history in histories if not _holds(folder / history.name, history)]
    for history in fresh:
        with publish.building(folder / history.name) as scratch:
            with SummaryWriter(str(scratch)) as writer:
                settings = "".join(f"    {name}: {value}\n" for name, value in flat(history.settings).items())
                if settings:
                    writer.add_text("settings", settings)  # indented by four: TensorBoard reads Markdown
                for column, series in history.series().items():
                    for epoch, value in series:
                        writer.add_scalar(column, value, epoch)
            publish.write_json(scratch / ABOUT, history.digest)
    return len(fresh)


def _holds(folder: Path, history: History) -> bool:
    """Tell whether a folder was made from just this history."""
    if not folder.exists():
        return False
    if not (folder / ABOUT).exists():
        raise DamagedArtifactError(
            f"{folder} has no {ABOUT}: another program made it, so it is not replaced. Give another --out."
        )
    return bool(publish.read_json(folder / ABOUT, f"rm -r {folder}") == history.digest)
