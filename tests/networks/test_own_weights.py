"""Weights of a file: read whatever wraps them, fitted by name and shape, and refused in one line."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from error_fixtures import one_line
from feature_fixtures import run_stage
from params_fixtures import refused
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import mobilenet_v2, resnet18
from training_fixtures import PARAMS, changed

from pipeline.data.datasets import digits
from pipeline.data.preparation import prepare
from pipeline.errors import DataError, StaleArtifactError, StillhouseError
from pipeline.networks import own_weights, weights
from pipeline.networks.network import build
from pipeline.networks.spec import NetworkSpec
from pipeline.params.students import StudentBlock
from pipeline.params.teacher import TrainBlock
from pipeline.params.weights import WeightsFile
from pipeline.runs.blocks import blocks
from pipeline.runs.check import project
from stages import params as params_stage
from stages import plan as plan_stage

SPEC = NetworkSpec(family="resnet", network="resnet8", size=8, channels=1, classes=10)
# The names of a public ResNet for CIFAR-10, as ours.
NAMES = {
    r"conv1\.": "units.stem.0.",
    r"bn1\.": "units.stem.1.",
    r"layer(\d)\.(\d+)\.conv(\d)\.": r"units.stage\1.\2.conv\3.0.",
    r"layer(\d)\.(\d+)\.bn(\d)\.": r"units.stage\1.\2.conv\3.1.",
    r"linear\.": "classifier.",
}

State = dict[str, Tensor]


def state_of(spec: NetworkSpec = SPEC, seed: int = 7) -> State:
    return {name: x.clone() for name, x in build(spec, seed).state_dict().items()}


def file_of(path: Path, content: object, **settings: Any) -> WeightsFile:
    """Write a file with torch and return it as a stage knows it."""
    torch.save(content, path)
    return WeightsFile(path=str(path), sha256=own_weights.sha256(str(path)), **settings)


def read_with(file: WeightsFile, spec: NetworkSpec = SPEC) -> State:
    return build(spec.model_copy(update={"weights": file}), 0).state_dict()


def same(state: State, expected: State) -> bool:
    return state.keys() == expected.keys() and all(
        torch.equal(x, expected[name]) for name, x in state.items()
    )


def line(file: WeightsFile, *parts: str, spec: NetworkSpec = SPEC) -> str:
    with pytest.raises(StillhouseError) as error:
        read_with(file, spec)
    return one_line(error, *parts)


def wrapped(state: State, prefix: str) -> State:
    return {prefix + name: x for name, x in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "best": 91.7},
        lambda state: {"model": wrapped(state, "module.")},
        lambda state: {"model_state_dict": wrapped(state, "_orig_mod.module.")},
        lambda state: {"ema": wrapped(state, "model.backbone."), "optimizer": {"state": {}}},
    ],
)
def test_a_checkpoint_is_read_whatever_wraps_it(tmp_path: Path, wrap: Any) -> None:
    state = state_of()
    assert same(read_with(file_of(tmp_path / "a.pth", wrap(state))), state)


def test_safetensors_are_read_and_may_have_fewer_bits(tmp_path: Path) -> None:
    state, path = state_of(), tmp_path / "a.safetensors"
    save_file({name: x.half() if x.is_floating_point() else x for name, x in state.items()}, path)
    read = read_with(WeightsFile(path=str(path), sha256=own_weights.sha256(str(path))))
    for name, x in state.items():
        assert torch.equal(read[name], x.half().to(x.dtype) if x.is_floating_point() else x)


def test_what_a_training_of_ours_left_is_read(tmp_path: Path) -> None:
    weights.save_weights(build(SPEC, 7), tmp_path / "last.safetensors")
    path = str(tmp_path / "last.safetensors")
    assert same(read_with(WeightsFile(path=path, sha256=own_weights.sha256(path))), state_of())


def test_names_of_another_program_become_ours(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"network": "resnet20_pad", "family": "resnet_pad"})
    state = state_of(spec)
    theirs = {}
    for name, x in state.items():
        if name.endswith("num_batches_tracked"):
            continue  # old files have none
        parts = name.split(".")
        if parts[0] == "classifier":
            new = f"linear.{parts[1]}"
        elif parts[1] == "stem":
            new = f"{'conv1' if parts[2] == '0' else 'bn1'}.{parts[3]}"
        else:
            kind = "conv" if parts[4] == "0" else "bn"
            new = f"layer{parts[1][-1]}.{parts[2]}.{kind}{parts[3][-1]}.{parts[5]}"
        theirs[f"module.{new}"] = x
    assert same(read_with(file_of(tmp_path / "a.th", {"state_dict": theirs}, names=NAMES), spec), state)


@pytest.mark.parametrize(
    ("family", "name", "make"),
    [("torchvision_resnet", "resnet18", resnet18), ("torchvision_mobilenetv2", "mobilenet_v2", mobilenet_v2)],
)
def test_the_names_of_torchvision_are_known(tmp_path: Path, family: str, name: str, make: Any) -> None:
    torch.manual_seed(0)
    theirs = make(num_classes=10).eval()
    spec = NetworkSpec(family=family, network=name, size=64, channels=3, classes=10)
    file = file_of(tmp_path / "a.pt", theirs.state_dict())
    ours, image = build(spec.model_copy(update={"weights": file}), 0).eval(), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(image), theirs(image), atol=1e-5, rtol=1e-5)


def test_the_names_of_timm_are_known(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("mobilenetv3_small_050", num_classes=10, in_chans=3).eval()
    spec = NetworkSpec(family="timm", network="mobilenetv3_small_050", size=32, channels=3, classes=10)
    file = file_of(tmp_path / "a.pt", {"state_dict": wrapped(theirs.state_dict(), "module.")})
    ours, image = build(spec.model_copy(update={"weights": file}), 0).eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(image), theirs(image), atol=1e-5, rtol=1e-5)


def test_the_classifier_can_be_drawn_anew(tmp_path: Path) -> None:
    state = state_of(SPEC.model_copy(update={"classes": 7}))
    told = line(
        file_of(tmp_path / "a.pt", state), "misshapen classifier.weight 7x64 for 10x64", "classifier: fresh"
    )
    assert "missing" not in told
    fresh = read_with(file_of(tmp_path / "a.pt", state, classifier="fresh"))
    drawn = build(SPEC, 0).state_dict()
    for name, x in fresh.items():
        assert torch.equal(x, drawn[name] if name.startswith("classifier.") else state[name])


def test_layers_that_a_run_inserts_are_not_in_the_file(tmp_path: Path) -> None:
    file, state = file_of(tmp_path / "a.pt", state_of()), state_of()
    spec = SPEC.model_copy(update={"weights": file})
    inserted = NetworkSpec.model_validate(
        spec.model_dump() | {"inserted": {"stage2": {"kd_layer": {"words": 3}}}}
    )
    read = build(inserted, 0).state_dict()
    assert any(name.startswith("inserted.") for name in read)
    assert all(torch.equal(read[name], x) for name, x in state.items())


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = state_of()
    state["units.stem.0.weight"] = torch.zeros(1, 2)
    for name in ("classifier.bias", "units.stem.1.weight"):
        state[f"other.{name}"] = state.pop(name)
    line(
        file_of(tmp_path / "a.pt", state),
        "missing units.stem.1.weight, classifier.bias",
        "unexpected other.classifier.bias, other.units.stem.1.weight",
        "misshapen units.stem.0.weight 1x2 for 16x1x3x3",
        "names: {theirs: ours}",
    )
    told = line(
        file_of(tmp_path / "a.pt", wrapped(state_of(), "theirs.")), "missing", "more; unexpected theirs."
    )
    assert len(told) < 600
    # Left out by a name without ours, both are gone.
    assert same(
        read_with(file_of(tmp_path / "a.pt", state_of() | {"head.x": torch.zeros(1)}, names={"head": None})),
        state_of(),
    )


def test_wrappers_of_an_average_and_of_options_are_read(tmp_path: Path) -> None:
    path, state = tmp_path / "a.pt", state_of()
    averaged = torch.optim.swa_utils.AveragedModel(build(SPEC, 7))
    assert same(read_with(file_of(path, averaged.state_dict())), state)
    # As DeiT's and DINO's checkpoints keep their options.
    options = argparse.Namespace(lr=0.1, data=argparse.Namespace(path="x"))
    assert same(read_with(file_of(path, {"model": state, "args": options})), state)
    # Others than the network's, which do not begin as its own do.
    beside = wrapped(state, "model.") | {"criterion.weight": torch.zeros(2)}
    assert same(read_with(file_of(path, beside, names={"criterion": None})), state)

    optimizer = torch.optim.SGD(build(SPEC, 7).parameters(), lr=0.1, momentum=0.9)
    sum(x.sum() for x in optimizer.param_groups[0]["params"]).backward()
    optimizer.step()
    nested = {"ema": {"module": state, "updates": 3}, "optimizer": optimizer.state_dict()}
    line(file_of(path, nested), "There are some under ema.module: name one by the setting key")
    assert same(read_with(file_of(path, nested, key="ema.module")), state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda x: x.to_sparse(),
            "sparse, nested, quantized, complex or without values in classifier.weight",
        ),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantized"),
        (lambda x: x.to(torch.complex64), "complex"),
        (lambda x: x.to("meta"), "without values"),
        (lambda x: torch.nested.nested_tensor([*x]), "nested"),
        (
            lambda x: (x * 10).to(torch.int8),
            "of whole numbers classifier.weight. Save them as floating-point",
        ),
        (lambda x: x.double() * 1e300, "are not finite in classifier.weight"),
    ],
)
def test_tensors_of_another_kind_are_one_line(tmp_path: Path, change: Any, told: str) -> None:
    state = state_of()
    line(file_of(tmp_path / "a.pt", state | {"classifier.weight": change(state["classifier.weight"])}), told)


def test_tensors_of_eight_bits_are_read(tmp_path: Path) -> None:
    state = state_of()
    short = {name: x.to(torch.float8_e4m3fn) if x.is_floating_point() else x for name, x in state.items()}
    expected = {name: x.to(state[name].dtype) for name, x in short.items()}
    assert same(read_with(file_of(tmp_path / "a.pt", short)), expected)


def test_a_file_without_a_classifier_is_told_what_to_do(tmp_path: Path) -> None:
    state = {name: x for name, x in state_of().items() if not name.startswith("classifier.")}
    line(file_of(tmp_path / "a.pt", state), "missing classifier.weight", "classifier: fresh", "head: linear")
    assert read_with(file_of(tmp_path / "a.pt", state, classifier="fresh")).keys() > state.keys()


class Command:
    """What a planted file holds: opened as any pickle, it runs a command."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.sign}",)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    sign = tmp_path / "owned"
    line(
        file_of(tmp_path / "a.pt", {"state_dict": state_of(), "x": Command(sign)}),
        "cannot be read as tensors (it holds an object, posix.system)",
    )
    assert not sign.exists()


