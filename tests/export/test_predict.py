"""Predictions of a folder: the images as training has seen them, the classes as the evaluation has counted them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from error_fixtures import one_line
from PIL import Image
from training_fixtures import World

from pipeline.artifacts.hashing import file_hash
from pipeline.compute.machine import Machine
from pipeline.data.datasets import image_folder
from pipeline.data.layout import Decoding, seal
from pipeline.data.normalize import Normalize
from pipeline.data.preparation import prepare
from pipeline.data.prepared import Prepared
from pipeline.errors import DamagedArtifactError, DataError, MissingArtifactError, ParamsError
from pipeline.evaluation.forward import PlainSplit
from pipeline.export import models
from pipeline.export.prediction import images_below
from pipeline.export.preprocessing import FILE, Preprocessing
from stages import evaluate, predict

pytestmark = pytest.mark.cpu
ROOT = Path(__file__).parents[2]


def photographs(root: Path, split: str, count: int) -> None:
    """Write noisy photographs of several sizes and formats, two classes of them."""
    rng = np.random.default_rng(len(split))
    for number in range(count):
        name = ("cat", "dog")[number % 2]
        place = root / split / name / f"{number:02d}{('.png', '.jpg', '.bmp')[number % 3]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(
            0, 256, (int(rng.integers(15, 40)), int(rng.integers(15, 40)), 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(place)


def rows(out: Path) -> list[dict[str, str]]:
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def run_stage(world: World, folder: Path, out: Path, **options: Any) -> list[dict[str, str]]:
    if "model" not in options:
        student = world.path("artifacts/students/pair/kd/0")
        options = {"student": student, "params": world.path("artifacts/params")} | options
    predict.main(folder, out=out, **options)
    return rows(out)


@pytest.fixture(scope="module")
def pngs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the test images as files, in folders of ten, whose names sort as the images do."""
    folder = tmp_path_factory.mktemp("pngs")
    for number, image in enumerate(
        world.prepared.split("test").images.rows(np.arange(len(world.prepared.split("test"))))
    ):
        place = folder / f"{number // 10:02d}" / f"{number:03d}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(image[0]).save(place)
    return folder


