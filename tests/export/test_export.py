"""An exported student does what the student does, on batches of any size, or is not written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from error_fixtures import one_line
from numpy.typing import NDArray
from scipy import stats
from torch import nn
from training_fixtures import World

from pipeline.artifacts import closure, publish
from pipeline.artifacts.hashing import file_hash
from pipeline.errors import (
    DamagedArtifactError,
    MachineError,
    MissingArtifactError,
    ParamsError,
    StillhouseError,
    UnknownNameError,
)
from pipeline.export import formats, gate, models
from pipeline.export.preprocessing import FILE, Preprocessing
from pipeline.export.student import Student, best_seed
from pipeline.networks.weights import load
from pipeline.params.exports import ExportParams
from stages import export

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.cpu


def run_stage(world: World, run: str, out: Path, **options: Any) -> None:
    places = {"students": world.path("artifacts/students"), "params": world.path("artifacts/params")}
    export.main(run, out=out, **(places | options))


def opened(world: World, run: str) -> Student:
    return Student.open(world.path(f"artifacts/students/{run}/0"), "last", world.path("artifacts/params"))


def images(world: World, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return test images, and the same normalized in float64."""
    pixels = world.prepared.split("test").images.rows(np.arange(count))
    meta = world.prepared.meta
    return pixels, ((pixels / 255 - meta.mean[0]) / meta.std[0]).astype(np.float32)