@pytest.mark.parametrize(
    ("content", "settings", "parts"),
    [
        ([1, 2], {}, ["hold no tensors by name", "Expected a state dict"]),
        ({"epoch": 3}, {}, ["hold no tensors by name"]),
        ({"student": {"a": torch.zeros(1)}}, {}, ["There are some under student", "setting key"]),
        ({"student": {"a": torch.zeros(1)}}, {"key": "teacher"}, ["under key 'teacher'", "under student"]),
        (
            {"model": {"a": torch.zeros(1)}, "ema": {"a": torch.zeros(1)}},
            {},
            ["under model and ema. Name one"],
        ),
        ({"a": torch.tensor([1.0, float("nan")])}, {}, ["not finite in a"]),
        ({"a": torch.zeros(1)}, {"names": {"(": "b"}}, ["'(: b', which is no regular expression"]),
        ({"a": torch.zeros(1)}, {"names": {"a": r"\2"}}, ["no regular expression with its replacement"]),
        ({"a": torch.zeros(1), "b": torch.zeros(1)}, {"names": {".": "c"}}, ["makes 'c' of both a and b"]),
    ],
)
def test_another_content_is_one_line(
    tmp_path: Path, content: object, settings: Any, parts: list[str]
) -> None:
    line(file_of(tmp_path / "a.pt", content, **settings), *parts)


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.pt", state_of())
    torch.save(state_of(seed=8), file.path)
    with pytest.raises(StaleArtifactError) as error:
        read_with(file)
    one_line(error, "have changed", "dvc repro --force --single-item params")
    Path(file.path).write_bytes(b"nothing")
    again = file.model_copy(update={"sha256": own_weights.sha256(file.path)})
    with pytest.raises(DataError) as damaged:
        read_with(again)
    one_line(damaged, "cannot be read as tensors")


