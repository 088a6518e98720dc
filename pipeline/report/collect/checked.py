"""From the artifacts to what `check_features` found of a teacher's store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.artifacts import advice, seal
from pipeline.errors import StaleArtifactError
from pipeline.params.teachers import CheckBlock
from pipeline.report.collect.mapping import mapping
from pipeline.report.results import Dataset, Trained

NEEDED = ("precision", "largest_error", "largest_share", "error", "bytes", "files")


def checked(
    artifacts: Path, block: CheckBlock, dataset: Dataset, teacher: Trained
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what a teacher's store holds, and how it compares to the live teacher.

    Args:
        artifacts: folder of all artifacts.
        block: the block of the check.
        dataset: the teacher's.
        teacher: the network that the store must be of.

    Raises:
        MissingArtifactError: the store has not been checked.
        StaleArtifactError: another store was, of another network or of other data.
        DamagedArtifactError: a file is not what was written.
    """
    hint = f"dvc repro {block.stage}"
    path = artifacts / "checks" / f"{block.teacher}.json"
    store = mapping(path, hint, ("features", "weights", "data"))
    stored = store["weights"] if isinstance(store["weights"], dict) else {}
    own = {name: teacher.weights.get(name) for name in stored}
    if stored != own or store["data"] != dataset.prepared.meta.fingerprint:
        raise StaleArtifactError(
            f"{path} is of a store of another teacher or of other data than the project has now. "
            f"{advice.again(hint)}"
        )

    metrics = artifacts / "metrics" / "features" / f"{block.teacher}.json"
    check = mapping(metrics, hint, NEEDED)
    return store, seal.opened(metrics, check, block.model_dump(mode="json"), block.stage, path)
