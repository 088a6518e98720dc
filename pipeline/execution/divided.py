"""Jobs in two places: those that compute on a GPU where there is one go elsewhere, the others stay on this machine.

What stays is short and reads what only this machine has: params.yaml, raw files, the whole of artifacts for a report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.execution.job import Ended, Executor, Job, Progress

EVERY = 0.2  # seconds between two looks at one of them


class DividedExecutor:
    """Runs jobs in one of two places.

    Args:
        here: what does not compute on a GPU.
        there: what does.
    """

    def __init__(self, here: Executor, there: Executor) -> None:
        self._here, self._there = here, there

    @property
    def places(self) -> int:
        """How many students compute at a time at most."""
        return self._there.places

    def free(self, *, gpu: bool) -> bool:
        """Tell whether a job of this kind would start at once."""
        return self._of(gpu=gpu).free(gpu=gpu)

    def start(self, job: Job) -> str:
        """Start a job in its place."""
        return self._of(gpu=job.gpu).start(job)

    def wait(self, seconds: float) -> Sequence[Ended]:
        """Return the jobs that have ended since it was asked last, after `seconds` at most where there is none."""
        deadline = time.monotonic() + seconds
        while True:
            ended = [*self._here.wait(0.0), *self._there.wait(0.0)]
            left = deadline - time.monotonic()
            if ended or left <= 0:
                return ended
            time.sleep(min(EVERY, left))

    def progress(self, job: Job) -> Progress | None:
        """Return how far a running job is, or None where it does not say."""
        return self._of(gpu=job.gpu).progress(job)

    def stop(self) -> None:
        """Interrupt all jobs, and return when they have ended."""
        self._here.stop()
        self._there.stop()

    def close(self) -> None:
        """Give back what both hold."""
        self._here.close()
        self._there.close()

    def _of(self, *, gpu: bool) -> Executor:
        return self._there if gpu else self._here
