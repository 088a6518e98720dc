"""Detectors: the losses of torchvision's own loop to the bit, taps of the same values, and draws that resume."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from detection_fixtures import shapes, target
from error_fixtures import one_line
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from pipeline.detection.detector import NETWORKS, Detector, build
from pipeline.detection.detector_settings import DetectorSettings
from pipeline.detection.sample import Target
from pipeline.detection.sampling import keyed
from pipeline.errors import UnknownNameError

# Narrow and with few boxes, for speed; everything else is as torchvision has it.
SETTINGS = DetectorSettings(pyramid_width=32, head_width=64, proposals=200, sampled_proposals=32)
AS_IT_IS: dict[str, Any] = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "_skip_resize": True}
NORMS = {"batch": nn.BatchNorm2d, "frozen": FrozenBatchNorm2d}


def plain(network: str, norm: str, classes: int) -> nn.Module:
    """Return torchvision's own model; its labels start from 1."""
    model, _, name = network.rpartition("_")
    body = resnet.__dict__[name](norm_layer=NORMS[norm])
    width = body.inplanes // 8
    first = 1 if model == "faster_rcnn" else 2
    backbone = BackboneWithFPN(
        body,
        {f"layer{k}": str(k - first) for k in range(first, 5)},
        [width << (k - 1) for k in range(first, 5)],
        32,
        LastLevelMaxPool() if first == 1 else LastLevelP6P7(32, 32),
    )
    if model == "retinanet":
        return RetinaNet(backbone, classes + 1, detections_per_img=100, **AS_IT_IS)
    head, predictor = TwoMLPHead(32 * 7 * 7, 64), FastRCNNPredictor(64, classes + 1)
    proposals = {
        f"rpn_{place}_nms_top_n_{mode}": number
        for place in ("pre", "post")
        for mode, number in (("train", 200), ("test", 100))
    }
    return FasterRCNN(
        backbone, box_head=head, box_predictor=predictor, box_batch_size_per_image=32, **proposals, **AS_IT_IS
    )


def of_torchvision(detector: Detector) -> dict[str, Tensor]:
    """Return a detector's state by torchvision's names, copied."""
    state = detector.state_dict()
    return {name.removeprefix("model."): x.clone() for name, x in state.items()}


def images_and_targets() -> tuple[list[Tensor], list[Target]]:
    """Return three small images of different sizes: with objects, with none, and with an object in a crowd."""
    draws = torch.Generator().manual_seed(1)
    images = [
        torch.randn(3, height, width, generator=draws) for height, width in ((64, 60), (40, 64), (50, 40))
    ]
    crowded = target([(5, 5, 35, 30), (0, 0, 40, 50)], [1, 0], [False, True])
    return images, [target([(4, 8, 40, 50), (30, 2, 60, 30)], [0, 1]), target([]), crowded]


@pytest.mark.parametrize(
    ("network", "norm", "steps"),
    [
        ("faster_rcnn_resnet18", "batch", 10),
        ("faster_rcnn_resnet50", "frozen", 2),
        ("retinanet_resnet18", "batch", 10),
    ],
)
def test_steps_lose_what_torchvisions_own_loop_loses(network: str, norm: str, steps: int) -> None:
    detector = build(network, 2, 0, SETTINGS.model_copy(update={"norm": norm})).train()
    reference = plain(network, norm, 2).train()
    reference.load_state_dict(of_torchvision(detector))
    images, targets = images_and_targets()

    for step in range(steps):
        with keyed("cpu", 0, "sampling", step):
            ours, _ = detector.losses(images, targets)
        learned = [
            {"boxes": each.boxes[~each.crowd], "labels": each.labels[~each.crowd] + 1} for each in targets
        ]
        with keyed("cpu", 0, "sampling", step):
            theirs = reference(copy.deepcopy(images), learned)
        assert ours.keys() == theirs.keys()
        for name, loss in theirs.items():
            assert loss.isfinite()
            torch.testing.assert_close(ours[name], loss, rtol=0, atol=0)
        for model, losses in ((detector, ours), (reference, theirs)):
            descend(model, losses)

    for name, x in of_torchvision(detector).items():
        torch.testing.assert_close(x, reference.state_dict()[name], rtol=0, atol=0)


def descend(model: nn.Module, losses: dict[str, Tensor]) -> None:
    """Take one step of plain SGD."""
    model.zero_grad()
    sum(losses.values(), torch.zeros(())).backward()
    with torch.no_grad():
        for x in model.parameters():
            if x.grad is not None:
                x -= 0.005 * x.grad


