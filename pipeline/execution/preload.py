"""What the server of `local` imports before it forks: what stages import anyway, which takes them seconds.

Nothing is computed here: threads and CUDA contexts do not survive a fork.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from types import TracebackType

MODULES = (
    "stages.command",  # first: it has a setting for the threads that come with torch
    "scipy.optimize",
    "scipy.sparse",
    "scipy.special",
    "sklearn.cluster",
    "sklearn.datasets",
    "sklearn.discriminant_analysis",
    "sklearn.model_selection",
    "tensorstore",
    "zarr",
    "torch",
    "torchvision",
    "typer",
    "matplotlib.figure",
    "jinja2",
    "pipeline.features.check",
    "pipeline.features.extract",
    "pipeline.matching.matcher",
    "pipeline.runs.check",
    "pipeline.runs.comparison",
    "pipeline.runs.resolve",
    "pipeline.tables.table",
    "pipeline.training.copies",
    "pipeline.training.distill",
)
# Errors of a request that ends too early.
CUT_SHORT = ("EOFError", "UnpicklingError")


def load() -> None:
    """Import all of it, unseen by the garbage collector: it would look through it again and again."""
    gc.disable()
    for name in MODULES:
        import_module(name)
    gc.enable()
    gc.freeze()


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what no process caught, unless it says that whoever asked for a process was killed amid its request."""
    if kind.__name__ not in CUT_SHORT:
        sys.__excepthook__(kind, error, trace)


load()
sys.excepthook = show
