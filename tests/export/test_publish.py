"""A published folder: weights that load by its own card's words, metrics that are those measured, and all hashes."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from error_fixtures import one_line
from ruamel.yaml import YAML
from safetensors.torch import load_file
from scipy import stats
from training_fixtures import World

from pipeline.artifacts.hashing import content_hash, file_hash
from pipeline.errors import (
    DamagedArtifactError,
    MachineError,
    MissingArtifactError,
    ParamsError,
    StaleArtifactError,
)
from pipeline.export import licences, publication, timm_names
from pipeline.export.card import card, front_matter
from pipeline.export.preprocessing import Preprocessing
from pipeline.export.student import Student
from pipeline.networks.network import build
from pipeline.networks.spec import NetworkSpec
from pipeline.networks.weights import load
from pipeline.params.base import load as load_block
from pipeline.params.weights import WeightsFile
from pipeline.runs.inputs import RunInputs
from pipeline.runs.teacher_record import TeacherRecord
from stages import evaluate, publish

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def measured(world: World) -> World:
    """Return the world with the metrics of plain KD's students."""
    for seed in (0, 1):
        key = f"students/pair/kd/{seed}"
        evaluate.main(
            world.path(f"artifacts/{key}"),
            out=world.path(f"artifacts/metrics/{key}.json"),
            predictions=world.path(f"artifacts/predictions/{key}.npz"),
            device="cpu",
        )
    return world


