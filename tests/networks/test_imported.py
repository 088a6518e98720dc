"""Networks by import path: what they give at each place, what is hashed of them, and what is refused."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from error_fixtures import one_line
from params_fixtures import refused
from torchvision.models import VisionTransformer
from training_fixtures import PARAMS, changed

from pipeline.artifacts import closure
from pipeline.errors import MachineError, ParamsError, StaleArtifactError, StillhouseError
from pipeline.networks import own_weights
from pipeline.networks.architecture import architecture
from pipeline.networks.catalogue import family_of
from pipeline.networks.families import imported
from pipeline.networks.network import Network, build
from pipeline.networks.spec import NetworkSpec
from pipeline.params.teacher import TrainBlock
from pipeline.params.weights import WeightsFile
from pipeline.runs.blocks import blocks
from pipeline.runs.check import project

NETS = '''"""Networks of a user's."""
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer


class Block(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 3, stride, 1)
        self.bn = nn.BatchNorm2d(width)
        self.skip = nn.Conv2d(inputs, width, 1, stride)

    def forward(self, x):
        y = self.bn(self.conv(x))
        y += self.skip(x)
        return F.relu(y, inplace=True)


class Net(nn.Module):
    def __init__(self, num_classes, channels=1):
        super().__init__()
        self.layer1 = Block(channels, 8, 1)
        self.layer2 = nn.Sequential(Block(8, 12, 2), Block(12, 12, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))

    def forward(self, x):
        return self.head(self.pool(self.layer2(self.layer1(x))))


def net(num_classes, channels):
    return Net(num_classes, channels)


def tall(num_classes, channels, size):
    return VisionTransformer(size, 4, 4, 2, 16, 32, num_classes=num_classes)


def many(**kwargs):
    return Net(kwargs["num_classes"])


def thousand():
    return Net(1000)


