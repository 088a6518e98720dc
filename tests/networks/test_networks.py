"""The network zoo: the published counts and shapes, and the contract that every family keeps."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pipeline import plugin
from pipeline.distillation.places import before_relu
from pipeline.errors import DamagedArtifactError, ParamsError, ShapeError, UnknownNameError
from pipeline.evaluation import cost
from pipeline.networks import network as networks
from pipeline.networks import pretrained, weights
from pipeline.networks.architecture import architecture
from pipeline.networks.layer import LayerSpec
from pipeline.networks.network import Tap, build, probe
from pipeline.networks.spec import NetworkSpec

# At 100 classes and 3x32x32: parameters, shapes of stem and stages, width of the pooled vector.
# resnet8x0.25 is in no paper; it was counted by hand.
PUBLISHED = {
    "resnet8": (83_892, "16x32x32 16x32x32 32x16x16 64x8x8", 64),
    "resnet20": (278_324, "16x32x32 16x32x32 32x16x16 64x8x8", 64),
    "resnet32": (472_756, "16x32x32 16x32x32 32x16x16 64x8x8", 64),
    "resnet56": (861_620, "16x32x32 16x32x32 32x16x16 64x8x8", 64),
    "resnet110": (1_736_564, "16x32x32 16x32x32 32x16x16 64x8x8", 64),
    "resnet8x4": (1_233_540, "32x32x32 64x32x32 128x16x16 256x8x8", 256),
    "resnet32x4": (7_433_860, "32x32x32 64x32x32 128x16x16 256x8x8", 256),
    "resnet8x0.25": (6_744, "4x32x32 4x32x32 8x16x16 16x8x8", 16),
    "resnet20x0.5": (71_756, "8x32x32 8x32x32 16x16x16 32x8x8", 32),
    "resnet29": (231_540, "16x32x32 32x32x32 64x16x16 128x8x8", 128),
    "resnet83": (656_244, "16x32x32 32x32x32 64x16x16 128x8x8", 128),
    "resnet50_cifar": (23_705_252, "64x32x32 256x32x32 512x16x16 1024x8x8 2048x4x4", 2048),
    "wrn_16_2": (703_284, "16x32x32 32x32x32 64x16x16 128x8x8", 128),
    "wrn_40_2": (2_255_156, "16x32x32 32x32x32 64x16x16 128x8x8", 128),
    "wrn_40_1": (569_780, "16x32x32 16x32x32 32x16x16 64x8x8", 64),
    "vgg8": (3_965_028, "64x32x32 128x16x16 256x8x8 512x4x4 512x4x4", 512),
    "vgg11": (9_277_284, "64x32x32 128x16x16 256x8x8 512x4x4 512x4x4", 512),
    "vgg13": (9_462_180, "64x32x32 128x16x16 256x8x8 512x4x4 512x4x4", 512),
    "mobilenetv2_half": (812_836, "16x16x16 12x16x16 16x8x8 48x4x4 160x2x2", 1280),
    "shufflenetv1": (949_258, "24x32x32 240x16x16 480x8x8 960x4x4", 960),
    "shufflenetv2": (1_355_528, "24x32x32 116x16x16 232x8x8 464x4x4", 1024),
}
# At 1000 classes; output of the last stage at 3x224x224.
IMAGENET = {
    "resnet18": (11_689_512, "512x7x7"),
    "resnet34": (21_797_672, "512x7x7"),
    "resnet50": (25_557_032, "2048x7x7"),
    "resnet152": (60_192_808, "2048x7x7"),
    "mobilenet_v2": (3_504_872, "320x7x7"),
    "mobilenet_v2x0.5": (1_968_680, "160x7x7"),
    "mobilenetv1": (4_231_976, "1024x7x7"),
}
# letKD's table of places: the inner tap, after the first block of the last stage, and the penultimate map.
PLACES = {
    **dict.fromkeys(["resnet20", "resnet32", "resnet56", "resnet110"], ("stage3_block1", "64x8x8", "64x8x8")),
    **dict.fromkeys(["resnet8x4", "resnet32x4"], ("stage3_block1", "256x8x8", "256x8x8")),
    **dict.fromkeys(["wrn_16_2", "wrn_40_2"], ("stage3_block1", "128x8x8", "128x8x8")),
    "wrn_40_1": ("stage3_block1", "64x8x8", "64x8x8"),
    "shufflenetv1": ("stage3_block1", "960x4x4", "960x4x4"),
    "shufflenetv2": ("stage3_block1", "464x4x4", "1024x4x4"),
    "mobilenetv2_half": ("stage4_block1", "80x2x2", "1280x2x2"),
    "resnet50_cifar": ("stage4_block1", "2048x4x4", "2048x4x4"),
}
FAMILY = {
    name: family for family in plugin.names("networks") for name in plugin.load("networks", family).NETWORKS
}
# One of each way of building, the smallest one.
SAMPLES = ["resnet8", "resnet29", "wrn_16_2", "wrn_40_1", "vgg8", "vgg13", "mobilenetv2_half",
           "shufflenetv1", "shufflenetv2", "mobilenetv1", "resnet18", "mobilenet_v2"]  # fmt: skip


def spec(name: str, size: int = 32, channels: int = 3, classes: int = 100, **more: object) -> NetworkSpec:
    family = FAMILY.get(name, "timm")
    return NetworkSpec(family=family, network=name, size=size, channels=channels, classes=classes, **more)


def shapes(name: str, size: int = 32, classes: int = 100) -> tuple[networks.Network, dict[str, str]]:
    with torch.device("meta"):
        built = build(spec(name, size, classes=classes), 0)
        found = probe(built, size, 3)
    return built, {tap: "x".join(map(str, shape)) for tap, shape in found.items()}


def state(name: str, *seed: int, **more: object) -> dict[str, torch.Tensor]:
    return build(spec(name, 8, 1, 10, **more), *seed).state_dict()


def settled(what: NetworkSpec) -> networks.Network:
    """Return a network for inference whose BNs know one batch, so that no signal dies on its way."""
    built = build(what, 0)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        built(torch.randn(16, what.channels, what.size, what.size))
    return built.eval()


class Moved(nn.Module):
    """A layer that can be seen downstream."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(1).abs() + 1)

    def forward(self, x: torch.Tensor, tap: Tap) -> torch.Tensor:
        return tap("inside", self.scale * x) + 1


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the catalogue of layers one named `moved`."""
    real = plugin.load

    def load(catalogue: str, name: str) -> object:
        moved = SimpleNamespace(build=lambda name, channels: Moved())
        return moved if catalogue == "layers" else real(catalogue, name)

    monkeypatch.setattr(plugin, "load", load)


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_names_are_unique_over_families() -> None:
    listed = [n for family in plugin.names("networks") for n in plugin.load("networks", family).NETWORKS]
    assert len(listed) == len(set(listed))
    assert set(PUBLISHED) | set(IMAGENET) <= set(listed)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts_and_shapes(name: str) -> None:
    built, found = shapes(name)
    params, units, pooled = PUBLISHED[name]
    assert cost.num_params(built) == params
    assert [found[unit] for unit in built.units] == units.split()
    assert list(built.units) == ["stem", *(f"stage{k}" for k in range(1, len(built.units)))]
    assert found["pooled"] == str(pooled)
    assert found["final"] == "x".join([str(pooled), *found[list(built.units)[-1]].split("x")[1:]])
    assert found["logits"] == "100"
    if name in PLACES:
        inner, inside, final = PLACES[name]
        assert (found[inner], found["final"]) == (inside, final)


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_counts_and_shapes(name: str) -> None:
    built, found = shapes(name, 224, 1000)
    params, last = IMAGENET[name]
    assert cost.num_params(built) == params
    assert found["stage4"] == last
    assert [int(found[f"stage{k}"].split("x")[1]) for k in range(1, 5)] == [56, 28, 14, 7]


@pytest.mark.parametrize(("size", "side"), [(32, 4), (48, 6), (64, 4), (96, 6)])
def test_vgg_has_its_fourth_pool_from_64_pixels_on(size: int, side: int) -> None:
    assert shapes("vgg8", size)[1]["stage4"] == f"512x{side}x{side}"


@pytest.mark.parametrize("name", FAMILY)
def test_small_gray_images_train(name: str) -> None:
    built = build(spec(name, 8, 1, 10), 0).train()
    taps = built.record(torch.randn(4, 1, 8, 8), None)
    assert taps["logits"].shape == (4, 10)
    taps["logits"].logsumexp(dim=1).sum().backward()
    for parameter in built.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    stages = [unit for unit in built.units if unit != "stem"]
    assert {f"{stage}_block1" for stage in stages} <= taps.keys()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_tap_inserted_anywhere_changes_what_follows_and_nothing_before(name: str) -> None:
    built = settled(spec(name, 32, 3, 10))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = built.record(image, None)
        assert torch.equal(built(image), plain["logits"])
        order = list(plain)
        for place in order:
            tap = Tap(None, {place: Moved()})
            built.run(image, tap)
            assert "inside" in tap.kept
            before = order[: order.index(place)]
            assert all(torch.equal(tap.kept[n], plain[n]) for n in before), place
            assert not torch.allclose(tap.kept["logits"], plain["logits"], rtol=1e-3), place
            assert torch.equal(tap.kept[place], tap.kept["inside"] + 1)


@pytest.mark.parametrize("name", ["resnet8", "resnet29", "vgg13", "shufflenetv1", "mobilenetv1", "resnet18"])
def test_a_stage_is_its_pre_activation_activated(name: str) -> None:
    built = build(spec(name, 16), 0).eval()
    taps = built.record(torch.randn(2, 3, 16, 16), None)
    for unit in built.units:
        assert taps[f"{unit}_pre"].min() < 0
        torch.testing.assert_close(taps[f"{unit}_pre"].relu(), taps[unit], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "blocks", "after"),
    [
        ("wrn_16_2", "units.stage3", True),  # the raw residual sum
        ("shufflenetv2", "units.stage3.first", True),  # after the shuffle
        ("mobilenetv2_half", "units.stage4", True),  # linear
        ("resnet20", "units.stage3", False),  # then the ReLU
        ("shufflenetv1", "units.stage3", False),
    ],
)
def test_the_inner_place_of_letkd(name: str, blocks: str, after: bool) -> None:
    built = settled(spec(name, 32))
    module = built.get_submodule(blocks)
    first = next(iter(module)) if isinstance(module, nn.Sequential) else module
    seen: list[torch.Tensor] = []
    first.register_forward_hook(lambda module, arguments, output: seen.append(output))
    taps = built.record(torch.randn(2, 3, 32, 32), None)
    place = taps["stage4_block1" if "stage4" in blocks else "stage3_block1"]
    torch.testing.assert_close(place, seen[0] if after else seen[0].relu(), rtol=0, atol=0)
    assert (place.min() < 0) == (name in ("wrn_16_2", "mobilenetv2_half"))


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet20", "units.stage3.2.conv1.0"),  # the first convolution of a basic block
        ("resnet8", "units.stage3.0.conv1.0"),  # one block is the first and the last
        ("resnet29", "units.stage3.2.conv2.0"),  # the 3x3 of a bottleneck
        ("resnet50_cifar", "units.stage4.2.conv2.0"),
        ("resnet18", "units.stage4.1.conv1"),
        ("resnet50", "units.stage4.2.conv2"),
    ],
)
def test_the_last_3x3_convolution_is_a_tap_before_its_bn(name: str, last: str) -> None:
    built = settled(spec(name, 32))
    seen: list[torch.Tensor] = []
    convolution = built.get_submodule(last)
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.kernel_size == (3, 3)
    convolution.register_forward_hook(lambda module, arguments, output: seen.append(output))
    taps = built.record(torch.randn(2, 3, 32, 32), None)
    unit = last.split(".")[1]
    torch.testing.assert_close(taps[f"{unit}_conv"], seen[0], rtol=0, atol=0)
    assert taps[f"{unit}_conv"].min() < 0
    assert {f"stage{k}_conv" for k in range(1, len(built.units))} <= taps.keys()


def test_pre_activations_of_other_kinds() -> None:
    image = torch.randn(2, 3, 16, 16)
    wide = build(spec("wrn_16_2", 16), 0).train()
    taps = wide.record(image, None)
    assert taps["stage3"].min() < 0
    torch.testing.assert_close(taps["stage3_pre"].relu(), taps["final"], rtol=0, atol=0)
    first = wide.units["stage2"][0].bn1  # type: ignore[index]
    torch.testing.assert_close(first(taps["stage1"]), taps["stage1_pre"])
    shuffled = build(spec("shufflenetv2", 16), 0).record(image, None)
    left, right = shuffled["stage2_pre"].chunk(2, dim=1)
    interleaved = torch.stack([left, right.relu()], dim=2).flatten(1, 2)
    torch.testing.assert_close(interleaved, shuffled["stage2"], rtol=0, atol=0)
    mobile = build(spec("mobilenetv2_half", 16), 0).record(image, None)
    assert mobile["stage4"].min() < 0
    assert "stage4_pre" not in mobile
    torch.testing.assert_close(mobile["final_pre"].relu(), mobile["final"], rtol=0, atol=0)


# The BNs whose margins OFD's authors and mdistiller read, by network; ShuffleNetV1's block is a ResNet's.
BEFORE_RELU = {
    "resnet8": [f"units.stage{k}.0.conv2.1" for k in (1, 2, 3)],
    "resnet20": [f"units.stage{k}.2.conv2.1" for k in (1, 2, 3)],
    "resnet29": [f"units.stage{k}.2.conv3.1" for k in (1, 2, 3)],
    "resnet50_cifar": [f"units.stage{k}.{n}.conv3.1" for k, n in ((1, 2), (2, 3), (3, 5), (4, 2))],
    "wrn_16_2": ["units.stage2.0.bn1", "units.stage3.0.bn1", "tail.0"],
    "vgg8": [f"units.stage{k}.0.2" for k in (1, 2, 3)] + ["units.stage4.0.1"],
    "vgg13": [f"units.stage{k}.1.1" for k in (1, 2, 3, 4)],
    "mobilenetv1": [f"units.stage{k}.{n}.4" for k, n in ((1, 2), (2, 1), (3, 5), (4, 1))],
    "mobilenetv2_half": [f"units.stage{k}.{n}.body.7" for k, n in ((1, 2), (2, 2), (3, 6), (4, 3))],
    "shufflenetv1": [f"units.stage{k}.{n}.conv3.1" for k, n in ((1, 3), (2, 7), (3, 3))],
    "shufflenetv2": [],
    "resnet18": [f"units.stage{k}.1.bn2" for k in (1, 2, 3, 4)],
    "resnet50": [f"units.stage{k}.{n}.bn3" for k, n in ((1, 2), (2, 3), (3, 5), (4, 2))],
    "mobilenet_v2": [f"units.stage{k}.{n}.conv.3" for k, n in ((1, 2), (2, 2), (3, 6), (4, 3))],
}


@pytest.mark.parametrize("name", BEFORE_RELU)
def test_the_bn_before_a_stage_s_relu_is_the_last_one_of_its_branch(name: str) -> None:
    with torch.device("meta"):
        built = build(spec(name), 0)
    norms = built.norms()
    assert [norm for tap, norm in norms.items() if tap.startswith("stage")] == [
        built.get_submodule(path) for path in BEFORE_RELU[name]
    ]


@pytest.mark.parametrize("name", FAMILY)
def test_every_stage_s_bn_has_the_channels_of_the_tap_behind_it(name: str) -> None:
    known = architecture(spec(name))
    with torch.device("meta"):
        norms = build(spec(name), 0).norms()
    assert known.norms == tuple(norms)
    assert known.averages
    for tap, norm in norms.items():
        assert known.taps[tap][0] == norm.num_features, tap
    staged = {tap for tap in norms if tap.startswith("stage")}
    assert staged == (set() if name == "shufflenetv2" else set(before_relu(known)))


@pytest.mark.parametrize("name", [*SAMPLES, "resnet50"])
def test_what_a_bn_adds_is_what_its_tap_has_more(name: str) -> None:
    built = build(spec(name, 16), 0).double().eval()
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        for tap, norm in built.norms().items():
            before, more = built.record(image, [tap])[tap], torch.randn(norm.num_features).double()
            norm.bias += more
            moved = built.record(image, [tap])[tap] - before
            norm.bias -= more
            torch.testing.assert_close(moved, more.view(-1, 1, 1).expand(moved.shape), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_rest_has_the_main_branch_s_final_map_and_fresh_parameters(name: str) -> None:
    built = build(spec(name, 32, 3, 10), 0).train()
    taps = built.record(torch.randn(2, 3, 32, 32) + 1, None)  # moves BN's statistics
    main = built.state_dict()
    with pytest.raises(UnknownNameError, match="unit to attach"):
        built.rest(list(built.units)[-1])
    for after in list(built.units)[:-1]:
        rest = built.rest(after).eval()
        heads = rest.record(taps[after], ["final", "logits"])
        assert heads["final"].shape == taps["final"].shape
        assert heads["logits"].shape == taps["logits"].shape
        for key, x in rest.state_dict().items():
            assert x.shape == main[key].shape
            if key.endswith("running_mean"):
                assert not x.any()
            elif x.ndim > 1:
                assert not torch.equal(x, main[key])
        weight = max((m.weight for m in rest.modules() if isinstance(m, nn.Conv2d)), key=torch.numel)
        key = next(key for key, x in rest.state_dict().items() if x.shape == weight.shape)
        assert weight.std().item() == pytest.approx(main[key].std().item(), rel=0.1)


@pytest.mark.parametrize("name", ["resnet56", "wrn_16_2", "vgg8", "mobilenetv2_half", "resnet18"])
def test_convolutions_start_kaiming_normal_by_fan_out(name: str) -> None:
    built = build(spec(name), 0)
    checked = 0
    for module in built.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            area, weight = module.kernel_size[0] ** 2, module.weight
            expected = math.sqrt(2 / (area * module.out_channels))
            assert weight.std().item() == pytest.approx(expected, rel=0.03)
            # A normal has kurtosis 3, a uniform 1.8.
            assert ((weight / expected) ** 4).mean().item() == pytest.approx(3, rel=0.15)
            assert module.bias is None or not module.bias.any()
            checked += 1
    assert checked
    if name in ("vgg8", "mobilenetv2_half"):
        assert built.classifier.weight.std().item() == pytest.approx(0.01, rel=0.03)


def test_shufflenets_keep_torch_s_default() -> None:
    weight = build(spec("shufflenetv2"), 0).tail[0].weight  # type: ignore[index]
    assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * 464), rel=0.03)
    assert weight.abs().max() <= 1 / math.sqrt(464)


@pytest.mark.parametrize("name", ["resnet8", "shufflenetv2", "resnet18"])
def test_parameters_depend_on_the_seed_alone(name: str) -> None:
    first = state(name, 3)
    torch.rand(5)
    again, other = state(name, 3), state(name, 4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


@pytest.mark.usefixtures("layers")
def test_an_inserted_layer_leaves_the_rest_s_start_alone() -> None:
    plain = state("resnet8", 3)
    moved = LayerSpec.of("moved")
    with_layer = state("resnet8", 3, inserted={"stage3_block1": moved, "final": moved})
    assert all(torch.equal(plain[key], with_layer[key]) for key in plain)
    scales = [with_layer[f"inserted.{tap}.scale"] for tap in ("stage3_block1", "final")]
    assert len(with_layer) == len(plain) + 2
    assert not torch.equal(*scales)
    with pytest.raises(UnknownNameError, match=r"Unknown tap 'stage5'\. Did you mean"):
        state("resnet8", 3, inserted={"stage5": moved})


@pytest.mark.usefixtures("layers")
def test_a_saved_network_comes_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    what = spec("shufflenetv2", 16, 1, 10, inserted={"stage3": LayerSpec.of("moved")})
    built = build(what, 1)
    built.record(torch.randn(4, 1, 16, 16), ["pooled"])  # moves BN's statistics
    weights.save_spec(what, tmp_path)
    weights.save_weights(built, tmp_path / "last.safetensors")
    again, found = weights.load(tmp_path)
    image = torch.randn(2, 1, 16, 16)
    assert found == what
    assert not again.training
    assert torch.equal(again(image), built.eval()(image))
    weights.save_weights(build(spec("resnet8"), 0), tmp_path / "last.safetensors")
    with pytest.raises(DamagedArtifactError, match="does not hold this network's weights"):
        weights.load(tmp_path)


def test_a_wider_classifier_does_not_widen_the_rest() -> None:
    built = build(spec("resnet8", 16, classifier_width=256), 0)
    assert built.classifier.in_features == 256
    assert built.rest("stage2").classifier.in_features == 64


def test_names_and_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(UnknownNameError, match=r"'resnet21'\. Did you mean .* Known: resnet110, resnet14,"):
        build(NetworkSpec(family="resnet", network="resnet21", size=8, channels=1, classes=10), 0)
    built = build(spec("resnet8", 8), 0)
    with pytest.raises(UnknownNameError, match=r"Unknown tap 'stage4'\..* Known: final, logits"):
        built.record(torch.zeros(1, 3, 8, 8), ["stage4"])
    with pytest.raises(ShapeError, match="cannot read 3x4x4 images"):
        probe(build(spec("vgg8", 4), 0), 4, 3)


@pytest.mark.parametrize(
    ("failing", "part"),
    [
        (lambda x: x[:, :, :0], r"'final' would be of shape \(64, 0, 2\)"),
        (lambda x: x.view(1, 7), r"shape '\[1, 7\]' is invalid"),
    ],
)
def test_a_map_without_pixels_is_no_map(failing: Callable[[Tensor], Tensor], part: str) -> None:
    built = build(spec("resnet8", 8), 0)
    built.tail = networks.Unit(Applied(failing))
    with pytest.raises(
        ShapeError, match=f"cannot read 3x8x8 images: .*{part}.* Choose another network, or images"
    ):
        probe(built, 8, 3)


def test_a_mistake_of_a_family_s_own_is_no_user_s() -> None:
    built = build(spec("resnet8", 8), 0)
    built.units["stem"].append(Applied(lambda x: x["nothing"]))  # type: ignore[operator]
    with pytest.raises(IndexError):
        probe(built, 8, 3)


def test_a_network_can_be_exported() -> None:
    built = build(spec("resnet8", 8, 1, 10), 0).eval()
    image = torch.randn(2, 1, 8, 8)
    exported = torch.export.export(built, (image,)).module()
    torch.testing.assert_close(exported(image), built(image))


@pytest.mark.parametrize("family", ["resnet", "wrn", "vgg", "mobilenetv2", "shufflenetv1", "mobilenetv1"])
def test_weights_that_do_not_exist_are_refused(family: str) -> None:
    name = next(iter(plugin.load("networks", family).NETWORKS))
    with pytest.raises(ParamsError, match="no 'imagenet' weights"):
        build(spec(name, weights="imagenet"), 0)


def test_weights_of_a_width_that_has_none_are_refused_before_and_when_it_is_built() -> None:
    family = "torchvision_mobilenetv2"
    text = "Network 'mobilenet_v2x0.5' has no 'imagenet' weights. Set weights: none."
    with pytest.raises(ParamsError, match=re.escape(text)):
        pretrained.check(family, "mobilenet_v2x0.5", "imagenet", 3)
    with pytest.raises(ParamsError, match=re.escape(text)):
        build(spec("mobilenet_v2x0.5", weights="imagenet"), 0)
    pretrained.check(family, "mobilenet_v2x0.5", "none", 3)
    pretrained.check(family, "mobilenet_v2", "imagenet", 3)
