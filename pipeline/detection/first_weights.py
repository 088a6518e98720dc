"""Where a detector's first weights come from: its library's ImageNet weights, or a file of one's own.

A file is of a whole detector, by torchvision's names or ours, or of a classifier by torchvision's names, whose
classifier is left out. Both are read as a classifier's are (`networks/own_weights.py`): nothing but tensors is built
from them, and every name and shape must fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pipeline.artifacts import advice
from pipeline.detection.backbone import BACKBONES
from pipeline.detection.detector import Detector, parts
from pipeline.errors import StaleArtifactError
from pipeline.networks import own_weights, pretrained, weight_file
from pipeline.params.weights import Weights, WeightsFile

_OF_DETECTORS = ("backbone.fpn.", "model.backbone.fpn.")  # a name that contains it is no classifier's
_CLASSES = (
    "roi_heads.box_predictor.",
    "head.classification_head.cls_logits.",
)  # layers as wide as there are classes
_CLASSIFIER = "fc."  # torchvision's name for it in a ResNet
_COUNTER = "num_batches_tracked"  # a frozen BN has none, a file may


@dataclass(frozen=True)
class _Tensors:
    """What a file is fitted to: tensors by our names, and ours by the library's."""

    own: dict[str, Tensor]
    library_names: dict[str, str]

    def state_dict(self) -> dict[str, Tensor]:
        return self.own


def check(network: str, weights: Weights) -> None:
    """Refuse weights that a network does not have; nothing is fetched for it.

    Raises:
        UnknownNameError: there is no such network.
        ParamsError: there are no such weights.
    """
    if weights == "imagenet" and BACKBONES[parts(network)[1]].weights is None:
        pretrained.refuse("detector", weights, network)


def fill(detector: Detector, weights: Weights) -> None:
    """Fill a detector, or its ResNet alone.

    Args:
        detector: built with `loaded` if there are weights.
        weights: "none" leaves all as drawn, "imagenet" is torchvision's for the ResNet, else a file's.

    Raises:
        ParamsError: there are no such weights, or a file's do not fit.
        MachineError: the ImageNet weights cannot be fetched.
        DataError: a file is not there, is not the published one, or holds something else than tensors.
        StaleArtifactError: a file has changed since params.yaml was checked.
    """
    check(detector.network, weights)
    if isinstance(weights, WeightsFile):
        _fill_from_file(detector, weights)
    elif weights == "imagenet":
        published = BACKBONES[parts(detector.network)[1]].weights
        assert published is not None  # as checked
        state = pretrained.fetch(published, 3)
        body = detector.backbone.body
        kept = {name: x for name, x in state.items() if not name.startswith(_CLASSIFIER)}
        body.load_state_dict(_counted(kept, body.state_dict()))


def _fill_from_file(detector: Detector, file: WeightsFile) -> None:
    actual = own_weights.sha256(file.path)
    if actual != file.sha256:
        raise StaleArtifactError(
            f"The weights {file.path} have changed: found sha256 {actual[:8]}, expected {file.sha256[:8]}. "
            f"{advice.again('dvc repro params')}"
        )
    state = weight_file.read(file.path, file)
    of_detector = any(part in name for name in state for part in _OF_DETECTORS)
    prefix = "model." if of_detector else "model.backbone.body."
    own = {name: x for name, x in detector.state_dict().items() if name.startswith(prefix)}

    if of_detector and file.classifier == "fresh":
        fresh = {name: x for name, x in own.items() if any(part in name for part in _CLASSES)}
        state = {name: x for name, x in state.items() if not any(part in name for part in _CLASSES)} | fresh
    if not of_detector:
        state = {name: x for name, x in state.items() if not _is_of_classifier(name)}
    target = _Tensors(own, {name.removeprefix(prefix): name for name in own})
    fitted = own_weights.fitted(
        target, file.model_copy(update={"classifier": "given"}), _uncounted(state, own)
    )
    detector.load_state_dict(detector.state_dict() | fitted)


def _is_of_classifier(name: str) -> bool:
    """Say whether a tensor is of a ResNet's classifier, under any wrapper."""
    return name.startswith(_CLASSIFIER) or any(
        name.startswith(f"{wrapper}{_CLASSIFIER}") for wrapper in own_weights.WRAPPERS
    )


def _uncounted(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state without counters of steps where the network has none."""
    counts = any(name.endswith(_COUNTER) for name in own)
    return {name: x for name, x in state.items() if counts or not name.endswith(_COUNTER)}


def _counted(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with the counters of steps that the network has and no others: old files have none."""
    counters = {name: x for name, x in own.items() if name.endswith(_COUNTER)}
    return counters | _uncounted(state, own)