@pytest.fixture(scope="module")
def exported(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what a file of ONNX and its preprocessing lie in; it is made without the gate."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from pipeline.export import formats
    from pipeline.export.student import Student

    folder = tmp_path_factory.mktemp("exported")
    student = Student.open(world.path("artifacts/students/pair/kd/0"), "last", world.path("artifacts/params"))
    (path,) = formats.write(student, ["onnx"], 1, folder).values()
    update = {"format": "onnx", "model": path.name, "hash": file_hash(path)}
    (path.parent / FILE).write_text(student.preprocessing.model_copy(update=update).model_dump_json())
    return path


# ------------------------------------------------------------------ what a network is shown


@pytest.mark.parametrize(("channels", "resize"), [(3, None), (3, 20), (1, 18)])
@pytest.mark.parametrize("storage", ["copied", "indexed"])
def test_files_become_what_training_reads_bit_for_bit(
    tmp_path: Path, channels: int, resize: int | None, storage: str
) -> None:
    raw = tmp_path / "raw"
    photographs(raw, "train", 6)
    photographs(raw, "val", 6)
    settings = {"path": raw, "size": 16, "channels": channels, "resize": resize, "storage": storage}
    config = image_folder.Config.model_validate(settings)
    prepare(image_folder.open_source(config), "image_folder", config, tmp_path / "prepared")
    prepared = Prepared.open(tmp_path / "prepared")

    cpu = torch.device("cpu")
    normalize = Normalize(prepared.meta.mean, prepared.meta.std, cpu)
    expected = torch.cat(list(PlainSplit.of(prepared, "test", normalize, Machine(cpu)).batches())).numpy()
    preprocessing = Preprocessing.of(prepared.meta)
    images = np.stack([preprocessing.image(path) for path in images_below(raw / "val")])
    assert np.array_equal(preprocessing.normalized(images), expected)


@pytest.mark.parametrize("storage", ["copied", "indexed"])
def test_data_say_themselves_how_their_files_were_read(tmp_path: Path, storage: str) -> None:
    """And not a params.yaml that has changed since: `resize` and `orientation` are those of the preparation."""
    raw = tmp_path / "raw"
    photographs(raw, "train", 4)
    photographs(raw, "val", 4)
    settings = {"path": raw, "size": [12, 16], "resize": [18, 20], "orientation": "apply", "storage": storage}
    config = image_folder.Config.model_validate(settings)
    prepare(image_folder.open_source(config), "image_folder", config, tmp_path / "prepared")
    meta = Prepared.open(tmp_path / "prepared").meta
    now = {"resize": 40, "orientation": "ignore", "deep": "scale"}
    for preprocessing in (Preprocessing.of(meta), Preprocessing.of(meta, now)):
        assert preprocessing.resize == (18, 20)
        assert preprocessing.decoding == Decoding(orientation="apply")


def test_older_data_go_by_the_settings_of_their_source(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    photographs(raw, "train", 4)
    photographs(raw, "val", 4)
    config = image_folder.Config.model_validate({"path": raw, "size": 12, "resize": 18})
    meta = prepare(image_folder.open_source(config), "image_folder", config, tmp_path / "prepared")
    written = json.loads((tmp_path / "prepared/meta.json").read_text())
    assert written.pop("reading") == {"resize": 18}
    written["seal"] = seal(written)
    (tmp_path / "prepared/meta.json").write_text(json.dumps(written))  # as it was before there was `reading`
    older = Prepared.open(tmp_path / "prepared").meta
    assert older == meta.model_copy(update={"reading": None, "seal": older.seal})
    assert older.sealed() == older
    old = Preprocessing.of(older, {"resize": 20, "orientation": "apply"})
    assert (old.resize, old.decoding) == (20, Decoding(orientation="apply"))
    assert Preprocessing.of(older).resize == 12


def test_data_that_are_no_files_of_any_size_say_nothing_of_reading(world: World) -> None:
    assert "reading" not in world.prepared.meta.model_dump(mode="json")


def test_files_of_a_folder_are_found_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/b/c.webp", "a-b/x.gif", ".hidden.png", ".h/x.png", "note.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in images_below(tmp_path)]
    assert found == ["a-b/x.gif", "a/b/c.webp", "a/z.JPG", "b.png"]


# ------------------------------------------------------------------ what is predicted


def test_predictions_are_those_of_the_evaluation(world: World, pngs: Path, tmp_path: Path) -> None:
    found = run_stage(world, pngs, tmp_path / "p.csv")
    predictions = tmp_path / "e.npz"
    folder = world.path("artifacts/students/pair/kd/0")
    evaluate.main(folder, out=tmp_path / "e.json", predictions=predictions, device="cpu")
    with np.load(predictions) as arrays:
        expected = arrays["last"]
    assert [row["file"] for row in found] == [f"{k // 10:02d}/{k:03d}.png" for k in range(len(expected))]
    assert [row["class"] for row in found] == [world.prepared.meta.classes[k] for k in expected]
    for row in found:
        values = [float(row[f"p_{name}"]) for name in world.prepared.meta.classes]
        assert sum(values) == pytest.approx(1, abs=1e-4)
        assert float(row["probability"]) == max(values) == float(row[f"p_{row['class']}"])


def test_an_exported_file_predicts_what_the_student_does(
    world: World, pngs: Path, exported: Path, tmp_path: Path
) -> None:
    expected = run_stage(world, pngs, tmp_path / "student.csv")
    for place in (exported, exported.parent, exported.parents[1]):
        found = run_stage(world, pngs, tmp_path / "onnx.csv", model=place)
        assert [row["class"] for row in found] == [row["class"] for row in expected]
        for one, other in zip(found, expected, strict=True):
            assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=1e-4)