@pytest.fixture(scope="module")
def published(measured: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published") / "folder"
    publish.main("pair/kd", out=out, seed="1", licence="apache-2.0", artifacts=measured.path("artifacts"))
    return out


def matter(text: str) -> dict[str, Any]:
    """Return the front matter of a card, as the Hub cuts it off."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.S)
    assert match
    content: dict[str, Any] = YAML(typ="safe").load(match[1])
    return content


def test_the_folder_has_the_hubs_files(published: Path) -> None:
    names = ["README.md", "config.json", "model.safetensors", "preprocessing.json", "provenance.json"]
    assert sorted(path.name for path in published.iterdir()) == names


def test_the_cards_own_lines_load_the_student(
    measured: World, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = re.search(r"```python\n(.*?)```", (published / "README.md").read_text(), re.S)
    assert program
    monkeypatch.chdir(published)
    names: dict[str, Any] = {}
    exec(program[1], names)
    network, _ = load(measured.path("artifacts/students/pair/kd/1/weights"))
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(names["network"](images), network(images))


def test_metrics_are_those_measured_over_seeds(measured: World, published: Path) -> None:
    content = matter((published / "README.md").read_text())
    (result,) = content["model-index"][0]["results"]
    assert result["dataset"] == {"name": "toy", "type": "toy", "split": "test"}
    every = [
        json.loads(measured.path(f"artifacts/metrics/students/pair/kd/{k}.json").read_text()) for k in (0, 1)
    ]
    own, last, best = result["metrics"]
    assert own["value"] == pytest.approx(every[1]["top1"] / 100, abs=1e-6)
    assert own["name"] == "top-1 of these weights: seed 1, last epoch"
    for found, name, rule in (
        (last, "top1", "last epoch"),
        (best, "best_top1", "best epoch, chosen on test"),
    ):
        values = np.array([metrics[name] / 100 for metrics in every])
        assert found["value"] == pytest.approx(values.mean(), abs=1e-6)
        low, high = stats.t.interval(0.95, 1, values.mean(), stats.sem(values))
        assert found["name"] == (
            f"top-1, {rule}, mean of 2 seeds, 95 % interval over seeds {max(0, low):.4f} to {min(1, high):.4f}"
        )
    assert {found["type"] for found in result["metrics"]} == {"accuracy"}


def test_the_front_matter_says_what_it_is(published: Path) -> None:
    content = matter((published / "README.md").read_text())
    assert content["license"] == "apache-2.0"
    assert content["library_name"] == "stillhouse"
    assert content["pipeline_tag"] == "image-classification"
    assert content["datasets"] == ["toy"]
    assert {"knowledge-distillation", "kd"} <= set(content["tags"])
    assert "base_model" not in content  # the teacher is nowhere to be found


def test_provenance_has_the_hashes_of_all(measured: World, published: Path) -> None:
    content = json.loads((published / "provenance.json").read_text())
    folder = measured.path("artifacts/students/pair/kd/1")
    inputs = json.loads((folder / "inputs.json").read_text())
    assert content["student"]["file"] == file_hash(folder / "weights/last.safetensors")
    assert content["student"]["inputs"] == content_hash(inputs)
    assert content["teacher"]["file"] == file_hash(
        measured.path("artifacts/teachers/big/weights/last.safetensors")
    )
    assert content["store"] == {"logits": inputs["stored"]["logits"]["digest"]}
    assert content["copies"] == {}
    assert content["code"] == inputs["code"]
    assert content["params"] == content_hash(
        json.loads(measured.path("artifacts/params/project.json").read_text())
    )
    assert str(measured.root) not in (published / "provenance.json").read_text()
    shown = Preprocessing.model_validate_json((published / "preprocessing.json").read_text())
    assert shown.hash == file_hash(published / "model.safetensors")


def test_no_path_of_this_machine_is_published(measured: World, tmp_path: Path) -> None:
    """Of a student that started from a file, or beside files that git does not know."""
    student = student_of(measured)
    file = WeightsFile(path="/home/somebody/secret.pt", sha256="0" * 64)
    student = replace(student, spec=student.spec.model_copy(update={"weights": file}))
    assert isinstance(student.inputs, RunInputs)
    facts = facts_of(measured)
    params = measured.path("artifacts/params")
    publication.write(student, student.inputs, facts, record_of(measured), params, tmp_path)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert b"secret" not in content, path
        assert str(measured.root).encode() not in content, path
    assert isinstance(json.loads((tmp_path / "provenance.json").read_text())["changed"], bool)


def test_a_card_says_whose_code_is_not_there(measured: World) -> None:
    facts = facts_of(measured)
    assert "not in this folder" not in card(facts)
    assert "`own.nets:build`, is not in this folder" in card(replace(facts, code="own.nets:build"))


def changed(measured: World, tmp_path: Path, **teachers: Any) -> Path:
    """Return the artifacts, in which params.yaml has these teachers and the pair another one of them."""
    shutil.copytree(measured.path("artifacts"), tmp_path / "artifacts")
    project = tmp_path / "artifacts/params/project.json"
    content = json.loads(project.read_text())
    content["teachers"] = teachers
    content["pairs"]["pair"]["teacher"] = next(iter(teachers))
    project.write_text(json.dumps(content))
    return tmp_path / "artifacts"


@pytest.mark.parametrize("name", ["big", "another"])
def test_the_card_names_the_teacher_that_has_taught(measured: World, tmp_path: Path, name: str) -> None:
    """And not the one that params.yaml has by now under its name, or in its place."""
    now = {"dataset": "toy", "network": "wrn_40_2", "licence": "gpl-3.0"}
    artifacts, out = changed(measured, tmp_path, **{name: now}), tmp_path / "out"
    publish.main("pair/kd", out=out, seed="0", artifacts=artifacts)
    text = (out / "README.md").read_text()
    assert "distilled from big (resnet8) by kd" in text
    assert matter(text)["license"] == "bsd-3-clause"  # of the world's teacher
    teacher = json.loads((out / "provenance.json").read_text())["teacher"]
    assert (teacher["name"], teacher["network"]) == ("big", "resnet8")
    assert teacher["licence"] == "BSD 3-Clause"


def test_a_licence_of_ones_own_is_not_the_teachers(measured: World, tmp_path: Path) -> None:
    publish.main(
        "pair/kd", out=tmp_path / "out", seed="0", licence="mit", artifacts=measured.path("artifacts")
    )
    provenance = json.loads((tmp_path / "out/provenance.json").read_text())
    assert (provenance["licence"], provenance["teacher"]["licence"]) == ("mit", "BSD 3-Clause")


def test_a_record_of_another_teacher_is_told(measured: World, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    shutil.copytree(measured.path("artifacts"), artifacts)
    path = artifacts / "inputs/pairs/pair/teacher.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"weights": "0" * 32}))
    with pytest.raises(StaleArtifactError) as stale:
        publish.main("pair/kd", out=tmp_path / "out", seed="0", artifacts=artifacts)
    one_line(stale, "kd/0 was distilled from other weights than those of 'big'", "dvc repro")
    path.unlink()
    with pytest.raises(MissingArtifactError) as missing:
        publish.main("pair/kd", out=tmp_path / "out", seed="0", artifacts=artifacts)
    one_line(missing, "teacher.json does not exist", "dvc repro inputs@pair")
    assert not (tmp_path / "out").exists()


def test_a_licence_changes_no_inputs_of_a_student(measured: World, tmp_path: Path) -> None:
    """It is recorded beside them, so that nobody is trained anew for it."""
    blocks = measured.blocks(teachers={"big": {"licence": "mit"}})
    found = measured.resolve(tmp_path / "pair", block=blocks / "pairs/pair.json")
    assert found == measured.resolve(tmp_path / "before")
    records = [json.loads((tmp_path / name / "teacher.json").read_text()) for name in ("before", "pair")]
    assert records[0] | {"licence": "mit"} == records[1]
    assert records[0] == {
        "teacher": "big", "family": "resnet", "network": "resnet8", "first": "none", "licence": "BSD 3-Clause",
        "weights": file_hash(measured.path("artifacts/teachers/big/weights/last.safetensors")),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("resize", "crop"), [((60, 80), 48 / 60), (64, None), ((60, 81), None), ((48, 64), 1.0)]
)
def test_timm_is_told_a_crop_that_it_can_say(measured: World, resize: Any, crop: float | None) -> None:
    change = {"height": 48, "width": 64, "resize": resize}
    shown = student_of(measured).preprocessing.model_copy(update=change)
    assert timm_names._crop(shown).get("crop_pct") == crop


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("mit", {"license": "mit"}),
        ("MIT", {"license": "mit"}),
        ("Apache 2.0", {"license": "apache-2.0"}),
        ("openrail++", {"license": "openrail++"}),
        ("apache2", {"license": "other", "license_name": "apache2"}),
        ("Research only, ask us", {"license": "other", "license_name": "research-only-ask-us"}),
        ("", {}),
    ],
)
def test_the_licence_is_an_identifier_of_the_hub_or_other(
    measured: World, licence: str, expected: dict[str, str]
) -> None:
    facts = replace(facts_of(measured), licence=licence, base_model="timm/resnet18.a1_in1k")
    assert f"Licence: {licence or 'Not known'}" in card(facts)
    content = front_matter(facts)
    assert {key: content[key] for key in content if key.startswith("license")} == expected
    assert matter(card(facts)) == content
    assert content["base_model"] == "timm/resnet18.a1_in1k"


def test_a_licence_of_another_name_has_a_link(measured: World) -> None:
    facts = replace(facts_of(measured), licence="Ours 1.0", licence_link="https://example.org/ours")
    content = front_matter(facts)
    found = {key: content[key] for key in content if key.startswith("license")}
    assert found == {
        "license": "other",
        "license_name": "ours-1.0",
        "license_link": "https://example.org/ours",
    }
    assert "Licence: Ours 1.0 (https://example.org/ours)" in card(facts)


@pytest.mark.parametrize(
    ("licence", "link", "part"),
    [
        ("other", "", "'other' does not say which licence it is"),
        ("許諾", "", "does not say which licence it is"),
        ("mit", "https://example.org", "Leave out --licence-link"),
        ("ours", "/home/somebody/LICENSE", "is no link to a licence, expected https://... or LICENSE"),
    ],
)
def test_a_licence_that_says_nothing_is_refused_at_once(
    tmp_path: Path, licence: str, link: str, part: str
) -> None:
    with pytest.raises(ParamsError) as error:
        publish.main("pair/kd", out=tmp_path / "out", licence=licence, licence_link=link, artifacts=tmp_path)
    one_line(error, part)


def test_a_link_needs_a_licence() -> None:
    with pytest.raises(ParamsError) as error:
        licences.matter("", "LICENSE")
    one_line(error, "Give --licence too")


def test_the_user_is_told_of_a_licence_that_the_hub_does_not_have(
    measured: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"seed": "0", "artifacts": measured.path("artifacts")}
    publish.main("pair/kd", out=tmp_path / "a", licence="Ours 1.0", **options)
    assert "no licence 'Ours 1.0': the card says other, by the name ours-1.0" in capsys.readouterr().out
    publish.main("pair/kd", out=tmp_path / "b", licence="Ours 1.0", licence_link="LICENSE", **options)
    assert "the card says other" not in capsys.readouterr().out


def record_of(world: World) -> TeacherRecord:
    return load_block(TeacherRecord, world.path("artifacts/inputs/pairs/pair/teacher.json"))


def student_of(world: World) -> Student:
    return Student.open(world.path("artifacts/students/pair/kd/0"), "last", world.path("artifacts/params"))


def facts_of(world: World) -> Any:
    student = student_of(world)
    assert isinstance(student.inputs, RunInputs)
    metrics = publication.metrics(world.path("artifacts"), "pair/kd", (0,))
    return publication.facts_of(student, student.inputs, metrics, record_of(world))


def test_one_seed_has_no_interval(measured: World) -> None:
    _, last, _ = front_matter(facts_of(measured))["model-index"][0]["results"][0]["metrics"]
    assert last["name"] == "top-1, last epoch, of one seed: there is no interval"


# ------------------------------------------------------------------ timm


@pytest.mark.parametrize(
    ("network", "size", "channels"), [("resnet10t", 32, 1), ("vit_tiny_patch16_224", 32, 3)]
)
def test_timm_builds_what_is_timms(
    measured: World, tmp_path: Path, network: str, size: int, channels: int
) -> None:
    timm = pytest.importorskip("timm")
    spec = NetworkSpec(family="timm", network=network, size=size, channels=channels, classes=10)
    own = build(spec, 0).eval()
    student = student_of(measured)
    change = {"height": size, "width": size, "resize": 40, "channels": channels,
              "mean": (0.4,) * channels, "std": (0.2,) * channels}  # fmt: skip
    shown = student.preprocessing.model_copy(update=change)
    student = replace(student, network=own, spec=spec, preprocessing=shown)
    facts = replace(facts_of(measured), timm=timm_names.is_of_timm(student), preprocessing=shown)
    assert facts.library == "timm"
    assert isinstance(student.inputs, RunInputs)
    params = measured.path("artifacts/params")
    publication.write(student, student.inputs, facts, record_of(measured), params, tmp_path)

    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, channels, size, size)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), own(images), rtol=0, atol=1e-5)
    config = loaded.pretrained_cfg
    assert config["input_size"] == (channels, size, size)
    assert (tuple(config["mean"]), config["crop_pct"]) == ((0.4,) * channels, size / 40)
    assert config["label_names"] == list(shown.classes)
    assert not {"license", "tag"} & {key for key, value in config.items() if value}
    assert load_file(tmp_path / "model.safetensors").keys() == loaded.state_dict().keys()


def test_a_student_that_timm_has_no_names_for_is_not_timms(measured: World) -> None:
    pytest.importorskip("timm")
    student = student_of(measured)

    def is_of_timm(network: str, **changes: Any) -> bool:
        spec = NetworkSpec(family="timm", network=network, size=32, channels=3, classes=10, **changes)
        return timm_names.is_of_timm(replace(student, spec=spec, network=build(spec, 0)))

    assert is_of_timm("resnet10t")
    assert not is_of_timm("resnet10t", classifier_width=3)
    assert not is_of_timm("deit_tiny_distilled_patch16_224")  # whose two classifiers are one for us
    assert not timm_names.is_of_timm(student)


def test_the_base_model_is_a_teacher_that_timm_has_weights_of() -> None:
    pytest.importorskip("timm")

    def on_hub(family: str, network: str, weights: Any) -> str:
        spec = NetworkSpec(family=family, network=network, weights=weights, size=8, channels=3, classes=10)
        return timm_names.on_hub(TeacherRecord.of("big", "", spec, ""))

    assert on_hub("timm", "resnet18.a1_in1k", "imagenet") == "timm/resnet18.a1_in1k"
    assert on_hub("timm", "resnet18", "imagenet").startswith("timm/resnet18.")
    assert on_hub("timm", "resnet18", "none") == on_hub("resnet", "resnet8", "none") == ""
    own = WeightsFile(path="/home/somebody/imagenet.pt", sha256="0" * 64)
    assert on_hub("timm", "resnet18", own) == ""


def test_a_missing_timm_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    spec = NetworkSpec(family="timm", network="x", weights="imagenet", size=8, channels=3, classes=10)
    with pytest.raises(MachineError) as error:
        timm_names.on_hub(TeacherRecord.of("big", "", spec, ""))
    one_line(error, "needs timm, which is not installed")


# ------------------------------------------------------------------ what is refused


def test_a_folder_that_is_not_empty_is_left_as_it_is(measured: World, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ParamsError) as error:
            publish.main("pair/kd", out=out, artifacts=measured.path("artifacts"))
        one_line(error, "is not empty, expected a folder to make")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_left_of_a_folder_that_cannot_be_written(
    measured: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(facts: Any) -> str:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(publication, "card", full)
    with pytest.raises(OSError, match="No space left"):
        publish.main("pair/kd", out=tmp_path / "out", artifacts=measured.path("artifacts"))
    assert list(tmp_path.iterdir()) == []


def test_students_that_were_not_evaluated_are_refused(measured: World, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    shutil.copytree(measured.path("artifacts"), artifacts)
    path = artifacts / "metrics/students/pair/kd/1.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"top1": 99.0}))
    with pytest.raises(DamagedArtifactError) as damaged:
        publish.main("pair/kd", out=tmp_path / "out", artifacts=artifacts)
    one_line(damaged, "kd/1.json is not what was written", "evaluate@pair/kd-1")
    path.unlink()
    with pytest.raises(MissingArtifactError) as missing:
        publish.main("pair/kd", out=tmp_path / "out", artifacts=artifacts)
    one_line(missing, "kd/1.json does not exist. Make it with: dvc repro evaluate@pair/kd-1")
    assert not (tmp_path / "out").exists()