@pytest.mark.parametrize("network", ["faster_rcnn_resnet18", "retinanet_resnet18"])
def test_detections_are_torchvisions(network: str) -> None:
    settings = SETTINGS.model_copy(update={"lowest_score": 0.0})
    detector = build(network, 2, 0, settings)
    reference = plain(network, "batch", 2).eval()
    reference.load_state_dict(of_torchvision(detector))
    # All sides alike: torchvision's own resizing to this side is none.
    reference.transform.min_size, reference.transform.max_size = (96,), 96
    for part in (reference, getattr(reference, "roi_heads", None)):
        if part is not None:
            part.score_thresh = 0.0
    images = list(torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)))

    found = detector.detect(images)
    with torch.no_grad():
        expected = reference(images)
    for ours, theirs in zip(found, expected, strict=True):
        of_object = theirs["labels"] > 0
        assert of_object.any()
        torch.testing.assert_close(ours.boxes, theirs["boxes"][of_object], rtol=0, atol=0)
        torch.testing.assert_close(ours.scores, theirs["scores"][of_object], rtol=0, atol=0)
        assert torch.equal(ours.labels, theirs["labels"][of_object] - 1)
        assert {*ours.labels.tolist()} <= {0, 1}


def test_detecting_leaves_the_mode_and_the_statistics_as_they_were() -> None:
    detector = build("faster_rcnn_resnet10x0.25", 2, 0, SETTINGS).train()
    before = of_torchvision(detector)
    detector.detect(shapes(2)[0])
    assert all(module.training for module in detector.modules())
    assert all(torch.equal(x, before[name]) for name, x in of_torchvision(detector).items())


