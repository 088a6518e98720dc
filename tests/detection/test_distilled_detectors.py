"""Detectors that learn from a detector: mimicry of a map, channels matched first (KCD), and what is refused."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_fixtures import DETECTOR, MIMICRY, NETWORK, PROJECT, SETTINGS, TAPS, shapes, tiny_data
from error_fixtures import one_line
from scipy.optimize import linear_sum_assignment

from pipeline import seeding
from pipeline.artifacts import closure, publish
from pipeline.artifacts.hashing import file_hash
from pipeline.compute.machine import Machine
from pipeline.detection.architecture import architecture
from pipeline.detection.detector import Detector, build
from pipeline.detection.prepared import Prepared
from pipeline.detection.weights import load
from pipeline.distillation import map_lesson
from pipeline.distillation.methods import mimicry
from pipeline.errors import MachineError, ParamsError, StaleArtifactError, StillhouseError
from pipeline.matching.matching import Matching
from pipeline.params import tasks
from pipeline.params.recipe import Epoch
from pipeline.runs.blocks import blocks
from pipeline.runs.check import check, project
from pipeline.runs.planning import Plan, plan
from pipeline.training import checkpoint
from pipeline.training.box_batches import BoxViews
from pipeline.training.detector_distillation import Distillation
from pipeline.training.detectors import Losses
from pipeline.training.step import Clock
from stages import distill, evaluate, inputs, match_channels, pretrain_student, student_inputs, train_teacher
from stages import publish as publish_student

pytest.importorskip("pycocotools")
Params = dict[str, Any]
CPU = Machine(torch.device("cpu"))
SEVERAL = {
    "source": "online",
    "methods": {
        "at": {"places": {"stage3": "stage3", "stage4": "stage4"}},
        "fitnet": {"student_tap": "stage3", "teacher_feature": "stage4"},
    },
}
PARAMS: Params = PROJECT | {
    "seeds": [0],
    "recipes": {"quick": {"iterations": 6, "batch_size": 2, "learning_rate": 0.02, "milestones": []}},
    "runs": PROJECT["runs"] | {"several": SEVERAL},
    "distill": [*PROJECT["distill"], "pair/several"],
}


@dataclass(frozen=True)
class World:
    """A project whose stages have run as far as distill.

    Attributes:
        folder: where it lies.
    """

    folder: Path

    def inputs(self, run: str) -> Path:
        return self.folder / f"inputs/pair/{run}/0.json"

    def student(self, run: str) -> Path:
        """Return a distilled student, trained if it is not there."""
        out = self.folder / "students" / run
        if not out.exists():
            distill.main([self.inputs(run)], [out], device="cpu")
        return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    data, code, params = folder / "prepared/toys", folder / "code", folder / "params"
    tiny_data(data)
    for stage, module in tasks.modules().items():
        publish.write_json(code / f"detection/{stage}.json", closure.code_hashes([module]))
    made = project(PARAMS)
    for name, block in blocks(made).items():
        publish.write_json(params / f"{name}.json", block.model_dump(mode="json"))
    for run in blocks(made)["pairs/pair"].model_dump()["runs"].values():
        for plug in run["plugins"]:
            module = f"pipeline.distillation.{plug.replace('/', '.')}"
            publish.write_json(code / f"{plug}.json", closure.code_hashes([module]))

    train_teacher.main(params / "teachers/finder/train.json", data, folder / "teacher", device="cpu")
    student_inputs.main(params / "students/small.json", data, code, folder / "small.json")
    pretrain_student.main([folder / "small.json"], [0], [folder / "alone/0"], device="cpu")
    weights, nothing = folder / "teacher/weights", folder / "nothing"
    matchings = folder / "matchings/own"
    match_channels.main(
        params / "matchings/pair.json", folder / "prepared", folder / "alone", weights, nothing, matchings,
        folder / "matchings.json", device="cpu",
    )  # fmt: skip
    inputs.main(
        params / "pairs/pair.json", folder / "prepared", weights, nothing, nothing, nothing, nothing,
        folder / "matchings", nothing, code, folder / "inputs/pair",
    )  # fmt: skip
    return World(folder)


def detector(seed: int) -> Detector:
    return build(NETWORK, 2, seed, SETTINGS)


def objective(student: Detector, teacher: Detector, weight: float) -> Distillation:
    taps = architecture(NETWORK, SETTINGS).taps
    config = mimicry.Config(**TAPS, reduction="sum", weights={"ce": 1.0, "mimic": weight})
    method = mimicry.Method(config, map_lesson.context(taps, taps))
    tap = ("stage4_pre",)
    return Distillation(Losses(student, CPU, 3), teacher, method, None, taps=tap, features=tap, seed=3)


def test_loss_and_gradients_are_torchvisions_and_the_squared_distance_of_the_maps() -> None:
    images, targets = shapes(3)
    student, teacher = detector(0).train(), detector(1)
    made = objective(student, teacher, 0.01)
    made.start(Epoch("main", 2, 5))
    loss, terms = made(BoxViews(torch.arange(3), images, targets), {}, Clock.on(CPU.device))
    loss.backward()

    # The same by torchvision's own model, and by a loop over the pixels of each image.
    plain = detector(0).train()
    learned = [{"boxes": each.boxes, "labels": each.labels + 1} for each in targets]
    with seeding.scope(3, "boxes", 2, 0):
        losses = plain.model(images, learned)
    ours, theirs = (x.maps(images, ["stage4_pre"])["stage4_pre"] for x in (plain, detector(1).eval()))
    distance = torch.zeros(())
    for image, s, t in zip(images, ours, theirs.detach(), strict=True):
        rows, columns = -(-image.shape[1] // 32), -(-image.shape[2] // 32)
        distance = distance + ((s[:, :rows, :columns] - t[:, :rows, :columns]) ** 2).sum() / 3
    expected = sum(losses.values()) + 0.01 * distance
    expected.backward()

    assert list(terms) == [*losses, "mimic"]
    torch.testing.assert_close(terms["mimic"], distance, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    reached = 0
    for (name, x), y in zip(student.named_parameters(), plain.parameters(), strict=True):
        assert (x.grad is None) == (y.grad is None), name
        if x.grad is not None and y.grad is not None:
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-4 * float(y.grad.abs().max()))
            reached += name.startswith("model.backbone.body")
    assert reached
    assert all(x.grad is None for x in teacher.parameters())


def test_mimicry_alone_moves_the_backbone_and_nothing_behind_it() -> None:
    images, targets = shapes(2)
    student, teacher = detector(0).train(), detector(1)
    made = objective(student, teacher, 1.0)
    _, terms = made(BoxViews(torch.arange(2), images, targets), {}, Clock.on(CPU.device))
    terms["mimic"].backward()
    moved = {name for name, x in student.named_parameters() if x.grad is not None and x.grad.any()}
    assert moved
    assert all(name.startswith("model.backbone.body") for name in moved)
    assert not teacher.training


def test_levels_of_another_detectors_pyramid_are_told_from_the_padding_by_their_own_strides() -> None:
    images, targets = shapes(2)
    # Both of a stride of 8 pixels: RetinaNet's pyramid starts a stage later.
    student, teacher = detector(0).train(), build("retinanet_resnet10x0.25", 2, 1, SETTINGS)
    ours, theirs = architecture(NETWORK, SETTINGS).taps, architecture(teacher.network, SETTINGS).taps
    config = mimicry.Config(student_tap="fpn1", teacher_feature="fpn0", reduction="sum")
    method = mimicry.Method(config, map_lesson.context(ours, theirs))
    made = Distillation(
        Losses(student, CPU, 3), teacher, method, None, taps=("fpn1",), features=("fpn0",), seed=3
    )
    _, terms = made(BoxViews(torch.arange(2), images, targets), {}, Clock.on(CPU.device))

    distance = torch.zeros(())
    one, two = detector(0).train().maps(images, ["fpn1"])["fpn1"], teacher.maps(images, ["fpn0"])["fpn0"]
    for image, a, b in zip(images, one, two, strict=True):
        rows, columns = -(-image.shape[1] // 8), -(-image.shape[2] // 8)
        distance = distance + ((a[:, :rows, :columns] - b[:, :rows, :columns]) ** 2).sum() / 2
    torch.testing.assert_close(terms["mimic"], distance, rtol=1e-5, atol=0)


def test_the_matching_is_that_of_a_plain_reference_on_the_same_pixels(world: World) -> None:
    matching = Matching.load(world.folder / "matchings/own/kcd/0.npz", "")
    teacher, student = load(world.folder / "teacher/weights")[0], load(world.folder / "alone/0/weights")[0]
    prepared = Prepared.open(world.folder / "prepared/toys")
    split, meta = prepared.splits["train"], prepared.meta
    a, b = [], []
    for row in range(len(split)):
        image = split.image(row)
        scale = 48 / min(image.size)
        assert max(image.size) * scale <= 96
        size = round(image.width * scale), round(image.height * scale)
        x = np.asarray(image.resize(size, 2), dtype=np.float32) / 255
        x = (x - np.float32(meta.mean)) / np.float32(meta.std)
        for found, network in ((a, teacher), (b, student)):
            with torch.no_grad():
                seen = network.maps([torch.from_numpy(x).permute(2, 0, 1)], ["stage4_pre"])["stage4_pre"][0]
            inside = seen[:, : -(-size[1] // 32), : -(-size[0] // 32)]
            found.append(inside.flatten(1).double().numpy())
    one, two = np.concatenate(a, axis=1), np.concatenate(b, axis=1)
    m = np.corrcoef(one, two)[: len(one), len(one) :]
    with np.load(world.folder / "matchings/own/kcd/measured/0.npz") as file:
        np.testing.assert_allclose(file["matrix"], m, atol=1e-4)
    rows, columns = linear_sum_assignment(m, maximize=True)
    np.testing.assert_array_equal(matching.arrays["permutation"][0][columns], rows)

    numbers = json.loads((world.folder / "matchings.json").read_text())["kcd"]["0"]
    assert numbers["pixels"] == one.shape[1]
    assert numbers["gamma"]["bipartite"] == pytest.approx(m[rows, columns].sum(), abs=1e-3)
    assert numbers["gamma"]["bipartite"] >= max(numbers["gamma"][name] for name in ("identity", "random"))


@pytest.mark.parametrize("run", ["mimic", "kcd", "several"])
def test_a_student_is_distilled_and_evaluated_beside_its_teacher(
    run: str, world: World, tmp_path: Path
) -> None:
    folder = world.student(run)
    init, alone = (load(x / "weights", "init")[0] for x in (folder, world.folder / "alone/0"))
    assert all(torch.equal(x, alone.state_dict()[name]) for name, x in init.state_dict().items())
    header, *rows = (folder / "history.csv").read_text().splitlines()
    assert len(rows) == 2
    own = {"mimic"} if run != "several" else {"attention", "hint"}
    assert {"loss_classifier", "loss_rpn_box_reg", *own} <= set(header.split(","))
    assert "ce" not in header.split(",")

    evaluate.main(folder, tmp_path / "metrics.json", tmp_path / "found.npz", device="cpu")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["pair"], metrics["run"], metrics["teacher"], metrics["seed"]) == (
        "pair",
        run,
        "finder",
        0,
    )
    assert 0 <= metrics["AP"] <= 100
    assert ("teacher_l2" in metrics) == (run != "several")


def test_channels_of_the_teacher_are_moved_to_their_places(world: World) -> None:
    histories = [(world.student(run) / "history.csv").read_text().splitlines() for run in ("mimic", "kcd")]
    column = histories[0][0].split(",").index("mimic")
    one, two = (float(lines[1].split(",")[column]) for lines in histories)
    permutation = Matching.load(world.folder / "matchings/own/kcd/0.npz", "").arrays["permutation"][0]
    assert permutation.tolist() != list(range(len(permutation)))
    assert one != two


def test_a_resumed_distillation_ends_in_the_same_bits(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    save = checkpoint.save

    def save_and_die(*arguments: object) -> None:
        save(*arguments)
        raise KilledError

    whole = world.student("several")  # whose regressor is checkpointed too
    monkeypatch.setattr("pipeline.training.loop.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(KilledError):
        distill.main([world.inputs("several")], [tmp_path / "out"], device="cpu")
    monkeypatch.setattr(checkpoint, "save", save)
    distill.main([world.inputs("several")], [tmp_path / "out"], device="cpu")
    for name in ("init", "last", "best"):
        file = f"weights/{name}.safetensors"
        assert file_hash(tmp_path / "out" / file) == file_hash(whole / file)


def test_a_teacher_or_a_matching_that_is_another_is_refused(world: World, tmp_path: Path) -> None:
    content = json.loads(world.inputs("kcd").read_text())
    for change in ({"weights": "0"}, {"matchings": {"kcd": [content["matchings"]["kcd"][0], "0"]}}):
        publish.write_json(tmp_path / "inputs.json", content | change)
        with pytest.raises(StaleArtifactError) as error:
            distill.main([tmp_path / "inputs.json"], [tmp_path / "out"], device="cpu")
        one_line(error, "is not the file that this run was resolved with")
    with pytest.raises(MachineError) as refused:
        distill.main([world.inputs("kcd")], [tmp_path / "out"], device="cpu", processes=2)
    one_line(refused, "one process")


def test_a_detector_is_not_published(world: World, tmp_path: Path) -> None:
    (tmp_path / "params").symlink_to(world.folder / "params")
    with pytest.raises(ParamsError) as error:
        publish_student.main("pair/kcd", out=tmp_path / "out", artifacts=tmp_path)
    one_line(error, "The student of pair/kcd finds boxes")


def run_of(**changes: Any) -> Params:
    """Return the params with a single run of other settings."""
    content = deepcopy(PARAMS)
    content["runs"] = {"run": {"source": "online", "methods": MIMICRY} | changes}
    content["distill"] = ["pair/run"]
    return content


LAST = {"permutation": {"features": ["stage4_pre"]}}
REFUSED: list[tuple[Params, tuple[str, ...]]] = [
    (run_of(source="cached"), ("runs.run reads a store", "source: online")),
    (run_of(schedule={"anchors": {"anchors": ["anchor_050"]}}), ("runs.run.schedule is anchors", "final alone")),
    (run_of(transform="logit_standardization"), ("runs.run.transform is logit_standardization",)),
    (run_of(slots=3), ("runs.run.slots is 3",)),
    (run_of(views="plain"), ("runs.run.views is set",)),
    (run_of(methods={"kd": {}}), ("Unknown map of the teacher, which finds boxes: 'logits'",)),
    (run_of(methods={"mimicry": {}}), ("Unknown map of the student, which finds boxes: 'final'",)),
    (run_of(methods={"rkd": {}}), ("which finds boxes: 'pooled'",)),
    (run_of(methods={"dsn": {}}), ("A method builds on the student's own layers",)),
    (run_of(methods={"mimicry": TAPS | {"student_tap": "stage3"}}), ("Mimicry pairs equal shapes",)),
    (
        run_of(methods={"fitnet": {"student_tap": "fpn1", "teacher_feature": "stage4"}}),
        ("The methods fit maps of one size", "Choose taps of one stride"),
    ),
    (run_of(methods={"ab": {}}), ("phases of its own",)),
    (run_of(recipe={"label_smoothing": 0.1}), ("the recipe of runs.run has label_smoothing",)),
    (run_of(transform={"permutation": LAST["permutation"] | {"dynamic": 2}}), ("dynamic, teacher or seed",)),
    (run_of(transform=LAST) | {"matchings": {"kcd": {}}}, ("tap of matchings.kcd", "'final'")),
    (run_of(transform=LAST) | {"matchings": {"kcd": TAPS | {"ranges": 2}}}, ("matchings.kcd has ranges 2",)),
    (run_of(transform=LAST) | {"matchings": {"kcd": TAPS | {"strategy": "fc"}}}, ("strategy fc",)),
    (run_of() | {"exports": {"pair/run": {}}}, ("exports.pair/run has the student 'small', which finds boxes",)),
]  # fmt: skip


@pytest.mark.parametrize(("content", "parts"), REFUSED, ids=[parts[0] for _, parts in REFUSED])
def test_what_detectors_cannot_be_taught_by_is_refused_before_anything_runs(
    content: Params, parts: tuple[str, ...]
) -> None:
    with pytest.raises(StillhouseError) as error:
        check(content)
    one_line(error, *parts)


def test_the_plan_of_classifiers_leaves_pairs_of_detectors_out() -> None:
    assert plan(project(PARAMS), {}) == Plan((), (), ())


def test_a_teacher_with_other_channels_needs_a_permutation() -> None:
    content = run_of()
    content["teachers"] = {"finder": DETECTOR | {"network": "faster_rcnn_resnet50"}}
    with pytest.raises(StillhouseError) as error:
        check(content)
    one_line(error, "Mimicry pairs equal shapes", "transform: permutation")
    content["runs"]["run"]["transform"] = LAST
    check(content)
