"""What the tests of the report share."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_fixtures import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)