@pytest.mark.parametrize("network", ["faster_rcnn_resnet18", "retinanet_resnet50"])
def test_taps_are_what_torchvisions_modules_compute(network: str) -> None:
    detector = build(network, 2, 0, SETTINGS).eval()
    reference = plain(network, "batch", 2).eval()
    reference.load_state_dict(of_torchvision(detector))
    images = [torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(0))]
    body, heard = reference.backbone.body, {}

    def listen(name: str, module: nn.Module) -> None:
        # A copy: the ReLU that follows overwrites what it reads.
        module.register_forward_hook(lambda _module, _inputs, x: heard.update({name: x.clone()}))

    for k in range(1, 5):
        listen(f"stage{k}", body[f"layer{k}"])
        listen(f"stage{k}_block1", body[f"layer{k}"][0])
        last = body[f"layer{k}"][-1]
        last.relu.register_forward_pre_hook(
            lambda _module, inputs, k=k: heard.update({f"stage{k}_pre": inputs[0].clone()})
        )
    with torch.no_grad():
        levels = reference.backbone(images[0][None])
        taps = detector.maps(images, list(detector.strides))

    heard |= {f"fpn{k}": x for k, x in enumerate(levels.values())}
    assert len(heard) == 17
    for name, x in heard.items():
        torch.testing.assert_close(taps[name], x, rtol=0, atol=0, msg=name)
    assert (taps["stage4_pre"] < 0).any()


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_has_its_taps_at_their_strides(network: str) -> None:
    with torch.device("meta"):
        detector = build(network, 3, 0, SETTINGS)
    images = [torch.zeros(3, 70, 96, device="meta"), torch.zeros(3, 64, 33, device="meta")]
    taps = detector.maps(images, list(detector.strides))
    # Each is of the padded batch, 96x96.
    assert {name: tuple(x.shape[-2:]) for name, x in taps.items()} == {
        name: (-(-96 // stride),) * 2 for name, stride in detector.strides.items()
    }


def test_losses_record_what_the_backbone_computes_and_gradients_reach_it() -> None:
    detector = build("faster_rcnn_resnet10x0.25", 2, 0, SETTINGS.model_copy(update={"norm": "group"})).train()
    images, targets = images_and_targets()
    losses, taps = detector.losses(images, targets, ["stage4_pre", "fpn1"])
    alone = detector.maps(images, ["stage4_pre"])
    assert taps.keys() == {"stage4_pre", "fpn1"}
    torch.testing.assert_close(taps["stage4_pre"], alone["stage4_pre"], rtol=0, atol=0)

    taps["stage4_pre"].square().sum().backward()
    assert detector.backbone.body.conv1.weight.grad.abs().sum() > 0
    assert set(detector.losses(images, targets)[1]) == set()  # nothing is left from before
    assert losses


def test_values_over_an_image_are_told_from_those_of_the_padding() -> None:
    detector = build("faster_rcnn_resnet10x0.25", 2, 0, SETTINGS.model_copy(update={"norm": "frozen"})).eval()
    inside = detector.inside([(70, 96), (64, 33)], "stage4")
    assert inside.shape == (2, 1, 3, 3)
    assert inside[0].all()
    assert inside[1, 0].tolist() == [[True, True, False], [True, True, False], [False, False, False]]


@pytest.mark.parametrize("network", ["faster_rcnn_resnet10x0.25", "retinanet_resnet10x0.25"])
def test_a_box_that_its_view_leaves_without_area_teaches_nothing(network: str) -> None:
    draws = torch.Generator().manual_seed(1)
    image, seen = torch.randn(3, 64, 64, generator=draws), (4.0, 8.0, 40.0, 50.0)
    detector = build(network, 1, 0, SETTINGS).train()
    # What rounding leaves of a box of a millionth of a pixel, mirrored.
    found = []
    for boxes in ([seen], [seen, (30.0, 8.0, 30.0, 50.0)]):
        with keyed("cpu", 0), torch.no_grad():
            found.append(detector.losses([image], [target(boxes)])[0])
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_an_unknown_tap_or_network_is_one_line() -> None:
    detector = build("faster_rcnn_resnet10x0.25", 2, 0, SETTINGS)
    images, targets = images_and_targets()
    with pytest.raises(UnknownNameError) as error:
        detector.losses(images, targets, ["stage4_pre", "stage5"])
    one_line(error, "stage5", "stage4")
    with pytest.raises(UnknownNameError) as error:
        build("faster_rcnn_resnet19", 2, 0)
    one_line(error, "faster_rcnn_resnet19", "faster_rcnn_resnet18")


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build("faster_rcnn_resnet10x0.25", 2, 0, SETTINGS)
    torch.manual_seed(2)
    again, other = (build("faster_rcnn_resnet10x0.25", 2, seed, SETTINGS) for seed in (0, 1))
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in first.state_dict().items())
    assert any(not torch.equal(x, other.state_dict()[name]) for name, x in first.state_dict().items())


def test_a_training_that_resumes_equals_one_that_was_never_interrupted() -> None:
    images, targets = shapes(4)

    def train(detector: Detector, steps: range) -> None:
        for step in steps:
            # Few enough are drawn that draws matter.
            with keyed("cpu", 0, "sampling", step):
                losses, _ = detector.losses(images[step % 2 :: 2], targets[step % 2 :: 2])
            descend(detector, losses)

    drawn = SETTINGS.model_copy(update={"sampled_anchors": 16, "sampled_proposals": 8})
    whole, first, resumed = (build("faster_rcnn_resnet10x0.25", 2, 0, drawn).train() for _ in range(3))
    train(whole, range(4))

    train(first, range(2))
    torch.rand(5)  # what another process has drawn before
    resumed.load_state_dict(first.state_dict())
    train(resumed, range(2, 4))
    assert all(torch.equal(x, resumed.state_dict()[name]) for name, x in whole.state_dict().items())

    # The test would notice: other draws train other weights.
    shifted = build("faster_rcnn_resnet10x0.25", 2, 0, drawn).train()
    with keyed("cpu", 0, "other", 0):
        descend(shifted, shifted.losses(images[::2], targets[::2])[0])
    once = build("faster_rcnn_resnet10x0.25", 2, 0, drawn).train()
    train(once, range(1))
    assert any(not torch.equal(x, once.state_dict()[name]) for name, x in shifted.state_dict().items())


def test_keyed_draws_leave_the_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with keyed("cpu", 0, "sampling", 1):
        torch.rand(7)
    assert torch.equal(torch.rand(3), expected)


def test_boxes_are_pooled_at_the_strides_whatever_the_first_batch_was() -> None:
    detector = build("faster_rcnn_resnet10x0.25", 2, 0, SETTINGS).eval()
    other = build("faster_rcnn_resnet10x0.25", 2, 0, SETTINGS).eval()
    # Padding to 64 makes this image's map look as if it was of stride 2.
    other.detect([torch.zeros(3, 33, 33)])
    images = shapes(2)[0]
    for first, second in zip(detector.detect(images), other.detect(images), strict=True):
        assert torch.equal(first.scores, second.scores)


@pytest.mark.parametrize(("norm", "kind"), [("frozen", FrozenBatchNorm2d), ("group", nn.GroupNorm)])
def test_the_normalization_is_the_one_that_is_set(norm: str, kind: type[nn.Module]) -> None:
    detector = build("retinanet_resnet10x0.25", 2, 0, SETTINGS.model_copy(update={"norm": norm}))
    norms = [
        m for m in detector.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm, FrozenBatchNorm2d))
    ]
    assert len(norms) == 12
    assert all(isinstance(each, kind) for each in norms)


def test_loaded_weights_freeze_the_first_stages_and_all_norms_and_drawn_ones_nothing() -> None:
    loaded = build("faster_rcnn_resnet18", 2, 0, SETTINGS, loaded=True)
    frozen = [name for name, x in loaded.backbone.body.named_parameters() if not x.requires_grad]
    assert {name.split(".")[0] for name in frozen} == {"conv1", "layer1"}
    assert any(isinstance(m, FrozenBatchNorm2d) for m in loaded.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in loaded.modules())
    drawn = build("faster_rcnn_resnet18", 2, 0, SETTINGS)
    assert all(x.requires_grad for x in drawn.parameters())


def test_anchors_are_torchvisions_by_default() -> None:
    detector = build("retinanet_resnet10x0.25", 2, 0)
    anchors: AnchorGenerator = detector.model.anchor_generator
    assert anchors.sizes == tuple(
        (x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)
    )