@pytest.fixture(scope="module")
def exported(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the export of a student with letKD's layer, in all formats."""
    out = tmp_path_factory.mktemp("exports") / "letkd"
    # What a killed export has left goes into no other.
    publish.scratch(out).mkdir()
    (publish.scratch(out) / "half.onnx").touch()
    run_stage(world, "pair/letkd", out, seed="0")
    assert {path.name for path in out.iterdir()} == {"export.json", "int8", "onnx", "program"}
    assert [path.name for path in out.parent.iterdir()] == ["letkd"]
    return out


# ------------------------------------------------------------------ what is exported


@pytest.mark.parametrize("kind", ["onnx", "program", "int8"])
@pytest.mark.parametrize("size", [1, 7])
def test_each_format_gives_the_students_logits(world: World, exported: Path, kind: str, size: int) -> None:
    network, _ = load(world.path("artifacts/students/pair/letkd/0/weights"))
    _, batch = images(world, size)
    with torch.no_grad():
        expected = network(torch.from_numpy(batch)).numpy()
    scores = models.opened(exported / models.FILES[kind])(batch)
    assert scores.shape == (size, 10)
    # int8 has 256 values for the range of a map; the others differ by rounding in float32.
    np.testing.assert_allclose(scores, expected, rtol=0, atol=0.3 if kind == "int8" else 1e-5)


def test_layers_that_stay_at_inference_are_exported(world: World, exported: Path) -> None:
    network, _ = load(world.path("artifacts/students/pair/letkd/0/weights"))
    _, batch = images(world, 7)
    scores = models.opened(exported / models.FILES["onnx"])(batch)
    assert list(network.inserted) == ["stage2"]
    network.inserted.clear()
    with torch.no_grad():
        without = network(torch.from_numpy(batch)).numpy()
    assert np.abs(scores - without).max() > 1e-3


def test_a_projector_and_the_teachers_classifier_are_exported(world: World) -> None:
    student = opened(world, "pair/simkd")
    assert list(student.network.inserted) == ["final"]
    module = formats.program(student.network, student.preprocessing.shape, "x").module()
    _, batch = images(world, 5)
    with torch.no_grad():
        torch.testing.assert_close(module(torch.from_numpy(batch)), student.network(torch.from_numpy(batch)))


def test_int8_is_smaller_and_integers(exported: Path) -> None:
    import onnx

    graph = onnx.load(exported / models.FILES["int8"]).graph
    kinds = {x.data_type for x in graph.initializer if len(x.dims) == 4}
    assert kinds == {onnx.TensorProto.INT8}
    sizes = [(exported / models.FILES[kind]).stat().st_size for kind in ("int8", "onnx")]
    assert sizes[0] < sizes[1]


class _Outlier(nn.Module):
    """Sums as transformers have them: one number of a token is far larger than all others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)
        self.register_buffer("outlier", torch.tensor([500.0] + [0.0] * 15))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.sigmoid(self.first(image.flatten(1))) + self.outlier
        return self.last(torch.sin(hidden))


def test_int8_keeps_sums_with_an_outlier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = _Outlier().eval()
    graph, path = tmp_path / "graph.onnx", tmp_path / "int8.onnx"
    formats.write_onnx(formats.program(network, (1, 8, 8), "x"), graph, "x")
    batch = torch.randn(64, 1, 8, 8)
    formats.write_int8(graph, path, [batch.numpy()])
    with torch.no_grad():
        expected = network(batch).numpy()
    # Of a step of 500 / 255 for the sum nothing would be left of numbers between 0 and 1. Weights of 8 bits saturate in
    # products on x86 without VNNI: the error was 0.7 there.
    np.testing.assert_allclose(models.opened(path)(batch.numpy()), expected, rtol=0, atol=0.05)


def test_calibration_images_are_training_images(world: World) -> None:
    student = opened(world, "pair/kd")
    batches = np.concatenate(list(formats.calibration_images(student, 50)))
    assert batches.shape == (50, 1, 8, 8)
    assert np.array_equal(batches, np.concatenate(list(formats.calibration_images(student, 50))))
    split = world.prepared.split("train")
    every = student.preprocessing.normalized(split.images.rows(np.arange(len(split))))
    known = {image.tobytes() for image in every}
    assert all(image.tobytes() in known for image in batches)
    whole = np.concatenate(list(formats.calibration_images(student, 10**6)))
    assert np.array_equal(whole, every)


def test_each_format_has_its_preprocessing(world: World, exported: Path) -> None:
    meta = world.prepared.meta
    for kind, file in models.FILES.items():
        place = exported / file
        found = Preprocessing.model_validate_json((place.parent / FILE).read_text())
        assert (found.format, found.model, found.hash) == (kind, place.name, file_hash(place))
        assert (found.mode, found.shape, found.resize) == ("L", (1, 8, 8), 8)
        assert (found.mean, found.std, found.classes) == (meta.mean, meta.std, meta.classes)
    assert models.located(exported / "int8/model.onnx")[0] == exported / "int8/model.onnx"
    assert models.located(exported)[0] == models.located(exported / "onnx")[0] == exported / "onnx/model.onnx"


def test_a_program_may_run_code_and_is_opened_by_the_gate_alone(exported: Path) -> None:
    for place in (exported / "program", exported / models.FILES["program"]):
        with pytest.raises(ParamsError) as error:
            models.located(place)
        one_line(error, "is a program of torch.export, and to load one may run code")


def test_the_record_has_what_the_gate_has_found(world: World, exported: Path) -> None:
    record = json.loads((exported / "export.json").read_text())
    metrics = record["gate"]
    assert metrics.keys() == {"student", "onnx", "program", "int8"}
    network, _ = load(world.path("artifacts/students/pair/letkd/0/weights"))
    split = world.prepared.split("test")
    _, batch = images(world, len(split))
    with torch.no_grad():
        right = network(torch.from_numpy(batch)).argmax(dim=1).numpy() == split.labels
    assert metrics["student"]["top1"] == pytest.approx(100 * right.mean())
    for kind in ("onnx", "program"):
        assert metrics[kind]["agreement"] == 100
        assert metrics[kind]["largest_difference"] < 1e-4
    for kind, found in metrics.items():
        assert found["latency_ms"] > 0
        assert kind == "student" or found["bytes"] == (exported / models.FILES[kind]).stat().st_size


def test_no_path_of_this_machine_is_exported(world: World, exported: Path) -> None:
    """Neither the code's, which torch would write beside each operation, nor the student's."""
    found = json.loads((exported / "export.json").read_text())
    assert found["student"] == "pair/letkd/0"
    ours = [str(world.root), str(Path(torch.__file__).parents[1]), str(closure.root()), "network.py"]
    files = [path for path in exported.rglob("*") if path.is_file()]
    assert len(files) == 7
    for path in files:
        content = path.read_bytes()
        assert not [text for text in ours if text.encode() in content], path


def test_int8_alone_leaves_no_graph_that_it_was_made_from(
    world: World, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = exported / models.FILES["onnx"]
    monkeypatch.setattr(formats, "write_onnx", lambda program, path, what: shutil.copy(graph, path))
    formats.write(opened(world, "pair/letkd"), ["int8"], 20, tmp_path)
    assert [str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*") if x.is_file()] == ["int8/model.onnx"]


# ------------------------------------------------------------------ the gate


def test_nothing_is_written_where_an_export_is_not_the_student(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = formats.program

    def tampered(network: Any, *others: Any) -> Any:
        changed, _ = load(world.path("artifacts/students/pair/kd/0/weights"))
        with torch.no_grad():
            changed.classifier.bias[3] += 0.5
        return whole(changed, *others)

    monkeypatch.setattr(formats, "program", tampered)
    with pytest.raises(gate.GateError) as error:
        run_stage(world, "pair/kd", tmp_path / "kd", formats="program", seed="0")
    one_line(
        error, "pair/kd/0 as program differs from the student: its logits by 0.5 ", "Nothing was written."
    )
    assert list(tmp_path.iterdir()) == []

    former = tmp_path / "kd" / "export.json"
    former.parent.mkdir()
    former.write_text("{}")
    with pytest.raises(gate.GateError):
        run_stage(world, "pair/kd", tmp_path / "kd", formats="program", seed="0")
    assert former.read_text() == "{}"  # what had passed the gate before is still there
    assert sorted(tmp_path.rglob("*")) == [former.parent, former]


def test_a_comparison_is_that_of_plain_formulas() -> None:
    rng = np.random.default_rng(0)
    student = rng.normal(size=(200, 5)).astype(np.float32)
    other = student + rng.normal(size=(200, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 200)
    found = gate.compare(student, other, labels)
    own, theirs = student.argmax(1), other.argmax(1)
    assert found.largest_difference == pytest.approx(
        max(abs(float(a) - float(b)) for a, b in zip(student.flat, other.flat, strict=True))
    )
    assert found.share_of_largest == pytest.approx(found.largest_difference / np.abs(student).max())
    assert found.agreement == pytest.approx(100 * sum(a == b for a, b in zip(own, theirs, strict=True)) / 200)
    changes = 100.0 * (theirs == labels) - 100.0 * (own == labels)
    assert found.top1_change == pytest.approx(changes.mean())
    low, high = stats.t.interval(0.95, 199, changes.mean(), stats.sem(changes))
    assert found.top1_interval == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("kind", "change", "part"),
    [
        ("onnx", {"share_of_largest": 2e-4}, "0.0002 of the largest one, expected 0.0001 at most"),
        ("program", {"agreement": 99.5}, "99.50 % of its classes agree, expected 99.9 % at least"),
        ("int8", {"top1_change": -1.5, "top1_interval": (-2.0, -1.0)},
         "-1.50 points (-2.00 to -1.00 at 95 %), expected a loss of 1 at most"),
        ("int8", {"largest_difference": float("nan")}, "logits that are not finite"),
    ],
)  # fmt: skip
def test_what_is_above_the_tolerance_is_refused(kind: str, change: dict[str, Any], part: str) -> None:
    good = {"largest_difference": 1e-5, "share_of_largest": 1e-5, "agreement": 100.0, "top1": 90.0,
            "top1_change": 0.0, "top1_interval": (0.0, 0.0)}  # fmt: skip
    gate.check(kind, gate.Comparison(**good), ExportParams(), "x")
    with pytest.raises(gate.GateError) as error:
        gate.check(kind, gate.Comparison(**(good | change)), ExportParams(), "x")
    one_line(error, part)


def test_int8_may_differ_in_logits_and_gain() -> None:
    far = gate.Comparison(1.0, 0.1, 95.0, 90.0, 2.0, (1.0, 3.0))
    gate.check("int8", far, ExportParams(), "x")


# ------------------------------------------------------------------ which student


def histories(folder: Path, world: World, top1: dict[int, list[float]]) -> Path:
    """Write students that have these histories and nothing else that is theirs."""
    for seed, values in top1.items():
        place = folder / str(seed)
        place.mkdir(parents=True)
        (place / "history.csv").write_text(
            "epoch,top1\n" + "".join(f"{k},{x}\n" for k, x in enumerate(values))
        )
        training = json.loads(world.path("artifacts/students/pair/kd/0/training.json").read_text())
        training["history"] = file_hash(place / "history.csv")
        (place / "training.json").write_text(json.dumps(training))
    return folder


def test_the_best_seed_is_by_the_last_or_the_best_epoch(world: World, tmp_path: Path) -> None:
    folder = histories(tmp_path, world, {0: [50.0, 60.0], 1: [90.0, 61.0], 10: [10.0, 61.0]})
    assert best_seed(folder, [0, 10, 1], "last") == 1  # of equals the lowest
    assert best_seed(folder, [0, 1, 10], "best") == 1
    assert best_seed(folder, [0, 10], "best") == 10
    (folder / "10/history.csv").write_text("epoch,top1\n0,99\n")
    with pytest.raises(DamagedArtifactError, match=r"history.csv is not the file that its training left"):
        best_seed(folder, [0, 10], "best")


@pytest.mark.parametrize(
    ("run", "options", "error", "part"),
    [
        ("kd", {}, ParamsError, "'kd' is no run, expected PAIR/RUN"),
        ("pair/../kd", {}, ParamsError, "is no run"),
        ("pair/kdd", {}, UnknownNameError, "Unknown run 'pair/kdd'. Did you mean 'pair/kd'?"),
        ("pair/kd", {"seed": "7"}, UnknownNameError, "Unknown seed of pair/kd: '7'. Known: 0, 1."),
        ("pair/simkd", {"seed": "1"}, MissingArtifactError, "pair/simkd/1/training.json does not exist"),
        ("pair/kd", {"seed": "worst"}, ParamsError, "options: 'seed' is 'worst'"),
        ("pair/kd", {"formats": "onnx,onnx"}, ParamsError, "It has 'onnx' twice"),
        ("pair/kd", {"formats": "tflite"}, ParamsError, "'tflite'. Input should be 'onnx', 'program' or 'int8'"),
        ("pair/kd", {"weights": "first"}, ParamsError, "Input should be 'last' or 'best'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_costs_nothing(
    world: World, tmp_path: Path, run: str, options: dict[str, Any], error: type[StillhouseError], part: str
) -> None:
    with pytest.raises(error) as refused:
        run_stage(world, run, tmp_path / "out", **options)
    one_line(refused, part)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_export_is_not_replaced(world: World, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ParamsError) as error:
        run_stage(world, "pair/kd", tmp_path, seed="0")
    one_line(error, "is there, and is no export")
    assert (tmp_path / "mine.txt").exists()


def test_weights_of_another_training_are_not_exported(world: World, tmp_path: Path) -> None:
    run = tmp_path / "students/pair/kd"
    shutil.copytree(world.path("artifacts/students/pair/kd"), run)
    shutil.copy(run / "1/weights/last.safetensors", run / "0/weights/last.safetensors")
    with pytest.raises(
        DamagedArtifactError, match=r"last.safetensors is not the file that its training left"
    ):
        run_stage(world, "pair/kd", tmp_path / "out", seed="0", students=tmp_path / "students")
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError) as error:
        run_stage(world, "pair/kd", tmp_path / "out", seed="0")
    one_line(error, "needs onnx, which is not installed. Install it with: pip install -e '.[export]'")


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ParamsError) as error:
        formats.program(Branching(), (1, 8, 8), "Network 'b' of folder")
    one_line(error, "Network 'b' of folder cannot be exported: torch.export says: ")


def test_the_block_of_an_export_has_its_code_and_settings(world: World) -> None:
    block = json.loads(world.path("artifacts/params/exports/pair/kd.json").read_text())
    assert (block["stage"], block["student"]) == ("export@pair/kd", "pair/kd")
    assert block["seeds"] == [0, 1]
    assert block["settings"] == ExportParams(formats=("onnx",)).model_dump(mode="json")
    files = {path.as_posix() for path in closure.closure(["stages.export"])}
    assert {f"pipeline/export/{name}.py" for name in ("export", "formats", "gate", "models")} <= files
    assert block["code_hash"] == closure.digest(["stages.export"])
    for stage in ("distill", "evaluate", "report", "train_teacher"):
        assert not any("export/" in path.as_posix() for path in closure.closure([f"stages.{stage}"]))
