"""A detector on disk: its json, and its weights beside it."""

from __future__ import annotations

from pathlib import Path

from pipeline.detection.detector import Detector, build
from pipeline.detection.spec import DetectorSpec
from pipeline.networks.spec import read_spec
from pipeline.networks.weights import load_weights


def load(folder: Path, weights: str = "last") -> tuple[Detector, DetectorSpec]:
    """Build the detector of `folder/network.json` with the weights `folder/<weights>.safetensors`.

    Raises:
        MissingArtifactError: a file is not there.
        DamagedArtifactError: the weights cannot be read or are not this detector's.
    """
    spec = read_spec(DetectorSpec, folder)
    detector = build(spec.network, spec.classes, 0, spec.settings)
    load_weights(detector, folder / f"{weights}.safetensors")
    detector.eval()
    return detector, spec
