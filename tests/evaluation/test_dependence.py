"""An edit of what only an evaluation measures retrains nothing."""

from __future__ import annotations

import pytest

from pipeline.artifacts.closure import closure


@pytest.mark.parametrize("stage", ["train_teacher", "pretrain_student"])
def test_a_training_depends_on_its_own_part_of_evaluation_and_data(stage: str) -> None:
    paths = {path.as_posix() for path in closure([f"stages.{stage}"])}
    assert {path for path in paths if path.startswith("pipeline/evaluation/")} == {
        "pipeline/evaluation/accuracy.py",
        "pipeline/evaluation/forward.py",
    }
    assert paths.isdisjoint(
        {"pipeline/data/dataset.py", "pipeline/data/preparation.py", "pipeline/networks/catalogue.py"}
    )
