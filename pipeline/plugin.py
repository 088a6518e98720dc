"""Plug-ins: a module of a catalogue folder, found by its file name.

`pipeline/methods/kd.py` is `method: kd` in params.yaml. The folder's listing is the catalogue; there is no
registry. The singular module beside the folder (`pipeline/method.py`) is the contract that its files keep.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pipeline
from pipeline.errors import unknown_name


def names(catalogue: str) -> list[str]:
    """List the plug-ins of `catalogue`, for instance "methods", in alphabetical order."""
    folders = [str(Path(folder) / catalogue) for folder in pipeline.__path__]
    return sorted(module.name for module in pkgutil.iter_modules(folders))


def load(catalogue: str, name: str) -> ModuleType:
    """Import the plug-in `name` of `catalogue`.

    Raises:
        UnknownNameError: the catalogue has no such file.
    """
    if name not in names(catalogue):
        raise unknown_name(catalogue.removesuffix("s"), name, names(catalogue))
    return importlib.import_module(f"pipeline.{catalogue}.{name}")
