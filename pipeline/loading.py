"""Imports without garbage collection: torch and what comes with it are most of a short stage's time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import inside the block: what is imported stays, and the collector need not look through it again and again.

    Neither does it at the exit of the process, which gains as much as the import.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        # Once a process: what is frozen is never collected, and a later block might freeze what should be.
        if not gc.get_freeze_count():
            gc.freeze()
