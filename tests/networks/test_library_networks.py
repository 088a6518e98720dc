"""Networks of other libraries: their own weights, their own outputs, and limits that are told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from error_fixtures import one_line
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from pipeline.errors import MachineError, ParamsError, ShapeError, UnknownNameError
from pipeline.networks.architecture import architecture
from pipeline.networks.network import Tap, build
from pipeline.networks.spec import NetworkSpec


class Doubled(nn.Module):
    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        return 2 * x


def spec(family: str, name: str, channels: int = 3, classes: int = 10, weights: str = "none") -> NetworkSpec:
    return NetworkSpec(family=family, network=name, size=64, channels=channels, classes=classes,
                       weights=weights)  # fmt: skip


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("torchvision_resnet", "resnet18"),
        ("torchvision_resnet", "resnet50"),
        ("torchvision_resnet", "resnet152"),
        ("torchvision_mobilenetv2", "mobilenet_v2"),
    ],
)
def test_torchvision_weights_give_torchvision_s_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, name: str
) -> None:
    model = torchvision.models.get_model(name).eval()
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.bias.normal_(std=0.1)
    (tmp_path / "checkpoints").mkdir()
    torch.save(model.state_dict(), tmp_path / "checkpoints/model.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(WeightsEnum, "url", property(lambda self: "https://weights.example/model.pth"))
    image = torch.randn(2, 3, 64, 64)
    same = build(spec(family, name, classes=1000, weights="imagenet"), 0).eval()
    with torch.no_grad():
        torch.testing.assert_close(same(image), model(image), rtol=1e-4, atol=1e-4)
    other = build(spec(family, name, weights="imagenet"), 0)
    assert torch.equal(next(other.parameters()), next(model.parameters()))
    assert other.classifier.out_features == 10
    with pytest.raises(ParamsError, match="read 3 channels, the images have 1"):
        build(spec(family, name, channels=1, weights="imagenet"), 0)


def test_mobilenet_of_half_width_is_torchvision_s_of_width_mult_one_half() -> None:
    """It has no ImageNet weights, so torchvision's own first ones are filled in module by module."""
    for classes in (10, 1000):
        model = torchvision.models.mobilenet_v2(width_mult=0.5, num_classes=classes).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.bias.data.normal_(std=0.1)
        built = build(spec("torchvision_mobilenetv2", "mobilenet_v2x0.5", classes=classes), 0).eval()

        # Both list their modules in the order in which the image passes them.
        own, theirs = built.state_dict(), model.state_dict()
        assert [x.shape for x in own.values()] == [x.shape for x in theirs.values()]
        built.load_state_dict(dict(zip(own, theirs.values(), strict=True)))
        image = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(built(image), model(image))
    assert built.classifier.in_features == 1280


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_b0", "vit_tiny_patch16_224", "xcit_nano_12_p16_224"]
)
def test_timm_models_give_timm_s_outputs(name: str) -> None:
    timm = pytest.importorskip("timm")
    built = build(spec("timm", name), 0).eval()
    size = {"img_size": 64} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    model = timm.create_model(name, num_classes=10, **size).eval()
    head = timm.get_pretrained_cfg(name).classifier
    model.load_state_dict(
        {key.replace("classifier", head).removeprefix("model."): x for key, x in built.state_dict().items()}
    )
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        taps = built.record(image, None)
        torch.testing.assert_close(taps["logits"], model(image))
        last = model.forward_intermediates(image, norm=name.startswith("vit"), indices=1)[1][-1]
    assert {"stage1", "stage2", "stage3", "stage4", "final", "pooled"} <= taps.keys()
    known = architecture(spec("timm", name))
    assert not known.norms
    averages = torch.equal(taps["pooled"], taps["final"].mean(dim=(2, 3)))
    assert known.averages == built.averages() == averages == (name in ("resnet18", "efficientnet_b0"))
    assert all(taps[f"stage{k}"].ndim == 4 for k in range(1, 5))
    if name.startswith("vit"):
        torch.testing.assert_close(taps["final"], last)
    else:
        torch.testing.assert_close(taps["stage4"], last)


