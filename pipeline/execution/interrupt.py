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

    The second time that they ask raises KeyboardInterrupt at once.
    """
    asked = told = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        for each in SIGNALS:
            signal.signal(each, signal.default_int_handler)

    def stopping() -> bool:
        nonlocal told
        if asked and not told:  # here and not in the handler, which may have interrupted another print
            told = True
            print("Stopping: what runs is interrupted; once more stops at once.", file=sys.stderr, flush=True)
        return asked

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
