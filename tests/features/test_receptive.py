"""Receptive fields: the closed form of stacked convolutions, and what a changed pixel changes in the live network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline import plugin, seeding
from pipeline.features.encoding import Feature
from pipeline.features.receptive import Spans, receptive_fields
from pipeline.networks.network import Network, Unit, build, probe
from pipeline.networks.spec import NetworkSpec

Layers = list[tuple[int, int, int]]  # kernel, stride, padding

RESNET8 = {  # the shortcuts see less than what they go around
    "stem": [(3, 1, 1)],
    "stage1": [(3, 1, 1)] * 3,
    "stage2": [(3, 1, 1)] * 3 + [(3, 2, 1), (3, 1, 1)],
    "stage3": [(3, 1, 1)] * 3 + [(3, 2, 1), (3, 1, 1)] * 2,
}


def closed_form(layers: Layers, size: int) -> Spans:
    """Follow every place of the last map back through the layers; the image ends what would lie outside."""
    length = size
    for kernel, stride, padding in layers:
        length = (length + 2 * padding - kernel) // stride + 1
    found = []
    for place in range(length):
        first = last = place
        for kernel, stride, padding in reversed(layers):
            first, last = first * stride - padding, last * stride - padding + kernel - 1
        found.append((max(0, first), min(size - 1, last)))
    return found


def stack(layers: Layers) -> Network:
    """Build plain convolutions in a row, each with a bias, a norm and a ReLU."""
    modules: list[nn.Module] = []
    for number, (kernel, stride, padding) in enumerate(layers):
        modules += [nn.Conv2d(4 if number else 2, 4, kernel, stride, padding), nn.BatchNorm2d(4), nn.ReLU()]
    with seeding.scope("stack"):
        return Network({"stem": Unit(*modules)}, 4, 3).eval()


def resnet8(size: int = 32) -> Network:
    return build(NetworkSpec(family="resnet", network="resnet8", size=size, channels=3, classes=10), 0).eval()


@pytest.mark.parametrize(
    "layers",
    [
        [(3, 1, 1)],
        [(1, 1, 0), (5, 1, 2)],
        [(3, 2, 1), (3, 1, 1), (2, 2, 0)],
        [(7, 2, 3), (3, 2, 0)],
        [(1, 3, 0)],
    ],
    ids=str,
)
def test_a_stack_has_the_fields_of_the_closed_form(layers: Layers) -> None:
    (field,) = receptive_fields(stack(layers), ["stem"], 23, 2).values()
    assert field.rows == field.columns == closed_form(layers, 23)


def test_rows_and_columns_are_not_taken_for_each_other() -> None:
    network = stack([(3, 1, 1)])
    flat = nn.Conv2d(4, 4, (5, 1), padding=(2, 0))
    network.units["stage1"] = Unit(flat)
    field = receptive_fields(network, ["stage1"], 12, 2)["stage1"]
    assert field.rows == closed_form([(3, 1, 1), (5, 1, 2)], 12)
    assert field.columns == closed_form([(3, 1, 1)], 12)


def test_resnet8_at_32_pixels() -> None:
    found = receptive_fields(resnet8(), [*RESNET8, "stage3_pre", "final"], 32, 3)
    for tap, layers in RESNET8.items():
        assert found[tap].rows == found[tap].columns == closed_form(layers, 32)
    assert found["final"] == found["stage3_pre"] == found["stage3"]
    assert found["stage2"].rows[8] == (
        10,
        22,
    )  # four convolutions see 4 pixels on either side, the fifth 2 more


def test_encodings_see_what_all_their_places_see() -> None:
    found = receptive_fields(resnet8(), ["stage2", "stage2:halved", "stage2:attention"], 32, 3)
    whole, halved = found["stage2"].rows, found["stage2:halved"].rows
    assert halved == [(whole[2 * row][0], whole[2 * row + 1][1]) for row in range(8)]
    assert found["stage2:attention"] == found["stage2"]


def test_what_is_no_map_has_no_field() -> None:
    found = receptive_fields(resnet8(16), ["logits", "pooled", "stage3:pooled", "stem"], 16, 3)
    assert list(found) == ["stem"]


def test_the_network_is_left_as_it_is() -> None:
    network = resnet8(16).train()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    receptive_fields(network, ["stage1"], 16, 3)
    assert network.training
    assert all(x.requires_grad for x in network.parameters())
    for name, x in network.state_dict().items():
        assert torch.equal(x, before[name])
        assert x.dtype == before[name].dtype


def test_weights_and_what_they_switch_off_change_nothing() -> None:
    network = resnet8(16)
    expected = receptive_fields(network, ["stage2"], 16, 3)
    with torch.no_grad():
        for x in network.parameters():
            x.mul_(-1000)  # every ReLU that was on is off
    assert receptive_fields(network, ["stage2"], 16, 3) == expected


SMALL = {
    "mobilenetv1": "mobilenetv1",
    "imported": "torchvision.models:resnet18",
    "mobilenetv2": "mobilenetv2_half",
    "resnet": "resnet8",
    "resnet_pad": "resnet20_pad",
    "shufflenetv1": "shufflenetv1",
    "shufflenetv2": "shufflenetv2",
    "timm": "convnext_atto",
    "torchvision_mobilenetv2": "mobilenet_v2",
    "torchvision_resnet": "resnet18",
    "vgg": "vgg8",
    "wrn": "wrn_16_1",
}


def test_every_family_is_tried() -> None:
    assert sorted(SMALL) == sorted(plugin.names("networks"))


@pytest.mark.parametrize("family", SMALL)
def test_a_pixel_that_changes_a_place_is_in_its_field(family: str) -> None:
    size = 32
    spec = NetworkSpec(family=family, network=SMALL[family], size=size, channels=3, classes=10)
    network = build(spec, 0).double().eval()
    taps = [name for name, shape in probe_shapes(network, size).items() if 3 <= shape[1] <= 16][:3]
    fields = receptive_fields(network, taps, size, 3)
    draw = seeding.generator("pixels", family)
    image = torch.randn(1, 3, size, size, generator=draw, dtype=torch.float64)
    pixels = [(0, 0), (13, 6), (16, 31), (31, 18)]
    changed = image.repeat(len(pixels), 1, 1, 1)
    for number, (row, column) in enumerate(pixels):
        changed[number, :, row, column] += 3
    with torch.no_grad():
        before, after = (network.record(x, taps) for x in (image, changed))
    some = 0
    for tap in taps:
        differs = (before[tap] - after[tap]).abs().amax(dim=1) > 1e-12  # rounding of sums in another order
        for number, row, column in torch.nonzero(differs).tolist():
            pixel, field = pixels[number], fields[tap]
            assert field.rows[row][0] <= pixel[0] <= field.rows[row][1]
            assert field.columns[column][0] <= pixel[1] <= field.columns[column][1]
            some += 1
    assert some > 0


def probe_shapes(network: Network, size: int) -> dict[str, tuple[int, ...]]:
    shapes = probe(network.float(), size, 3)
    network.double()
    return {name: shape for name, shape in shapes.items() if len(shape) == 3}


def test_nearly_every_pixel_of_a_field_changes_its_place() -> None:
    """The field is no wider than what the live network shows: over several images, it is exactly that."""
    network, size = resnet8(12).double(), 12
    field = receptive_fields(network, ["stage2:halved"], size, 3)["stage2:halved"]
    feature = Feature.parse("stage2:halved")
    draw, seen = seeding.generator("pixels"), torch.zeros(3, 3, size, size, dtype=torch.bool)
    for _ in range(3):
        image = torch.randn(1, 3, size, size, generator=draw, dtype=torch.float64)
        for row in range(size):
            for column in range(size):
                changed = image.clone()
                changed[:, :, row, column] += 3
                with torch.no_grad():
                    one, other = (
                        feature.encode(network.record(x, ["stage2"])["stage2"]) for x in (image, changed)
                    )
                seen[:, :, row, column] |= (one != other).any(dim=1)[0]
    for row in range(3):
        rows = torch.nonzero(seen[row].any(dim=0).any(dim=1)).flatten()
        columns = torch.nonzero(seen[:, row].any(dim=0).any(dim=0)).flatten()
        assert field.rows[row] == (int(rows[0]), int(rows[-1]))
        assert field.columns[row] == (int(columns[0]), int(columns[-1]))