# ------------------------------------------------------------------ params.yaml


def blocks_with(place: str, weights: Any) -> dict[str, Any]:
    return blocks(project(changed(PARAMS, place, weights)))


def test_the_content_of_a_file_is_part_of_what_a_training_depends_on(tmp_path: Path) -> None:
    teacher = NetworkSpec(**SPEC.model_dump() | {"network": "resnet14"})
    path = tmp_path / "a.pt"
    file = file_of(path, state_of(teacher))
    train = blocks_with("teachers.big.weights", str(path))["teachers/big/train"]
    assert isinstance(train, TrainBlock)
    assert train.weights == file

    torch.save(state_of(teacher, 8), path)
    other = blocks_with("teachers.big.weights", str(path))["teachers/big/train"]
    assert other.weights.sha256 != file.sha256
    assert TrainBlock.model_validate_json(other.model_dump_json()) == other

    student = file_of(tmp_path / "b.pt", {"ema": state_of(), "model": state_of()}, key="ema")
    block = blocks_with("students.small.weights", {student.path: {"key": "ema"}})["students/small"]
    assert isinstance(block, StudentBlock)
    assert block.weights == student


def test_a_plan_tells_of_a_file_that_has_changed_since_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = digits.Config(samples=100)
    prepare(digits.open_source(config), "digits", config, tmp_path / "data" / "prepared" / "toy")
    params = {key: PARAMS[key] for key in ("seeds", "recipes", "datasets")} | {"distill": []}
    teacher = {"dataset": "toy", "network": "resnet8", "recipe": "quick", "features": {"logits": {}}}
    params |= {"teachers": {"big": teacher | {"weights": "own/a.pt"}}}
    params |= {"students": {"small": {**PARAMS["students"]["small"], "weights": "b.pt"}}}
    YAML().dump(params, tmp_path / "params.yaml")
    (tmp_path / "own").mkdir()

    def told(stage: Any, *arguments: str) -> list[str]:
        capsys.readouterr()
        assert run_stage(monkeypatch, stage.main, *arguments) == 0
        return capsys.readouterr().err.splitlines()

    for seed, path in enumerate(("own/a.pt", "b.pt")):
        torch.save(state_of(seed=seed), path)
    assert told(plan_stage) == []  # nothing is checked yet
    assert told(params_stage, "--out", "artifacts/params") == []
    assert told(plan_stage) == []
    torch.save(state_of(seed=2), "own/a.pt")
    torch.save(state_of(seed=3), "b.pt")
    for path, line in zip(("own/a.pt", "b.pt"), told(plan_stage), strict=True):
        assert line.startswith(f"warning: The weights {path} have changed since params.yaml was checked.")
        assert line.endswith("run: dvc repro --force --single-item params, then: dvc repro")

    # The check takes what is there.
    assert told(params_stage, "--out", "artifacts/params") == []
    assert told(plan_stage) == []
    train = json.loads((tmp_path / "artifacts" / "params" / "teachers" / "big" / "train.json").read_text())
    assert train["weights"]["sha256"] == own_weights.sha256("own/a.pt")


