"""Advice: a command that makes anew what is there is written in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.artifacts import advice, arrays, publish
from pipeline.errors import DamagedArtifactError, MissingArtifactError

ROOT = Path(__file__).parents[2]
HINT = "dvc repro fit_table@T-words"


def test_what_is_there_is_made_again_by_its_stage_alone() -> None:
    assert advice.forced(HINT) == "dvc repro --force --single-item fit_table@T-words"
    assert advice.again(HINT) == "Make it again with: dvc repro --force --single-item fit_table@T-words"


def test_where_the_stage_is_unknown_nothing_else_is_made_anew() -> None:
    assert advice.again("dvc repro") == "Delete it, then: dvc repro"


def test_what_is_missing_is_made_and_what_is_damaged_is_forced(tmp_path: Path) -> None:
    for read, name in ((publish.read_json, "a.json"), (arrays.read, "a.npz")):
        path = tmp_path / name
        with pytest.raises(MissingArtifactError) as missing:
            read(path, HINT)
        path.write_bytes(b"{")
        with pytest.raises(DamagedArtifactError) as damaged:
            read(path, HINT)
        assert str(missing.value).endswith(f"Make it with: {HINT}")
        assert str(damaged.value).endswith(advice.again(HINT))


@pytest.mark.parametrize("text", ["again with: dvc", "again with: {hint", "repro --force", "dvc checkout"])
def test_no_other_module_writes_such_a_command(text: str) -> None:
    """Without --force DVC would do nothing, and without --single-item it would train teachers anew."""
    files = [path for room in ("pipeline", "stages") for path in (ROOT / room).rglob("*.py")]
    assert [path for path in files if text in path.read_text() and path.name != "advice.py"] == []