@pytest.mark.parametrize(
    ("name", "size", "part"),
    [
        ("maxvit_nano_rw_256", 100, "height"),  # an assertion
        ("mvitv2_tiny", 100, "out of bounds"),  # an index
        ("maxvit_nano_rw_256", 8, "zero"),  # a division
        ("efficientvit_m0", 8, "zero"),
        ("vit_tiny_patch16_224", 8, "cannot read 3x8x8 images: Calculated padded input size"),
        ("coat_mini", 32, "has several last maps. Choose another one"),
        ("nest_tiny", 8, "cannot be built for 3x8x8 images"),
    ],
)
def test_images_that_a_timm_model_does_not_take_are_one_line(name: str, size: int, part: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises((ShapeError, ParamsError), match=part) as error:
        architecture(spec("timm", name).model_copy(update={"size": size}))
    assert len(one_line(error)) < 400


def test_timm_s_limits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    built = build(spec("timm", "resnet18", channels=1), 0)
    image = torch.zeros(2, 1, 64, 64)
    with pytest.raises(ParamsError, match="no auxiliary heads"):
        built.rest("stage1")
    with pytest.raises(ParamsError, match="takes no layer at 'stage1'"):
        built.run(image, Tap((), {"stage1": Doubled()}))
    built.run(image, Tap((), {"pooled": Doubled()}))
    for name, error, message in (
        ("resnet_18", UnknownNameError, r"Unknown timm model 'resnet_18'\. Did you mean 'resnet18'\?"),
        ("resnet18.bogus", ParamsError, "cannot be built"),
        ("levit_128s", ParamsError, "does not end in one linear classifier"),
    ):
        with pytest.raises(error, match=message):
            build(spec("timm", name), 0)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MachineError, match=r"pip install -e '\.\[timm\]'"):
        build(spec("timm", "resnet18"), 0)


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_tiny_patch16_224", 48), ("vit_small_patch14_reg4_dinov2", 28), ("vit_small_patch16_dinov3", 32)],
)
def test_the_maps_of_a_transformer_have_no_class_or_register_tokens(name: str, size: int) -> None:
    timm = pytest.importorskip("timm")
    network = build(NetworkSpec(family="timm", network=name, size=size, channels=3, classes=10), 0).eval()
    model, image = network.model, torch.randn(2, 3, size, size)
    assert isinstance(model, timm.models.VisionTransformer | timm.models.Eva)
    taps = network.record(image, None)
    tokens = model.forward_features(image)
    height, width = taps["final"].shape[2:]
    prefix = tokens.shape[1] - height * width
    assert prefix == model.num_prefix_tokens > 0
    for row in range(height):
        for column in range(width):
            torch.testing.assert_close(
                taps["final"][:, :, row, column], tokens[:, prefix + row * width + column]
            )
    assert taps["stage4"].shape == taps["stage1"].shape == taps["final"].shape


def test_two_classifiers_are_one_that_reads_both_tokens() -> None:
    timm = pytest.importorskip("timm")
    name, image = "deit_tiny_distilled_patch16_224", torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10, img_size=32).eval()
    ours = build(NetworkSpec(family="timm", network=name, size=32, channels=3, classes=10), 0).eval()
    # Its own tensors are copied; the two classifiers become one.
    state = {f"model.{key}": x for key, x in theirs.state_dict().items() if not key.startswith("head")}
    state["classifier.weight"] = torch.cat([theirs.head.weight, theirs.head_dist.weight], dim=1) / 2
    state["classifier.bias"] = (theirs.head.bias + theirs.head_dist.bias) / 2
    ours.load_state_dict(state)
    torch.testing.assert_close(ours(image), theirs(image), atol=1e-5, rtol=1e-5)
    assert ours.record(image, ["pooled"])["pooled"].shape == (2, 384)


def test_a_classifier_of_one_pixel_is_linear() -> None:
    timm = pytest.importorskip("timm")
    image = torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    theirs = timm.create_model("dla46x_c", num_classes=10).eval()
    ours = build(NetworkSpec(family="timm", network="dla46x_c", size=64, channels=3, classes=10), 0).eval()
    assert isinstance(theirs.fc, torch.nn.Conv2d)
    state = {f"model.{key}": x for key, x in theirs.state_dict().items() if not key.startswith("fc.")}
    ours.load_state_dict(
        state | {"classifier.weight": theirs.fc.weight.flatten(1), "classifier.bias": theirs.fc.bias}
    )
    torch.testing.assert_close(ours(image), theirs(image), atol=1e-5, rtol=1e-5)
    # timm reads a classifier of another form, so it is not told that ours is its own.
    assert "fc.weight" not in ours.library_names


def test_a_transformer_that_hands_on_its_class_token_alone_has_its_last_map() -> None:
    pytest.importorskip("timm")
    network = build(
        NetworkSpec(family="timm", network="pit_ti_224", size=64, channels=3, classes=10), 0
    ).eval()
    taps = network.record(torch.randn(2, 3, 64, 64), None)
    last = [name for name in taps if name.startswith("stage")][-1]
    assert torch.equal(taps["final"], taps[last])
    assert taps["pooled"].shape == (2, network.classifier.in_features)
    assert not network.averages()
