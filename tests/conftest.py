"""Tests run side by side, so each process keeps to one thread: threads that fight over cores are slow.

And on every device that there is: see `device_fixtures.py`. No process keeps what it has compiled: where the size and
second of the last change are the same, Python takes a source for the one compiled, and tests edit within a second.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.dont_write_bytecode = True
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

# The tests in `fuzz/`: always the same examples, and few; `--hypothesis-profile=thorough` draws others, and many.
settings.register_profile("quick", max_examples=100, derandomize=True, database=None, deadline=None)
settings.register_profile("thorough", max_examples=5000, deadline=None)
settings.load_profile("quick")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that asks for `device` on the CPU, and on a GPU unless it is marked `cpu`."""
    if "device" not in metafunc.fixturenames:
        return
    from device_fixtures import GPUS

    on_cpu_alone = metafunc.definition.get_closest_marker("cpu")
    gpus = [] if on_cpu_alone else [pytest.param(name, marks=pytest.mark.gpu) for name in GPUS]
    metafunc.parametrize("device", ["cpu", *gpus], scope="module", indirect=True)


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> str:
    """Return the name of the device that the test runs on; what is made on it is made once a device."""
    name: str = request.param
    return name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of slow tests: at the end, one of them would keep a single process busy."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])  # else they stay in their order


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Set the device of a test before its fixtures are made, and until they are gone."""
    from device_fixtures import running_on

    called = getattr(item, "callspec", None)
    with running_on(called.params.get("device", "cpu") if called else "cpu"):
        return (yield)