def flat(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


def scaled(num_classes):
    class Scaled(Net):
        def forward(self, x):
            return super().forward(x) * 2
    return Scaled(num_classes)


def convolved(num_classes):
    return nn.Sequential(nn.Conv2d(1, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def paired(num_classes):
    class Paired(Net):
        def forward(self, x):
            return super().forward(x), x
    return Paired(num_classes)


def aided(num_classes):
    class Aided(Net):
        def forward(self, x):
            y = super().forward(x)
            return (y, x) if self.training else y
    return Aided(num_classes)


def averaged(num_classes):
    class Averaged(Net):
        def forward(self, x):
            x = self.pool(self.layer2(self.layer1(x))).flatten(1)
            return self.head[1](x) + self.head[1](-x)
    return Averaged(num_classes)


def doubled(num_classes):
    class Doubled(Net):
        def forward(self, x):
            return super().forward(torch.cat([x, x]) if self.training else x)
    return Doubled(num_classes)


def failing(num_classes):
    class Failing(Net):
        def forward(self, x):
            if self.training:
                raise KeyError("targets")
            return super().forward(x)
    return Failing(num_classes)


def wrapped(num_classes):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Net(num_classes)

        def forward(self, x):
            return self.backbone(x)
    return Wrapped()


def broken(num_classes):
    raise RuntimeError("no\\nsuch thing")


number = 3


def other():
    return 3
'''


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module of networks that lies outside of the project."""
    name = f"nets_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def spec_of(name: str, size: int = 8, channels: int = 1, classes: int = 10, **update: Any) -> NetworkSpec:
    return NetworkSpec(
        family="imported", network=name, size=size, channels=channels, classes=classes, **update
    )


def inner(network: Network) -> Any:
    return network.model


def test_an_import_path_is_a_network() -> None:
    assert family_of("pipeline.own.nets:build") == ("imported", "pipeline.own.nets:build")


def test_every_place_gives_what_the_module_computes(nets: str) -> None:
    network = build(spec_of(f"{nets}:net"), 0).eval()
    image = torch.randn(3, 1, 8, 8)
    taps = network.record(image, None)
    block = inner(network).layer1

    # Computed again without in-place operations.
    conv = block.conv(image)
    bn, skip = block.bn(conv), block.skip(image)
    expected = {"layer1.conv": conv, "layer1.bn": bn, "layer1.skip": skip, "layer1": F.relu(bn + skip)}
    for name, x in expected.items():
        torch.testing.assert_close(taps[name], x)
    torch.testing.assert_close(taps["stage1"], expected["layer1"])
    torch.testing.assert_close(taps["final"], taps["layer2.1"])
    torch.testing.assert_close(taps["stage2"], taps["layer2"])
    torch.testing.assert_close(taps["pooled"], taps["final"].mean(dim=(2, 3)))
    torch.testing.assert_close(taps["logits"], network.classifier(taps["pooled"]))
    torch.testing.assert_close(network(image), taps["logits"])
    # From input to output.
    order = [*taps]
    assert (
        order.index("layer1.conv") < order.index("layer1.bn") < order.index("stage1") < order.index("final")
    )


def test_an_architecture_needs_no_weights(nets: str) -> None:
    known = architecture(spec_of(f"{nets}:net"))
    assert known.taps["stage1"] == (8, 8, 8)
    assert known.taps["final"] == (12, 4, 4)
    assert known.stages == ("stage1", "stage2")
    assert known.resolved("last") == "stage2"
    assert known.averages
    assert not architecture(spec_of(f"{nets}:tall", channels=3)).averages


def test_what_is_recorded_teaches_and_learns(nets: str) -> None:
    network = build(spec_of(f"{nets}:net"), 0)
    taps = network.record(torch.randn(4, 1, 8, 8), ("layer1.bn", "stage1", "logits"))
    assert set(taps) == {"layer1.bn", "stage1", "logits"}
    (taps["layer1.bn"].pow(2).mean() + taps["stage1"].mean() + taps["logits"].pow(2).mean()).backward()
    assert all(x.grad is not None for x in network.parameters())


def test_seeds_copies_and_fresh_networks(nets: str) -> None:
    spec, image = spec_of(f"{nets}:net"), torch.randn(2, 1, 8, 8)
    first, again, other = build(spec, 3).eval(), build(spec, 3).eval(), build(spec, 4).eval()
    assert torch.equal(first(image), again(image))
    assert not torch.equal(first(image), other(image))
    twin = copy.deepcopy(first)
    with torch.no_grad():
        inner(twin).layer1.conv.weight.zero_()
    assert torch.equal(first(image), again(image))
    assert torch.equal(
        twin.record(image, ["layer1.conv"])["layer1.conv"][0, :, 0, 0], inner(twin).layer1.conv.bias
    )
    assert not torch.equal(first.fresh().eval()(image), first(image))


def test_a_layer_can_stand_inside(nets: str) -> None:
    spec = spec_of(f"{nets}:net", inserted={"stage1": {"kd_layer": {"words": 3}}})
    with_layer, without = build(spec, 0).eval(), build(spec_of(f"{nets}:net"), 0).eval()
    image = torch.randn(2, 1, 8, 8)
    tap = with_layer.record(image, ["stage1", "layer1.bn"])
    assert torch.equal(tap["layer1.bn"], without.record(image, ["layer1.bn"])["layer1.bn"])
    rest = inner(with_layer)
    torch.testing.assert_close(
        with_layer(image), with_layer.classifier(rest.pool(rest.layer2(tap["stage1"])).flatten(1))
    )


def test_the_patches_of_a_transformer_are_maps(nets: str) -> None:
    network = build(spec_of(f"{nets}:tall", channels=3), 0).eval()
    image = torch.randn(2, 3, 8, 8)
    taps = network.record(image, None)
    vit: Any = inner(network)
    assert isinstance(vit, VisionTransformer)

    x = (
        torch.cat([vit.class_token.expand(2, -1, -1), vit._process_input(image)], dim=1)
        + vit.encoder.pos_embedding
    )
    maps = []
    for layer in vit.encoder.layers:
        x = layer(x)
        maps.append(x[:, 1:].transpose(1, 2).reshape(2, 16, 2, 2))  # without the class token
    for k, map_ in enumerate(maps, start=1):
        torch.testing.assert_close(taps[f"stage{k}"], map_)
    last = vit.encoder.ln(x)
    torch.testing.assert_close(taps["final"], last[:, 1:].transpose(1, 2).reshape(2, 16, 2, 2))
    torch.testing.assert_close(taps["pooled"], last[:, 0])

    # A layer there changes the patches and leaves the class token.
    spec = spec_of(f"{nets}:tall", channels=3, inserted={"stage4": {"kd_layer": {"words": 3}}})
    changed_map = build(spec, 0).eval().record(image, ["stage4"])["stage4"]
    assert changed_map.shape == (2, 16, 2, 2)
    assert not torch.equal(changed_map, taps["stage4"])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_it_is_what_our_own_family_builds(tmp_path: Path, name: str) -> None:
    family = "torchvision_resnet" if name == "resnet18" else "torchvision_mobilenetv2"
    theirs = build(spec_of(f"torchvision.models:{name}", 64, 3), 0).eval()
    names = {ours: library for library, ours in theirs.library_names.items()}
    path = tmp_path / "a.pt"
    torch.save({names[key]: x for key, x in theirs.state_dict().items()}, path)
    weights = WeightsFile(path=str(path), sha256=own_weights.sha256(str(path)))

    image, shared = torch.randn(2, 3, 64, 64), ("final", "pooled", "logits")
    spec = NetworkSpec(family=family, network=name, size=64, channels=3, classes=10, weights=weights)
    ours = build(spec, 0).eval().record(image, shared)
    for tap, x in theirs.record(image, shared).items():
        torch.testing.assert_close(x, ours[tap], atol=1e-4, rtol=1e-4)
    # The same file fits it, too.
    again = build(spec_of(f"torchvision.models:{name}", 64, 3, weights=weights), 1).eval()
    assert torch.equal(again(image), theirs(image))


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        ("thousand", ["(1, 1000)", "expected logits of shape (1, 10)"]),
        ("flat", ["gives no map (B, C, H, W)"]),
        ("scaled", ["does not end in one nn.Linear"]),
        ("averaged", ["does not end in one nn.Linear"]),
        ("convolved", ["does not end in one nn.Linear", "last module: Flatten"]),
        ("paired", ["returns tuple", "expected logits"]),
        ("broken", ["cannot be built: RuntimeError: no such thing."]),
        ("number", ["has no function 'number'"]),
        ("nett", ["has no function 'nett'. Did you mean net?"]),
        ("other", ["returns int, expected a torch.nn.Module"]),
        ("tall", ["cannot read 1x8x8 images"]),
    ],
)
def test_what_cannot_serve_is_one_line(nets: str, function: str, parts: list[str]) -> None:
    with pytest.raises(StillhouseError) as error:
        build(spec_of(f"{nets}:{function}"), 0)
    one_line(error, *parts)


def test_what_cannot_be_imported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "slip_of_syntax.py").write_text("def f(:\n")
    for name in ("slip_of_syntax:f", "not_there_at_all:f", "os.nothing:f"):
        for call in (imported.source, lambda name: build(spec_of(name), 0)):
            with pytest.raises(ParamsError) as error:
                call(name)
            one_line(error, f"Network '{name}' cannot be imported", "package.module:function")
    for name in ("a:b:c", ":f", "a:", "a b:c", "a-b:c"):
        with pytest.raises(ParamsError) as error:
            imported.source(name)
        one_line(error, "is no import path")


def test_other_outputs_in_training_are_refused(nets: str) -> None:
    network = build(spec_of(f"{nets}:aided"), 0)
    assert network.eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ParamsError) as error:
        network.train()(torch.zeros(2, 1, 8, 8))
    one_line(error, "returns tuple in training", "Switch its auxiliary outputs off")


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("aided", "returns tuple in training, expected logits alone"),
        ("doubled", "returns shape (4, 10) for two images in training, expected logits of shape (2, 10)"),
        ("failing", "cannot read 1x8x8 images in training: 'targets'"),
    ],
)
def test_other_outputs_in_training_are_told_before_it(nets: str, function: str, told: str) -> None:
    name = f"{nets}:{function}"
    line = refused(changed(PARAMS, "students.small.network", name))
    assert line.startswith(f"params.yaml: students.small.network: Network '{name}' ")
    assert told in line

    # A teacher that is kept as it is evaluates alone.
    teacher = {"dataset": "toy", "network": name, "features": {"logits": {}}}
    params = {key: PARAMS[key] for key in ("seeds", "recipes", "datasets")} | {"distill": []}
    assert told in refused(params | {"teachers": {"big": teacher | {"recipe": "quick"}}})
    kept = {"quick": {"epochs": 0, "milestones": []}}
    project(params | {"teachers": {"big": teacher | {"recipe": kept}}})


def test_its_own_state_dict_is_read_whatever_its_only_child_is_called(nets: str, tmp_path: Path) -> None:
    spec = spec_of(f"{nets}:wrapped")
    plain = importlib.import_module(nets).wrapped(10)
    torch.save(plain.state_dict(), tmp_path / "own.pt")
    file = WeightsFile(path=str(tmp_path / "own.pt"), sha256=own_weights.sha256(str(tmp_path / "own.pt")))
    network = build(spec.model_copy(update={"weights": file}), 0).eval()
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(network(images), plain.eval()(images))


def test_an_installed_network_is_of_its_package_s_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = imported.source("torchvision.models:resnet18")
    monkeypatch.setattr(imported.metadata, "version", lambda name: "0.0")
    assert imported.source("torchvision.models:resnet18") != before


def test_heads_and_compilation_are_refused(nets: str) -> None:
    network = build(spec_of(f"{nets}:many"), 0)
    with pytest.raises(ParamsError) as heads:
        network.rest("stage1")
    one_line(heads, "no auxiliary heads")
    with pytest.raises(MachineError) as compiled:
        network.compile()
    one_line(compiled, "Leave out --compile")


# ------------------------------------------------------------------ its code


def write(folder: Path, nets: str = "", blocks: str = "") -> Path:
    """Write a project with a package of the user's, whose module imports another one."""
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "__init__.py").touch()
    (folder / "mine" / "nets.py").write_text(f"import torch\nfrom mine import parts\n{nets}")
    (folder / "mine" / "parts.py").write_text(f"WIDTH = 3\n{blocks}")
    return folder


def test_an_edit_of_its_code_is_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def source(folder: str, nets: str = "", blocks: str = "") -> str:
        root = write(tmp_path / folder, nets, blocks)
        monkeypatch.setattr(closure, "root", lambda: root)
        return imported.source("mine.nets:build")

    first = source("a")
    assert source("b") == first
    assert source("c", nets="# a comment\n") == first
    assert source("d", nets="x = 1\n") != first
    assert source("e", blocks="x = 1\n") != first


def test_a_network_of_other_code_is_refused(nets: str) -> None:
    name = f"{nets}:net"
    spec = spec_of(name, source=imported.source(name))
    build(spec, 0)
    with pytest.raises(StaleArtifactError) as error:
        build(spec.model_copy(update={"source": "another"}), 0)
    one_line(error, "has changed", "dvc repro --force --single-item params")


# ------------------------------------------------------------------ params.yaml


def test_it_is_a_teacher_and_a_student_of_params(nets: str) -> None:
    params = changed(
        changed(PARAMS, "teachers.big.network", f"{nets}:net"), "students.small.network", f"{nets}:net"
    )
    params = changed(
        params,
        "teachers.big.features",
        {"logits": {}, "stage2": {}, "layer2.0.bn": {}, "layer1:attention": {}},
    )
    made = blocks(project(params))
    train = made["teachers/big/train"]
    assert isinstance(train, TrainBlock)
    assert (train.family, train.network, train.source) == (
        "imported",
        f"{nets}:net",
        imported.source(f"{nets}:net"),
    )
    assert made["students/small"].source == train.source
    assert {"layer2.0.bn", "layer1:attention"} <= made["teachers/big/extract"].features.keys()

    told = refused(changed(params, "teachers.big.features", {"logits": {}, "layer2.0.bnn": {}}))
    assert "'layer2.0.bnn'" in told
    assert "Did you mean 'layer2.0.bn'?" in told
    assert f"teachers.big.network: Network '{nets}.x:net' cannot be imported" in refused(
        changed(params, "teachers.big.network", f"{nets}.x:net")
    )
    assert "have no 'imagenet' weights" in refused(changed(params, "teachers.big.weights", "imagenet"))
