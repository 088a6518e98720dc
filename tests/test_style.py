"""Lint, types and import rules are part of the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["lint-imports", "--no-cache"],
    ],
    ids=lambda command: "-".join(part for part in command if part.isalpha()),
)
def test_the_code_is_clean(command: list[str]) -> None:
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_packages_are_empty() -> None:
    """The listing of a folder is its catalogue, so its `__init__` has nothing to say."""
    full = [path for path in (ROOT / "pipeline").rglob("__init__.py") if path.read_text()]
    assert full == []
