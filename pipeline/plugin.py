"""Plug-ins: a module of a catalogue folder, found by its file name.

`pipeline/distillation/methods/kd.py` is `method: kd` in params.yaml. The folder's listing is the catalogue; there is no
registry. The singular module beside the folder (`pipeline/distillation/method.py`) is the contract that its files keep.
A catalogue is known by its bare name; `CATALOGUES` says in which room it stands.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pipeline
from pipeline.errors import unknown_name

CATALOGUES = {
    "datasets": "data.datasets",
    "networks": "networks.families",
    "layers": "networks.layers",
    "encodings": "features.encodings",
    "tables": "tables.fits",
    "methods": "distillation.methods",
    "schedules": "distillation.schedules",
    "transforms": "distillation.transforms",
}


def package(catalogue: str) -> str:
    """Return the package of `catalogue`, for instance "pipeline.distillation.methods"."""
    return f"pipeline.{CATALOGUES[catalogue]}"


def module(catalogue: str, name: str) -> str:
    """Return the module of the plug-in `name` of `catalogue`, whether it is there or not."""
    return f"{package(catalogue)}.{name}"


def names(catalogue: str) -> list[str]:
    """List the plug-ins of `catalogue`, for instance "methods", in alphabetical order."""
    parts = CATALOGUES[catalogue].split(".")
    folders = [str(Path(folder, *parts)) for folder in pipeline.__path__]
    return sorted(info.name for info in pkgutil.iter_modules(folders))


def load(catalogue: str, name: str) -> ModuleType:
    """Import the plug-in `name` of `catalogue`.

    Raises:
        UnknownNameError: the catalogue has no such file.
    """
    if name not in names(catalogue):
        raise unknown_name(catalogue.removesuffix("s"), name, names(catalogue))
    return importlib.import_module(module(catalogue, name))
