"""What a network predicts of the test split, on disk: an npz that says of which weights, inputs and data it is.

An evaluation writes it. The report reads it, and so does the evaluation of a student, which is compared with its
teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import advice, arrays
from pipeline.errors import DamagedArtifactError, StaleArtifactError

Array = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """Predictions of the test split.

    Attributes:
        weights: hash of the file of the last weights.
        inputs: hash of what they were trained from.
        fingerprint: of the test split.
        label: the labels, int32 (N,).
        last: classes predicted by the last weights, int32 (N,).
        best: by the best weights, int32 (N,).
        correlation: of the logits of every two classes, float32 (K, K).
        pooled: what the classifier reads of some samples, float32 (n, D).
        pooled_index: these samples, int64 (n,).
    """

    weights: str
    inputs: str
    fingerprint: str
    label: NDArray[np.int32]
    last: NDArray[np.int32]
    best: NDArray[np.int32]
    correlation: NDArray[np.float32]
    pooled: NDArray[np.float32]
    pooled_index: NDArray[np.int64]

    @classmethod
    def read(cls, path: Path, hint: str, fingerprint: str, samples: int, classes: int) -> Self:
        """Read predictions of a data set.

        Args:
            path: the npz.
            hint: the command that makes it.
            fingerprint: of the test split.
            samples: N of it.
            classes: K of the data.

        Raises:
            MissingArtifactError: there is no such file.
            StaleArtifactError: it was made with other data.
            DamagedArtifactError: it cannot be read, or an array cannot be of this data.
        """
        # First of all: of other data, predictions have another length and another meaning.
        own = str(arrays.read(path, hint, ("fingerprint",))["fingerprint"])
        if own != fingerprint:
            raise StaleArtifactError(f"{path} was made with other data. {advice.again(hint)}")

        content = arrays.read(path, hint, cls.__dataclass_fields__)
        wrong = _wrong(content, samples, classes)
        if wrong:
            raise DamagedArtifactError(f"{path} has {wrong}. {advice.again(hint)}")
        texts: dict[str, Any] = {name: str(content[name]) for name in _HASHES}
        return cls(**(content | texts))


_HASHES = ("weights", "inputs", "fingerprint")


def _wrong(content: dict[str, Array], samples: int, classes: int) -> str:
    """Return what is wrong with arrays, in words; empty where nothing is."""
    kept = content["pooled_index"]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("label", "last", "best"), (samples,))
    shapes |= {"correlation": (classes, classes), "pooled": (*kept.shape, *content["pooled"].shape[1:2])}
    for name, shape in shapes.items():
        if content[name].shape != shape:
            return f"{name} of shape {content[name].shape}, expected {shape}"

    limits = {"label": classes, "last": classes, "best": classes, "pooled_index": samples}
    for name, most in limits.items():
        x = content[name]
        if x.dtype.kind != "i" or x.ndim != 1:
            return f"{name} of {x.dtype} {x.shape}, expected a list of integers"
        if len(x) and not (x.min() >= 0 and x.max() < most):
            return f"{name} from {x.min()} to {x.max()}, expected 0 to {most - 1}"

    for name in ("correlation", "pooled"):
        x = content[name]
        if x.dtype.kind != "f" or x.ndim != 2 or not np.isfinite(x).all():
            return f"{name} that is not a matrix of finite numbers"
    return ""
