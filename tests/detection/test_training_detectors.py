"""A tiny detector on a few tiny images: it learns, resumes bit for bit, and is evaluated by its stage."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from error_fixtures import one_line

from pipeline.artifacts.hashing import file_hash
from pipeline.compute.machine import Machine
from pipeline.data.datasets import shapes
from pipeline.data.normalize import Normalize
from pipeline.detection.detector import build
from pipeline.detection.detector_settings import DetectorSettings
from pipeline.detection.images import BoxImages
from pipeline.detection.preparation import prepare as prepare_data
from pipeline.detection.prepared import Prepared
from pipeline.detection.spec import DetectorBlock
from pipeline.detection.views import BoxSpace
from pipeline.detection.weights import load
from pipeline.errors import MachineError
from pipeline.networks import own_weights
from pipeline.params.detection import ScaleFlip
from pipeline.params.recipe import Recipe
from pipeline.params.weights import WeightsFile
from pipeline.training import checkpoint, detectors
from pipeline.training.box_batches import BoxBatches

pytest.importorskip("pycocotools")
CPU = Machine(torch.device("cpu"))
VIEWS = ScaleFlip(space="scale_flip", short=(48, 64), longest=96)
SETTINGS = DetectorSettings(
    pyramid_width=16, head_width=16, smallest_anchor=8, proposals=20, sampled_anchors=32, sampled_proposals=16
)
BLOCK = DetectorBlock(
    stage="train_teacher@tiny",
    teacher="tiny",
    dataset="shapes",
    network="faster_rcnn_resnet10x0.25",
    settings=SETTINGS,
    seed=3,
    recipe=Recipe(iterations=9, batch_size=2, learning_rate=0.02, milestones=(8,), warmup=3, clip=5.0),
    anchors=(0.5,),
    views=VIEWS,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boxes") / "data"
    config = shapes.Config(train=6, test=3, smallest=48, largest=72)
    prepare_data(shapes.open_source(config), "shapes", config, folder)
    return folder


def block_in(folder: Path, **changes: Any) -> Path:
    path = folder / "train.json"
    path.write_text(json.dumps(BLOCK.model_copy(update=changes).model_dump(mode="json")))
    return path


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    detectors.train_teacher(block_in(folder), data, folder / "out", CPU)
    return folder / "out"


def batches(data: Path, seed: int = 0) -> BoxBatches:
    prepared = Prepared.open(data)
    normalize = Normalize(prepared.meta.mean, prepared.meta.std, CPU.device)
    images = BoxImages(prepared.splits["train"], BoxSpace(VIEWS), normalize, CPU.device)
    return BoxBatches(images, seed, batch_size=4)


def test_a_training_leaves_weights_history_and_terms(trained: Path) -> None:
    rows = list(csv.DictReader((trained / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    terms = ["loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(sum(float(row[term]) for term in terms), rel=1e-5)
        assert 0 <= float(row["AP"]) <= float(row["AP50"]) <= 100
    assert float(rows[-1]["learning_rate"]) == pytest.approx(0.002)
    names = {path.stem for path in (trained / "weights").glob("*.safetensors")}
    assert names == {"init", "last", "best", "anchor_050"}


def test_weights_are_those_of_the_detector_that_its_json_builds(trained: Path) -> None:
    first, spec = load(trained / "weights", "init")
    drawn = build(BLOCK.network, 3, BLOCK.seed, SETTINGS)
    assert spec.classes == 3
    for name, x in drawn.state_dict().items():
        assert torch.equal(x, first.state_dict()[name]), name


def test_a_training_may_start_from_a_file_and_then_keeps_its_norms(data: Path, tmp_path: Path) -> None:
    frozen = SETTINGS.model_copy(update={"norm": "frozen"})
    other = build(BLOCK.network, 3, 5, frozen)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    file = WeightsFile(path=str(tmp_path / "other.pt"), sha256=own_weights.sha256(str(tmp_path / "other.pt")))
    detectors.train_teacher(block_in(tmp_path, weights=file), data, tmp_path / "out", CPU)

    first, _ = load(tmp_path / "out/weights", "init")
    last, spec = load(tmp_path / "out/weights", "last")
    assert (spec.settings.norm, spec.settings.frozen_stages) == ("frozen", 2)
    for name, x in other.state_dict().items():
        assert torch.equal(x, first.state_dict()[name]), name
        trained = not name.startswith(("model.backbone.body.conv1", "model.backbone.body.layer1")) and (
            ".bn" not in name and "downsample.1" not in name
        )
        assert torch.equal(x, last.state_dict()[name]) is not trained, name


def test_a_resumed_training_ends_in_the_same_bits(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    save = checkpoint.save

    def save_and_die(*arguments: Any) -> None:
        save(*arguments)
        raise KilledError

    monkeypatch.setattr("pipeline.training.loop.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "save", save_and_die)
    path = block_in(tmp_path)
    for _ in range(2):
        with pytest.raises(KilledError):
            detectors.train_teacher(path, data, tmp_path / "out", CPU)
    monkeypatch.setattr(checkpoint, "save", save)
    detectors.train_teacher(path, data, tmp_path / "out", CPU)
    for name in ("init", "last", "best", "anchor_050"):
        file = f"weights/{name}.safetensors"
        assert file_hash(tmp_path / "out" / file) == file_hash(trained / file)


def test_order_and_views_follow_from_seed_epoch_and_sample(data: Path) -> None:
    one, other = batches(data), batches(data)
    feed = other.feed(fixed=False)
    feed.start(7)  # what ran before changes nothing
    feed.advance(0)
    for epoch in (0, 1):
        own = one.feed(fixed=False)
        own.start(epoch)
        feed.start(epoch)
        seen: list[int] = []
        for number in range(len(one)):
            own.advance(number)
            feed.advance(number)
            a, b = own.views(number), feed.views(number)
            assert torch.equal(a.index, b.index)
            seen += a.index.tolist()
            for x, y, s, t in zip(a.images, b.images, a.targets, b.targets, strict=True):
                assert torch.equal(x, y)
                assert torch.equal(s.boxes, t.boxes)
        assert sorted(seen) == list(range(6))
    assert [x.tolist() for x in one.parts(0)] != [x.tolist() for x in batches(data, seed=1).parts(0)]


def test_a_sample_shows_all_its_views_before_it_repeats_one(data: Path) -> None:
    own = batches(data)
    rows = torch.arange(6)
    ids = torch.stack([own.images.ids(own.slot(epoch), rows) for epoch in range(4)])
    assert all(sorted(column) == [0, 1, 2, 3] for column in ids.T.tolist())


def test_the_last_epoch_is_evaluated_and_twenty_or_so_in_all(data: Path, tmp_path: Path) -> None:
    job = detectors.Job(tmp_path, CPU, "a", "long", "train_teacher@long")
    prepared, recipe = Prepared.open(data), Recipe(epochs=50, batch_size=4, milestones=())
    training = detectors.prepare(job, BLOCK.spec(prepared.meta), recipe, prepared, 0, {}).training
    assert [epoch for epoch in range(1, 51) if training.evaluated(epoch)] == [*range(3, 50, 3), 50]


def test_the_stage_evaluates_a_detector(trained: Path, data: Path, tmp_path: Path) -> None:
    from stages import evaluate

    out, predictions = tmp_path / "metrics.json", tmp_path / "predictions.npz"
    evaluate.main(trained, out, predictions, data, "cpu")
    metrics = json.loads(out.read_text())
    last = list(csv.DictReader((trained / "history.csv").read_text().splitlines()))[-1]
    assert metrics["AP"] == pytest.approx(float(last["AP"]))
    assert metrics["network"] == BLOCK.network
    with np.load(predictions, allow_pickle=False) as file:
        arrays = dict(file)
    split = Prepared.open(data).splits["test"]
    assert str(arrays["fingerprint"]) == split.fingerprint
    for name in ("last", "best"):
        assert len(arrays[f"{name}_offsets"]) == len(split) + 1
        assert arrays[f"{name}_offsets"][-1] == len(arrays[f"{name}_scores"]) == len(arrays[f"{name}_boxes"])
    # In the images' own pixels, not in those that the detector saw.
    for row, (height, width) in enumerate(split.sizes.tolist()):
        boxes = arrays["last_boxes"][slice(*arrays["last_offsets"][row : row + 2])]
        assert (boxes <= [width + 1e-3, height + 1e-3, width + 1e-3, height + 1e-3]).all()


@pytest.mark.parametrize(("processes", "compiled"), [(2, False), (1, True)])
def test_options_that_detectors_lack(processes: int, compiled: bool) -> None:
    with pytest.raises(MachineError) as error:
        detectors.check_options(processes, compiled=compiled)
    one_line(error, "Detectors", "Unset STILLHOUSE_")
