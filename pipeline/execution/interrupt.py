"""Ctrl-C and SIGTERM ask a run to stop where it can: not while DVC writes its files."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Give a function that tells, within the block, whether the user or the system has asked to stop.

    A second Ctrl-C raises KeyboardInterrupt at once, as it does outside the block.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(
            "Stopping: what runs is interrupted, and what has ended is recorded.", file=sys.stderr, flush=True
        )

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
