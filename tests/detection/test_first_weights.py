"""First weights of detectors: torchvision's of a classifier, and files of classifiers and of detectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from error_fixtures import one_line
from torch import Tensor, nn
from torchvision.models import resnet18

from pipeline.detection import first_weights
from pipeline.detection.detector import Detector, build
from pipeline.detection.detector_settings import DetectorSettings
from pipeline.errors import ParamsError, StaleArtifactError
from pipeline.networks import own_weights, pretrained
from pipeline.params.weights import WeightsFile

NETWORK = "faster_rcnn_resnet18"
SETTINGS = DetectorSettings(pyramid_width=8, head_width=16)
HEADS = ("model.roi_heads.box_predictor.cls_score", "model.roi_heads.box_predictor.bbox_pred")


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """Return a classifier whose norms are not those of a fresh one."""
    network = resnet18(num_classes=5)
    with torch.no_grad():
        for name, x in network.named_buffers():
            if x.is_floating_point():
                x.fill_(0.5 + 0.01 * len(name))
    return network


def made(classes: int = 3, norm: str | None = None, seed: int = 0) -> Detector:
    return build(NETWORK, classes, seed, SETTINGS.model_copy(update={"norm": norm}), loaded=True)


def file(path: Path, state: dict[str, Tensor], **settings: str) -> WeightsFile:
    torch.save(state, path)
    return WeightsFile.model_validate(
        {"path": str(path), "sha256": own_weights.sha256(str(path)), **settings}
    )


def assert_is_classifiers(detector: Detector, classifier: nn.Module) -> None:
    ours = detector.backbone.body.state_dict()
    theirs = classifier.state_dict()
    assert {*theirs} - {*ours} <= {
        name for name in theirs if name.startswith("fc.") or name.endswith("num_batches_tracked")
    }
    for name, x in ours.items():
        assert torch.equal(x, theirs[name]), name


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("counted", [True, False])
def test_imagenet_weights_fill_the_resnet(
    monkeypatch: pytest.MonkeyPatch, classifier: nn.Module, norm: str | None, counted: bool
) -> None:
    state = {name: x for name, x in classifier.state_dict().items() if counted or "num_batches" not in name}
    monkeypatch.setattr(pretrained, "fetch", lambda _weights, _channels: state)
    detector = made(norm=norm)
    first_weights.fill(detector, "imagenet")
    assert_is_classifiers(detector, classifier)


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_a_classifiers_file_fills_the_resnet(tmp_path: Path, classifier: nn.Module, wrapper: str) -> None:
    state = {f"{wrapper}{name}": x for name, x in classifier.state_dict().items()}
    detector, drawn = made(), made()
    first_weights.fill(detector, file(tmp_path / "classifier.pt", state))
    assert_is_classifiers(detector, classifier)
    assert torch.equal(detector.state_dict()[f"{HEADS[0]}.weight"], drawn.state_dict()[f"{HEADS[0]}.weight"])


@pytest.mark.parametrize("ours", [True, False])
def test_a_detectors_file_fills_all_of_it_by_either_names(tmp_path: Path, ours: bool) -> None:
    other, detector = made(seed=1), made()
    state = {name if ours else name.removeprefix("model."): x for name, x in other.state_dict().items()}
    first_weights.fill(detector, file(tmp_path / "detector.pt", state))
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in detector.state_dict().items())


def test_a_detector_of_other_classes_keeps_the_last_layers_as_drawn(tmp_path: Path) -> None:
    other, drawn = made(classes=7, seed=1), made()
    state = {name.removeprefix("model."): x for name, x in other.state_dict().items()}

    detector = made()
    with pytest.raises(ParamsError) as error:
        first_weights.fill(detector, file(tmp_path / "detector.pt", state))
    one_line(error, "misshapen", "box_predictor")

    first_weights.fill(detector, file(tmp_path / "detector.pt", state, classifier="fresh"))
    for name, x in detector.state_dict().items():
        source = drawn if name.startswith(HEADS) else other
        assert torch.equal(x, source.state_dict()[name]), name


def test_what_does_not_fit_or_has_changed_is_one_line(tmp_path: Path, classifier: nn.Module) -> None:
    state = classifier.state_dict()
    del state["layer3.0.conv1.weight"]
    with pytest.raises(ParamsError) as error:
        first_weights.fill(made(), file(tmp_path / "part.pt", state))
    one_line(error, "missing", "layer3.0.conv1.weight")

    weights = file(tmp_path / "whole.pt", classifier.state_dict())
    torch.save({}, tmp_path / "whole.pt")
    with pytest.raises(StaleArtifactError) as stale:
        first_weights.fill(made(), weights)
    one_line(stale, "have changed")


def test_a_network_without_imagenet_weights_says_so() -> None:
    with pytest.raises(ParamsError) as error:
        first_weights.check("faster_rcnn_resnet10x0.25", "imagenet")
    one_line(error, "faster_rcnn_resnet10x0.25", "imagenet")
    first_weights.check("retinanet_resnet152", "imagenet")
    first_weights.check("faster_rcnn_resnet10x0.25", "none")
