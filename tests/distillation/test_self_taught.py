"""Self-taught copies of a teacher (SLKD*): trained once, stored, shared; and the students that read them."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current, here
from error_fixtures import one_line
from feature_fixtures import rewrite_manifest
from safetensors.torch import load_file
from training_fixtures import CLASSES, PARAMS, STUDENT, World, assemble, make_world, watched_features

from pipeline import seeding
from pipeline.artifacts.hashing import content_hash, file_hash
from pipeline.distillation.schedules.self_taught import Config, Schedule
from pipeline.errors import (
    MissingArtifactError,
    ParamsError,
    StaleArtifactError,
    StillhouseError,
    UnknownNameError,
)
from pipeline.features import manifest as manifests
from pipeline.features.store import StoredArray, array_path
from pipeline.networks.network import build
from pipeline.networks.weights import load
from pipeline.params import checks
from pipeline.runs import check
from pipeline.runs.inputs import RunInputs
from pipeline.runs.planning import plan
from pipeline.training import copies
from pipeline.training.loop import Training
from pipeline.training.setting import Setting
from stages import train_copy

pytestmark = pytest.mark.usefixtures("device")

NAMES = ("one", "two")
COPIES = {name: {"teacher": "big", "student": "small"} for name in NAMES}


def command(world: World, name: str, **update: Any) -> dict[str, Any]:
    """Return the arguments of the stage."""
    return world.copying(f"copies/{name}", copies=COPIES) | update


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    made = make_world(tmp_path_factory.mktemp("world"))
    for name in NAMES:
        train_copy.main(**command(made, name))
    return made


def resolved(world: World, name: str, settings: dict[str, Any] | None = None, **run: Any) -> RunInputs:
    """Resolve a run of these settings."""
    config = {"names": list(NAMES)} | (settings or {})
    runs = {name: {"methods": "kd", "schedule": {"self_taught": config}} | run}
    pair = world.blocks(copies=COPIES, runs=runs, distill=[f"pair/{name}"]) / "pairs/pair.json"
    resolved = world.resolve(world.path(f"changed/{name}-out"), block=pair)
    return RunInputs.model_validate_json(resolved[name])


def logits_of(store: Path) -> str:
    """Return the hash of the logits that a store holds."""
    return manifests.read(store, "dvc repro").features["logits"].digest["last/train"]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------ the copies


def test_a_copy_is_the_teachers_network_trained_from_its_logits(world: World) -> None:
    folder = world.path("artifacts/copies/big/one")
    network, spec = load(folder / "weights")
    teacher, expected = load(world.path("artifacts/teachers/big/weights"))
    assert spec == expected
    rows = history(folder)
    assert len(rows) == 2
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    for row in rows:
        total = 0.1 * float(row["ce"]) + 0.9 * float(row["kd"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
    init = load_file(folder / "weights/init.safetensors")
    start = load_file(world.path("artifacts/teachers/big/weights/init.safetensors"))
    other = load_file(world.path("artifacts/copies/big/two/weights/init.safetensors"))
    for name, x in init.items():
        if x.ndim > 1:
            assert not torch.equal(x, start[name]), name
            assert not torch.equal(x, other[name]), name
    assert not torch.equal(network.classifier.weight, teacher.classifier.weight)
    assert {path.name for path in folder.iterdir()} == {
        "weights",
        "history.csv",
        "training.json",
        "store.zarr",
        "copy.json",
    }


def test_its_store_holds_its_logits_of_every_view(world: World) -> None:
    folder = world.path("artifacts/copies/big/one")
    store = folder / "store.zarr"
    manifest = manifests.read(store, "dvc repro")
    assert (manifest.teacher, set(manifest.features), manifest.samples) == ("big", {"logits"}, {"train": 100})
    about = json.loads((folder / "copy.json").read_text())
    taught = file_hash(world.path("artifacts/teachers/big/weights/last.safetensors"))
    settings = json.loads((world.blocks(copies=COPIES) / "copies/one.json").read_text())
    assert about == {
        "made_by": "train_copy@one",
        "teacher": "big",
        "weights": taught,
        "data": manifest.data,
        "settings": content_hash(settings),
        "learned_from": {"teacher": logits_of(world.path("artifacts/features/big.zarr"))},
        "logits": logits_of(store),
        "epochs": len(history(folder)),
        "top1": float(history(folder)[-1]["top1"]),
    }
    assert manifest.made_by == "train_copy@one"
    stored = StoredArray(array_path(store, "last", "train", "logits")).all()
    assert stored.shape == (1 + 9, 100, CLASSES)
    network = load(folder / "weights")[0]
    inputs = world.inputs("kd")
    setting = Setting.of(world.prepared, inputs.views, current())
    for epoch in (0, 1):
        for views in setting.batches(inputs.recipe, 0, inputs.slots).epoch(epoch):
            with torch.no_grad():
                live = network(views.image.cpu()).numpy()
            found = stored[int(views.slot), views.index.cpu().numpy()]
            np.testing.assert_allclose(found, live, rtol=1e-4, atol=1e-4)


@pytest.mark.cpu
def test_a_copy_takes_what_was_planned(world: World) -> None:
    planned = plan(check.project(PARAMS | {"copies": COPIES}), {"toy": world.prepared.meta})
    item = next(item for item in planned.items if item.kind == "copy")
    folder = world.path("artifacts/copies/big/one")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert item.stages == ("train_copy@one",)
    assert item.files == len(files)
    assert item.bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.1)
    assert item.forwards == 10 * 100


def test_a_copy_that_was_interrupted_while_it_was_stored_is_not_trained_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "one"
    with monkeypatch.context() as patch:
        patch.setattr(copies, "fill", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_copy.main(**command(world, "one", out=out))
    assert not out.exists()
    monkeypatch.setattr(Training, "run", lambda self: pytest.fail("trained again"))
    train_copy.main(**command(world, "one", out=out))
    whole = world.path("artifacts/copies/big/one")
    for file in ("weights/last.safetensors", "weights/init.safetensors"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    digests = [
        manifests.read(folder / "store.zarr", "dvc repro").features["logits"].digest
        for folder in (whole, out)
    ]
    assert digests[0] == digests[1]


@pytest.mark.cpu
def test_another_teachers_store_is_refused(world: World, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(world.path("artifacts/teachers/big/weights"), weights)
    shutil.copy(weights / "init.safetensors", weights / "last.safetensors")
    paths = {"out": tmp_path / "one", "weights": weights}
    with pytest.raises(StaleArtifactError, match="was made with other weights") as error:
        train_copy.main(**command(world, "one", **paths))
    one_line(error)
    assert not paths["out"].exists()


# ------------------------------------------------------------------ their lesson


def softmax(row: list[float], temperature: float) -> list[float]:
    e = [math.exp(v / temperature) for v in row]
    return [v / sum(e) for v in e]


def test_the_students_loss_is_the_formula() -> None:
    found = assemble("kd")
    batch = found.batch(5)
    generator = seeding.generator("copies")
    given = {f"{name}/logits": here(2 * torch.randn(5, CLASSES, generator=generator)) for name in NAMES}
    batch = replace(batch, teacher=batch.teacher | given)
    schedule = Schedule(Config(names=NAMES, fusion=0.3, beta=0.5), found.context)
    plan = schedule(found.taps(batch), batch)
    s, label = found.student(batch.image).double().tolist(), batch.label.tolist()
    one, two = (given[f"{name}/logits"].double().tolist() for name in NAMES)
    ce = soft = 0.0
    for i in range(5):
        ce -= math.log(softmax(s[i], 1)[label[i]]) / 5
        p = softmax([0.3 * a + 0.7 * b for a, b in zip(one[i], two[i], strict=True)], 4)
        soft += 16 * sum(a * math.log(a / b) for a, b in zip(p, softmax(s[i], 4), strict=True)) / 5
    assert plan.terms["fused_ce"].item() == pytest.approx(ce, rel=1e-4)  # float32 against float64
    assert plan.terms["fused_kd"].item() == pytest.approx(soft, rel=1e-4)
    assert plan.weights == {"fused_ce": 0.5, "fused_kd": 0.5}
    (lesson,) = plan.lessons
    assert set(lesson.teacher) == {"logits"}  # the method sees the teacher's features alone
    assert not list(schedule.parameters())


def test_a_student_reads_them_and_is_the_plain_student(world: World) -> None:
    inputs = resolved(world, "slkd-star")
    assert set(inputs.copies) == set(NAMES)
    assert not inputs.teacher_network  # no network runs beside the student
    assert inputs.weights == {}
    folder = world.distill("slkd-star", inputs)
    rows = history(folder)
    values = [float(row["loss"]) for row in rows]
    assert all(math.isfinite(value) for value in values)
    assert values[1] < values[0]
    assert {"fused_kd", "fused_ce", "kd", "distance.student-self"} <= rows[0].keys()
    assert float(rows[0]["distance.self-teacher"]) > 0
    plain = build(STUDENT, 0).state_dict()
    held = load_file(folder / "weights/init.safetensors")
    assert held.keys() == plain.keys()
    assert all(torch.equal(x, plain[name]) for name, x in held.items())


def test_the_first_steps_target_is_what_the_copies_say_of_the_same_views(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched_features(monkeypatch)
    world.distill("slkd-star-views", resolved(world, "slkd-star-views", source="online"))
    for name in NAMES:
        network = load(world.path(f"artifacts/copies/big/{name}/weights"))[0]
        for views, fetched in (seen[0], seen[-1]):
            with torch.no_grad():
                live = network(views.image.cpu())
            torch.testing.assert_close(fetched[f"{name}/logits"].cpu(), live, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------ resolution and bad input


@pytest.mark.cpu
def test_a_run_depends_on_the_copies_that_it_reads(world: World, tmp_path: Path) -> None:
    assert set(resolved(world, "star-one", {"names": ["one"]}).copies) == {"one"}
    assert world.inputs("kd").copies == {}


@pytest.mark.cpu
def test_a_copy_that_is_missing_or_of_another_teacher_names_its_stage(world: World) -> None:
    about = world.path("artifacts/copies/big/one/copy.json")
    before = about.read_text()
    try:
        about.write_text(json.dumps(json.loads(before) | {"weights": "0"}))
        with pytest.raises(StaleArtifactError, match=r"of another teacher.*train_copy@one") as error:
            resolved(world, "star-stale")
        one_line(error)
        about.unlink()
        with pytest.raises(MissingArtifactError, match=r"copy\.json does not exist.*train_copy@one"):
            resolved(world, "star-missing")
    finally:
        about.write_text(before)


@pytest.mark.cpu
def test_a_copy_of_fewer_views_than_a_run_shows_is_refused(world: World) -> None:
    """As one of an earlier params.yaml would be."""
    path = world.path("artifacts/copies/big/one/store.zarr/zarr.json")
    before = path.read_text()
    rewrite_manifest(path.parent, lambda said: said["features"]["logits"].update(slots=2))
    try:
        with pytest.raises(ParamsError, match="holds 2 view slots of 'logits', expected 9") as error:
            resolved(world, "star-few")
        one_line(error)
    finally:
        path.write_text(before)


@pytest.mark.cpu
def test_a_store_that_changed_since_is_refused(world: World) -> None:
    inputs = resolved(world, "star-changed")
    held = {
        name: stored.model_copy(update={"digest": {"last/train": "0"}})
        for name, stored in inputs.copies.items()
    }
    with pytest.raises(
        StaleArtifactError, match="does not hold the 'logits' that this run was resolved with"
    ):
        world.distill("star-changed", inputs.model_copy(update={"copies": held}))


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("copy", "error", "match"),
    [
        ({"teacher": "nobody", "student": "small"}, UnknownNameError, "teacher of copies.x: 'nobody'"),
        ({"teacher": "big", "student": "nobody"}, UnknownNameError, "student of copies.x: 'nobody'"),
        ({"teacher": "big", "student": "small", "weights": {"ce": 1.0}}, ParamsError, "expected ce and kd"),
        (
            {"teacher": "big", "student": "small", "temperature": 0},
            ParamsError,
            "greater than or equal to 0.01",
        ),
        ({"teacher": "big", "student": "small", "architecture": "wrn"}, ParamsError, "unknown key"),
    ],
)
def test_blocks_that_cannot_be_are_reported(
    copy: dict[str, Any], error: type[StillhouseError], match: str
) -> None:
    with pytest.raises(error, match=match) as raised:
        checks.check(PARAMS | {"copies": {"x": copy}})
    one_line(raised)
