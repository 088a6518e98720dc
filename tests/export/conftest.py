"""One world of tiny students for all tests of exports."""

from __future__ import annotations

import pytest
from export_fixtures import make_students
from training_fixtures import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_students(tmp_path_factory.mktemp("world"))