def test_a_file_of_onnx_needs_no_torch(pngs: Path, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from stages import predict\n"
        f"predict.main(Path({str(pngs)!r}), out=Path({str(out)!r}), model=Path({str(exported)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(rows(out)) == len(images_below(pngs))


# ------------------------------------------------------------------ what is refused


def test_a_damaged_file_is_refused_or_skipped_and_listed(
    world: World, pngs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "images", tmp_path / "p.csv"
    folder.mkdir()
    whole = (pngs / "00/000.png").read_bytes()
    (folder / "a.png").write_bytes(whole)
    (folder / "b.png").write_bytes(whole[:-20])
    with pytest.raises(DataError) as error:
        run_stage(world, folder, out)
    one_line(error, "Cannot read the image", "b.png", "--damaged skip leaves out what cannot be read")
    assert not out.exists()
    found = run_stage(world, folder, out, damaged=predict.Damaged.SKIP)
    assert [row["file"] for row in found] == ["a.png"]
    printed = capsys.readouterr()
    assert "1 images, 1 skipped" in printed.out
    assert "b.png" in printed.err

    (folder / "a.png").unlink()
    out.unlink()
    with pytest.raises(DataError) as error:
        run_stage(world, folder, out, damaged=predict.Damaged.SKIP)
    one_line(error, "None of the 1 images of", "can be read")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_a_folder_without_images_is_refused(world: World, tmp_path: Path) -> None:
    for folder, part in ((tmp_path, "holds no images"), (tmp_path / "none", "is no folder")):
        with pytest.raises(DataError) as error:
            run_stage(world, folder, tmp_path / "p.csv")
        one_line(error, part)


def test_one_model_is_asked(world: World, pngs: Path, tmp_path: Path) -> None:
    for options in ({"student": None}, {"student": tmp_path, "model": tmp_path}):
        with pytest.raises(ParamsError) as error:
            predict.main(pngs, out=tmp_path / "p.csv", **options)
        one_line(error, "Give --student or --model, and not both.")


def test_a_file_that_has_not_passed_the_gate_is_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((exported.parent / FILE).read_bytes())
    (tmp_path / "model.onnx").write_bytes(exported.read_bytes() + b"x")
    with pytest.raises(DamagedArtifactError) as damaged:
        models.located(tmp_path)
    one_line(damaged, "model.onnx is not the file that has passed the gate")
    (tmp_path / "other.onnx").touch()
    with pytest.raises(MissingArtifactError) as missing:
        models.located(tmp_path / "other.onnx")
    one_line(missing, "is of model.onnx, not of other.onnx")
    with pytest.raises(MissingArtifactError) as missing:
        models.located(tmp_path / "slip.onnx")
    one_line(missing, "is of model.onnx, not of slip.onnx")
    shown = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(shown | {"model": "model.safetensors"}))
    with pytest.raises(ParamsError) as published:
        models.located(tmp_path)
    one_line(published, "model.safetensors is no exported file, expected one of ONNX")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingArtifactError) as missing:
        models.located(tmp_path / "empty")
    one_line(missing, "holds no exported model")


def test_a_broken_link_is_a_file_that_cannot_be_read(world: World, pngs: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "p.csv"
    (folder / "köln 雪.png").mkdir(parents=True)  # a folder, whatever its name ends in
    (folder / 'köln 雪.png/é, "1".png').write_bytes((pngs / "00/000.png").read_bytes())
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError) as error:
        run_stage(world, folder, out)
    line = one_line(error, "gone.png is a broken link", "--damaged skip")
    assert "dvc repro" not in line
    found = run_stage(world, folder, out, damaged=predict.Damaged.SKIP)
    assert [row["file"] for row in found] == ['köln 雪.png/é, "1".png']


def test_the_table_replaces_no_image(world: World, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"an image")
    with pytest.raises(ParamsError) as error:
        run_stage(world, tmp_path, tmp_path / "one.png")
    one_line(error, "one.png is an image of", "would be replaced")
    with pytest.raises(ParamsError) as error:
        run_stage(world, tmp_path, Path("/dev/null"))
    one_line(error, "/dev/null is no file")
    assert (tmp_path / "one.png").read_bytes() == b"an image"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"weights": predict.Weights.LAST}, "--weights is of a student"),
        ({"params": Path("artifacts/params")}, "--params is of a student"),
        ({"student": Path("x")}, "Give --student or --model, and not both"),
    ],
)
def test_what_an_exported_file_has_not_is_refused(tmp_path: Path, options: dict[str, Any], part: str) -> None:
    with pytest.raises(ParamsError) as error:
        predict.main(tmp_path, out=tmp_path / "p.csv", model=tmp_path / "onnx", **options)
    one_line(error, part)


def test_a_folder_is_not_replaced_by_the_table(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.png").write_bytes(b"an image")
    with pytest.raises(ParamsError) as error:
        predict.main(tmp_path / "photos", out=tmp_path / "photos", model=tmp_path / "onnx")
    assert "is a folder, expected a CSV file" in one_line(error.value)
    assert (tmp_path / "photos/one.png").read_bytes() == b"an image"
