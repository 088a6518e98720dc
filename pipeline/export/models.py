"""What runs: an exported file, or the student itself, as one function from images to logits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts.hashing import file_hash
from pipeline.errors import DamagedArtifactError, MachineError, MissingArtifactError, ParamsError
from pipeline.export.preprocessing import FILE, INPUT, OUTPUT, Preprocessing
from pipeline.params.base import load

if TYPE_CHECKING:
    from pipeline.networks.network import Network

# From normalized images float32 (B, C, H, W) to logits float32 (B, K).
Model = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# Where each format lies in the folder of an export; beside each lies its `preprocessing.json`.
FILES = {"onnx": "onnx/model.onnx", "program": "program/model.pt2", "int8": "int8/model.onnx"}
_EXPORT = "python -m stages.export PAIR/RUN"
_MAKE = f"Make it with: {_EXPORT}"
_TO_RUN = {".onnx": ("onnxruntime",), ".pt2": ("torch",)}
_TO_MAKE = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "program": (),
    "int8": ("onnx", "onnxscript", "onnxruntime"),
}


def require_to_make(formats: Iterable[str]) -> None:
    """Refuse formats that this environment cannot make; see `_require`."""
    _require([name for kind in formats for name in _TO_MAKE[kind]], "The export")


def opened(path: Path) -> Model:
    """Open an exported file; it runs on the CPU.

    A program of torch.export must be one's own: torch loads it with pickle. ONNX holds no code.

    Raises:
        MachineError: what runs it is not installed.
        DamagedArtifactError: it cannot be read.
    """
    _require(_TO_RUN[path.suffix], str(path))
    try:
        return _of_onnx(path) if path.suffix == ".onnx" else _of_program(path)
    except Exception as error:  # onnxruntime and torch raise many kinds at bytes that are no model
        reason = " ".join(str(error).split())[:200]
        raise DamagedArtifactError(f"{path} cannot be opened ({reason}). {_MAKE}") from None


def located(path: Path) -> tuple[Path, Preprocessing]:
    """Return an exported file and its preprocessing, by the file, its folder, or the folder of the whole export.

    Raises:
        MissingArtifactError: there is no exported file.
        ParamsError: it is a program of torch.export, which may be another's and may run code when it is loaded.
        DamagedArtifactError: it is not the one that has passed the gate.
    """
    if path.is_dir() and not (path / FILE).exists():
        files = [FILES[kind] for kind in ("onnx", "int8")]
        exported = [path / file for file in files if (path / file).exists()]
        if not exported:
            raise MissingArtifactError(
                f"{path} holds no exported model, expected {' or '.join(files)}. {_MAKE}"
            )
        path = exported[0]
    folder = path if path.is_dir() else path.parent
    preprocessing = load(Preprocessing, folder / FILE, _EXPORT)

    model = folder / preprocessing.model
    if not path.is_dir() and path.name != model.name:
        raise MissingArtifactError(f"{folder / FILE} is of {model.name}, not of {path.name}. {_MAKE}")
    if model.suffix not in _TO_RUN:
        raise ParamsError(f"{model} is no exported file, expected one of ONNX. {_MAKE}")
    if model.suffix != ".onnx":
        raise ParamsError(
            f"{model} is a program of torch.export, and to load one may run code that is in it. Give a file of ONNX, "
            "or the student itself."
        )
    if file_hash(model) != preprocessing.hash:
        raise DamagedArtifactError(
            f"{model} is not the file that has passed the gate: it does not have the hash that {FILE} names. {_MAKE}"
        )
    return model, preprocessing


def of_network(network: Network) -> Model:
    """Return a network on the CPU as such a function."""
    import torch

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            scores: NDArray[np.float32] = network(torch.from_numpy(images)).numpy()
        return scores

    return run


def _of_onnx(path: Path) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # as the student is run beside it, and as a small network is run best
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = session.run([OUTPUT], {INPUT: images})[0]
        return scores

    return run


def _of_program(path: Path) -> Model:
    import torch

    module = torch.export.load(path).module()

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            scores: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
        return scores

    return run


def _require(modules: Iterable[str], what: str) -> None:
    """Refuse to go on without modules.

    Raises:
        MachineError: one is not installed.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MachineError(
                f"{what} needs {module}, which is not installed. Install it with: pip install -e '.[export]'"
            )
