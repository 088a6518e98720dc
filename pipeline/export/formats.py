"""From a network to files: a program of `torch.export`, ONNX by torch's exporter, and int8 by onnxruntime.

All three have a batch of any size. What stays in the student at inference, layers that a method has inserted among it,
is exported with it.

int8 is static quantization after training, of convolutions and matrix products: weights by channel, activations by
ranges that are measured on training images, written as pairs of QuantizeLinear and DequantizeLinear. onnxruntime's was
chosen before torchao's, since a file of ONNX is quantized for every runtime that reads the format, and needs no
compiler to be fast.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import Dim, ExportedProgram

from pipeline import seeding
from pipeline.artifacts import publish
from pipeline.errors import ParamsError, StillhouseError
from pipeline.export.models import FILES
from pipeline.export.preprocessing import INPUT, OUTPUT

if TYPE_CHECKING:
    from onnxruntime.quantization import CalibrationDataReader

    from pipeline.export.student import Student

_BATCH = 2  # of the example: a batch of 1 would be taken for a constant
_CALIBRATION_BATCH = 32
# What becomes int8. Between them numbers stay as they are: a transformer's sums have a few very large ones, and 256
# values for such a range leave none for the rest.
_WEIGHTED = ("Conv", "Gemm", "MatMul")


def write(student: Student, formats: Sequence[str], calibration: int, folder: Path) -> dict[str, Path]:
    """Write a student in some formats, and return the files by format.

    Args:
        student: the student.
        formats: any of `FILES`.
        calibration: training images that the ranges of int8 are measured on, at most.
        folder: where each gets a folder of its own.

    Raises:
        ParamsError: the network does things that a format cannot hold.
    """
    paths = {kind: folder / FILES[kind] for kind in formats}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    what = f"Network '{student.spec.network}' of {student.folder}"

    exported = program(student.network, student.preprocessing.shape, what)
    if "program" in paths:
        torch.export.save(exported, paths["program"])

    graph = paths.get("onnx", folder / "graph.onnx")
    if "onnx" in paths or "int8" in paths:
        write_onnx(exported, graph, what)
    if "int8" in paths:
        write_int8(graph, paths["int8"], calibration_images(student, calibration))
    if "onnx" not in paths:
        publish.remove(graph)
    return paths


def program(network: nn.Module, shape: Sequence[int], what: str) -> ExportedProgram:
    """Export a network for batches of any size.

    Args:
        network: in evaluation mode, on the CPU.
        shape: (C, H, W) of an image.
        what: it is, for the error.

    Raises:
        ParamsError: what it does cannot be written down.
    """
    example = torch.zeros(_BATCH, *shape)
    try:
        with torch.no_grad():
            exported = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch", min=1)},))
    except StillhouseError:
        raise
    except Exception as error:  # each network fails in a way of its own
        raise _refused(what, "torch.export", error) from None
    _forget_files(exported)
    return exported


def _forget_files(exported: ExportedProgram) -> None:
    """Drop the lines of code that each operation came from: they name files of this machine, and quote them."""
    for module in exported.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def write_onnx(exported: ExportedProgram, path: Path, what: str) -> None:
    """Write a program as ONNX; the input is `image`, the output `logits`.

    Raises:
        ParamsError: it has an operation that ONNX lacks.
    """
    try:
        graph = torch.onnx.export(
            exported, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        )
        assert graph is not None
        graph.save(path)
    except Exception as error:  # torch's own tree, onnxscript's, and plain RuntimeErrors
        raise _refused(what, "torch.onnx", error) from None


def write_int8(graph: Path, path: Path, images: Iterable[NDArray[np.float32]]) -> None:
    """Quantize an ONNX file.

    Args:
        graph: the file.
        path: the file to write.
        images: batches of normalized training images (B, C, H, W), which the ranges are measured on.
    """
    from onnxruntime.quantization import QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # It folds batch norms into convolutions. Symbolic shapes fail at layers that expand a parameter, and only shapes of
    # fewer nodes would be known without them.
    folded = path.with_suffix(".folded")
    quant_pre_process(str(graph), str(folded), skip_symbolic_shape=True)
    logging.disable(logging.WARNING)  # a line for each norm, whose weights have one axis
    # Weights of 7 bits: sums of two products of 8 bits saturate on x86 without VNNI, where the gate need not have run.
    try:
        quantize_static(
            str(folded),
            str(path),
            _reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=list(_WEIGHTED),
        )
    finally:
        logging.disable(logging.NOTSET)
    publish.remove(folded)


def calibration_images(student: Student, count: int) -> Iterator[NDArray[np.float32]]:
    """Give batches of training images that are drawn without replacement, always the same ones."""
    split = student.prepared.split("train")
    drawn = torch.randperm(len(split), generator=seeding.generator(0, "calibration"))[:count]
    for rows in torch.split(drawn.sort().values, _CALIBRATION_BATCH):
        images = np.stack([split.images[row] for row in rows.tolist()])
        yield student.preprocessing.normalized(images)


def _reader(batches: Iterable[NDArray[np.float32]]) -> CalibrationDataReader:
    """Return batches as onnxruntime asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self.batches, None)
            return None if images is None else {INPUT: images}

    reader: CalibrationDataReader = Reader()
    return reader


def _refused(what: str, by: str, error: Exception) -> ParamsError:
    reason = (" ".join(str(error).split())[:200] or type(error).__name__).rstrip(".")
    return ParamsError(f"{what} cannot be exported: {by} says: {reason}. Choose another network or format.")