def test_a_licence_is_recorded_beside_inputs_and_changes_no_training() -> None:
    plain, licensed = blocks(project(PARAMS)), blocks_with("teachers.big.licence", "CC BY-NC 4.0")
    assert [name for name in plain if plain[name] != licensed[name]] == ["project", "pairs/pair"]
    assert licensed["project"].teachers["big"].licence == "CC BY-NC 4.0"


def test_mistakes_in_params_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"

    def told(weights: Any, place: str = "teachers.big.weights") -> str:
        return refused(changed(PARAMS, place, weights))

    assert f"The weights {path} do not exist" in told(str(path))
    torch.save({"epoch": 3}, path)
    assert "hold no tensors by name" in told(str(path))
    torch.save(state_of(), path)
    assert "params.yaml: teachers.big.weights: The weights do not fit the network: missing" in told(str(path))
    assert "Did you mean 'names'?" in told({str(path): {"name": {}}})
    assert "'none' has no settings" in told({"none": {"key": "a"}})
    assert "params.yaml: students.small.weights: Networks of family 'resnet'" in told(
        "imagenet", "students.small.weights"
    )


def test_unknown_classes_are_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(
        state_of(NetworkSpec(family="resnet", network="resnet14", size=8, channels=3, classes=17)), path
    )
    folder = changed(PARAMS, "datasets.toy.source", {"image_folder": {"path": "x", "size": 8}})
    assert project(changed(folder, "teachers.big.weights", str(path))).params.teachers[
        "big"
    ].weights.name == str(path)
