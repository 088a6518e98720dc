"""KCD end to end on toy data: matching, the transform, the restart from theta0, every ablation, every refusal."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from device_fixtures import current, here
from error_fixtures import one_line
from feature_fixtures import rewrite_manifest
from safetensors.torch import load_file
from torch import Tensor
from training_fixtures import CLASSES, PARAMS, STUDENT, World, assemble, clock, cut_off_after, make_world

from pipeline import plugin, seeding
from pipeline.artifacts.hashing import file_hash
from pipeline.distillation.method import Batch, Context
from pipeline.distillation.transforms.permutation import Config, Transform
from pipeline.errors import (
    MissingArtifactError,
    ParamsError,
    ShapeError,
    StaleArtifactError,
    StillhouseError,
)
from pipeline.evaluation.distance import map_distance, prediction_kl
from pipeline.matching.discrepancy import between, overlap
from pipeline.matching.matching import Matching, Origin
from pipeline.networks.network import build
from pipeline.networks.weights import load
from pipeline.params.matchings import MatchingParams
from pipeline.params.plug import Plug
from pipeline.params.recipe import Epoch, Recipe
from pipeline.runs.comparison import TRANSFORM, compare
from pipeline.runs.inputs import RunInputs
from pipeline.training import loop
from pipeline.training.distill import Distillation
from pipeline.training.loop import Training

pytestmark = pytest.mark.usefixtures("device")

STAGE2 = {"student_tap": "stage2", "teacher_feature": "stage2"}
DYNAMIC = Plug.of("permutation", features=["stage2"], student_tap="stage2", dynamic=2)


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def kcd_of(world: World, seed: int) -> Matching:
    """Return the pair's matching."""
    return Matching.load(world.path(f"artifacts/matchings/pair/own/kcd/{seed}.npz"), "dvc repro")


# ------------------------------------------------------------------ the transform


def matching(permutation: Any, channels: int, **recipe: Any) -> Matching:
    origin = Origin(
        made_by="match_channels@p", teacher="big", student="small", seed=0, recipe=MatchingParams(**recipe),
        theta0="0", student_weights="0",
        teacher_weights="0", digest="0", data="0", classes=CLASSES, channels=channels,
    )  # fmt: skip
    return Matching(origin, {"permutation": np.array(permutation, dtype=np.int64)})


def transform(
    found: Matching, shapes: dict[str, tuple[int, ...]], student: tuple[int, ...] = (3, 2, 2), **config: Any
) -> Transform:
    config = {"features": tuple(shapes)} | config
    context = Context(
        CLASSES,
        torch.arange(8) % CLASSES,
        build(STUDENT, 0),
        {"final": student},
        shapes,
        matchings={"kcd": found},
    )
    Transform.shapes(Config(**config), shapes, {"kcd": found})
    return here(Transform(Config(**config), context)).eval()


def batch(teacher: dict[str, Tensor], label: Tensor, epoch: int = 0, phase: str = "main") -> Batch:
    label, index, now = here(label), here(torch.arange(len(label))), clock(epoch)
    return Batch(here(torch.zeros(len(label))), label, index, teacher, now.epoch, 9, now.step, phase, 0)


def test_a_permutation_is_a_gather_on_maps_vectors_and_preactivations() -> None:
    draw = seeding.generator(0)
    features = {
        "final": torch.randn(4, 5, 2, 2, generator=draw),
        "final:pooled": torch.randn(4, 5, generator=draw),
        "final_pre": torch.randn(4, 5, 3, 3, generator=draw) - 1,
        "logits": torch.randn(4, CLASSES, generator=draw),
    }
    features = {name: here(x) for name, x in features.items()}
    permuted = {name: tuple(x.shape[1:]) for name, x in features.items() if name != "logits"}
    made = transform(matching([[4, 0, 2]], 5), permuted)
    label = torch.arange(4)
    seen = made(features, batch(features, label))
    for name in permuted:
        for i, j in enumerate((4, 0, 2)):
            assert torch.equal(seen[name][:, i], features[name][:, j])
        assert seen[name].shape[1] == 3
    assert seen["logits"] is features["logits"]
    assert made.state_dict() == {}  # nothing to checkpoint: the matching is an artifact of its own


def test_each_range_of_labels_has_its_own_permutation() -> None:
    made = transform(matching([[0, 1, 2], [2, 1, 0]], 3, ranges=2), {"final": (3, 2, 2)})
    x = here(torch.randn(5, 3, 2, 2, generator=seeding.generator(0)))
    label = torch.tensor([0, 3, 1, 2, 0])
    seen = made({"final": x}, batch({"final": x}, label))["final"]
    for row, k in enumerate(label.tolist()):
        assert torch.equal(seen[row], x[row] if k < 2 else x[row].flip(0))


@pytest.mark.cpu
def test_what_cannot_be_permuted_is_reported_in_one_line() -> None:
    with pytest.raises(
        ParamsError, match="permutes teacher feature 'final', and the run reads logits"
    ) as error:
        Transform.shapes(Config(), {"logits": (4,)}, {"kcd": matching([[0]], 1)})
    one_line(error)
    with pytest.raises(ShapeError, match="was made for 5 channels") as error:
        transform(matching([[4, 0, 2]], 5), {"final": (6, 2, 2)})
    one_line(error)
    with pytest.raises(
        ShapeError, match="Student tap 'final' has 4 channels, and matching 'kcd' gives 3"
    ) as error:
        transform(matching([[1, 0, 2]], 3), {"final": (3, 2, 2)}, (4, 2, 2), dynamic=1)
    one_line(error)


def test_dynamic_matches_anew_from_the_epoch_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every two epochs; the truth changes with the epoch, and what was seen of earlier epochs is forgotten."""
    made = transform(matching([[0, 1, 2]], 3), {"final": (3, 2, 2)}, dynamic=2)
    orders = [[1, 2, 0], [2, 0, 1], [0, 2, 1], [1, 0, 2], [2, 1, 0], [0, 1, 2]]
    held = []
    for epoch, order in enumerate(orders):
        made.start(Epoch("main", epoch, 6))
        for step in range(3):
            x = here(torch.randn(8, 3, 2, 2, generator=seeding.generator(epoch, step)))
            made.observe({"final": x[:, order]}, batch({"final": x}, torch.arange(8) % CLASSES, epoch))
            held.append(made.rearrangement.permutation[0].tolist())
    identity = [0, 1, 2]
    assert held == [*[identity] * 6, *[orders[1]] * 6, *[orders[3]] * 6]


def test_dynamic_goes_on_bit_for_bit_and_counts_over_phases() -> None:
    def steps(made: Transform, moments: Any) -> None:
        for epoch, phase in moments:
            made.start(Epoch(phase, epoch, 9))
            x = here(torch.randn(8, 3, 2, 2, generator=seeding.generator(epoch, phase)))
            y = here(torch.randn(8, 3, 2, 2, generator=seeding.generator(epoch, phase, "student")))
            made.observe({"final": y}, batch({"final": x}, torch.arange(8) % CLASSES, epoch, phase))

    moments = [(0, "warm"), (0, "main"), (1, "main"), (1, "main"), (2, "main"), (3, "main")]

    def new() -> Transform:
        return transform(matching([[0, 1, 2], [2, 1, 0]], 3, ranges=2), {"final": (3, 2, 2)}, dynamic=2)

    whole = new()
    steps(whole, moments)
    assert int(whole.finished) == 4  # warm 0, main 0, 1 and 2
    for cut in range(1, len(moments)):
        first, second = new(), new()
        steps(first, moments[:cut])
        second.load_state_dict({name: x.clone() for name, x in first.state_dict().items()})
        steps(second, moments[cut:])
        for name, x in whole.state_dict().items():
            assert torch.equal(x, second.state_dict()[name]), name


def test_mimicry_is_the_formula() -> None:
    draw = seeding.generator(0)
    for reduction, divisor in (("mean", 4 * 32 * 4 * 4), ("sum", 4)):
        found = assemble("mimicry", STAGE2 | {"reduction": reduction})
        s, t = (here(torch.randn(4, 32, 4, 4, generator=draw)) for _ in range(2))
        logits = here(torch.randn(4, CLASSES, generator=draw))
        label = here(torch.tensor([0, 1, 2, 3]))
        terms = found.method({"stage2": s, "logits": logits}, batch({"stage2": t}, label))
        total = sum(
            (a - b) ** 2
            for a, b in zip(s.double().flatten().tolist(), t.double().flatten().tolist(), strict=True)
        )
        assert terms["mimic"].item() == pytest.approx(total / divisor, rel=1e-5)
        assert terms["ce"].item() == pytest.approx(F.cross_entropy(logits, label).item(), rel=1e-6)
        assert found.method.config.weights == {"ce": 1.0, "mimic": 100.0}


@pytest.mark.cpu
def test_mimicry_of_other_shapes_is_reported_with_the_cure() -> None:
    module, found = plugin.load("methods", "mimicry"), assemble("kd")
    for shape, cure in (((9, 2, 2), "Add transform: permutation"), ((64, 4, 4), "Choose taps of one size")):
        context = Context(
            CLASSES, torch.zeros(4), found.student, found.context.student_shapes, {"final": shape}
        )
        with pytest.raises(ShapeError, match=cure) as error:
            module.Method(module.Config(), context)
        one_line(error)


# ------------------------------------------------------------------ matching


def live(world: World, seed: int = 0, weights: str = "last") -> tuple[Tensor, Tensor, Tensor]:
    """Return pooled plain features of teacher and student by the live networks, and labels: the slow way."""
    split, meta = world.prepared.split("train"), world.prepared.meta
    image = (torch.from_numpy(np.array(split.images)).float() / 255 - meta.mean[0]) / meta.std[0]
    teacher = load(world.path("artifacts/teachers/big/weights"))[0]
    student = load(world.path(f"artifacts/pretrained/small/{seed}/weights"), weights)[0]
    with torch.no_grad():
        a = torch.stack([teacher.record(x[None], {"stage2"})["stage2"][0].mean((1, 2)) for x in image])
        b = torch.stack([student.record(x[None], {"stage2"})["stage2"][0].mean((1, 2)) for x in image])
    return a.double(), b.double(), torch.from_numpy(np.array(split.labels))


def gammas(a: Tensor, b: Tensor) -> np.ndarray[Any, Any]:
    """Return Pearson's coefficients (c_T, c_S) by numpy, 0 where a channel never varies."""
    found = np.zeros((a.shape[1], b.shape[1]))
    for i, j in itertools.product(*map(range, found.shape)):
        x, y = a[:, i].numpy(), b[:, j].numpy()
        if x.std() > 0 and y.std() > 0:
            found[i, j] = np.corrcoef(x, y)[0, 1]
    return found


def test_matching_of_the_stage_is_that_of_the_live_networks(world: World) -> None:
    from scipy.optimize import linear_sum_assignment

    metrics = json.loads(world.path("artifacts/metrics/matchings/pair/own.json").read_text())["kcd"]
    for seed in (0, 1):
        a, b, _ = live(world, seed)
        expected = gammas(a, b)
        with np.load(world.path(f"artifacts/matchings/pair/own/kcd/measured/{seed}.npz")) as file:
            np.testing.assert_allclose(
                file["matrix"][0], expected, atol=1e-4
            )  # batches of other sizes, float32
        rows, columns = linear_sum_assignment(expected, maximize=True)
        permutation = kcd_of(world, seed).arrays["permutation"][0]
        assert sorted(permutation.tolist()) == list(range(32))
        best = expected[rows, columns].sum()
        assert expected[permutation, np.arange(32)].sum() == pytest.approx(best, abs=1e-3)
        gamma = metrics[str(seed)]["gamma"]
        assert gamma["bipartite"] == pytest.approx(best, abs=1e-3)
        assert gamma["greedy"] == pytest.approx(expected.max(axis=0).sum(), abs=1e-3)
        assert gamma["identity"] == pytest.approx(np.trace(expected), abs=1e-3)
        assert gamma["greedy"] >= gamma["bipartite"] >= max(gamma["identity"], gamma["random"])
        dead = [int((x.std(dim=0) == 0).sum()) for x in (a, b)]
        assert [metrics[str(seed)]["dead"][key] for key in ("teacher", "student")] == dead


@pytest.mark.cpu
def test_origin_names_what_it_was_made_from(world: World) -> None:
    origin = kcd_of(world, 1).origin
    alone = world.path("artifacts/pretrained/small/1/weights")
    assert (origin.teacher, origin.student, origin.seed) == ("big", "small", 1)
    assert origin.student_weights == file_hash(alone / "last.safetensors")
    assert origin.teacher_weights == file_hash(world.path("artifacts/teachers/big/weights/last.safetensors"))
    assert origin.data == world.prepared.meta.fingerprint["train"]


def test_matching_twice_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    again = world.match(tmp_path / "again")
    home = world.path("artifacts/matchings/pair/own")
    files = [path.relative_to(again) for path in again.rglob("*.npz")]
    assert sorted(map(str, files)) == [
        f"kcd/{name}" for name in ("0.npz", "1.npz", "measured/0.npz", "measured/1.npz")
    ]
    for path in files:
        assert (again / path).read_bytes() == (home / path).read_bytes(), path


def test_measurements_against_slow_references(world: World) -> None:
    found = json.loads(world.path("artifacts/metrics/matchings/pair/own.json").read_text())["kcd"]["0"]
    a, b, label = live(world)
    permutation = kcd_of(world, 0).arrays["permutation"][0]
    for name, teacher in (("plain", a), ("transformed", a[:, permutation])):
        shares = []
        for k in range(CLASSES):
            ours, theirs = (
                x[label == k].mean(0).argsort(descending=True)[:10].tolist() for x in (b, teacher)
            )
            shares.append(len(set(ours) & set(theirs)) / 10)
        assert found["overlap"][name]["top10"] == pytest.approx(100 * np.mean(shares), abs=1e-9)
    assert set(found["overlap"]["plain"]) == {"top10", "top20"}  # of 32 channels
    other = live(world, 1)[1]
    shares = []
    for k in range(CLASSES):
        one, two = (x[label == k].mean(0).argsort(descending=True)[:20].tolist() for x in (b, other))
        shares.append(len(set(one) & set(two)) / 20)
    assert found["overlap"]["students"]["top20"] == pytest.approx(100 * np.mean(shares), abs=1e-9)

    split, meta = world.prepared.split("test"), world.prepared.meta
    image = (torch.from_numpy(np.array(split.images)).float() / 255 - meta.mean[0]) / meta.std[0]
    teacher = load(world.path("artifacts/teachers/big/weights"))[0]
    with torch.no_grad():
        taught = teacher.record(image, {"stage2", "logits"})
        for key, weights in (("theta0", "init"), ("alone", "last")):
            student = load(world.path("artifacts/pretrained/small/0/weights"), weights)[0]
            ours = student.record(image, {"stage2", "logits"})
            p, q = taught["logits"].softmax(1), ours["logits"].softmax(1)
            kl = (p * (p / q).log()).sum(1).mean().item()
            assert found[key]["kl"] == pytest.approx(kl, rel=1e-4)
            for name, order in (("l2", np.arange(32)), ("l2_transformed", permutation)):
                far = [
                    (x - y).norm().item()
                    for x, y in zip(taught["stage2"][:, order], ours["stage2"], strict=True)
                ]
                assert found[key][name] == pytest.approx(np.mean(far), rel=1e-4)
    assert found["alone"]["l2_transformed"] < found["alone"]["l2"]


def test_pictures_are_the_mean_maps_of_one_class(world: World) -> None:
    split, meta = world.prepared.split("train"), world.prepared.meta
    image = (torch.from_numpy(np.array(split.images)).float() / 255 - meta.mean[0]) / meta.std[0]
    teacher = load(world.path("artifacts/teachers/big/weights"))[0]
    with torch.no_grad():
        maps = teacher.record(image[torch.from_numpy(np.array(split.labels)) == 0], {"stage2"})[
            "stage2"
        ].mean(0)
    permutation = kcd_of(world, 0).arrays["permutation"][0]
    with np.load(world.path("artifacts/matchings/pair/own/kcd/measured/0.npz")) as file:
        np.testing.assert_allclose(file["teacher_map"], maps, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(file["transformed_map"], maps[permutation], rtol=1e-4, atol=1e-4)
        assert file["student_map"].shape == maps.shape


@pytest.mark.cpu
def test_overlap_by_hand() -> None:
    one = torch.arange(24.0).repeat(3, 1)
    other = one.clone()
    other[0, :20] += 24.0  # of the first class, the ten most active are 10..19 instead of 14..23
    found = overlap(one, other, torch.tensor([1.0, 1.0, 0.0]))
    assert set(found) == {"top10", "top20"}
    assert found["top10"] == pytest.approx(100 * (6 / 10 + 1) / 2)
    assert between([one.numpy(), other.numpy()], torch.tensor([1.0, 1.0, 0.0])) == [found, found]


def test_distances_by_hand() -> None:
    draw = seeding.generator(0)
    s, t = (here(torch.randn(3, 4, generator=draw)) for _ in range(2))
    p, q = t.double().softmax(1), s.double().softmax(1)
    by_hand = [
        sum((x * (x / y).log()).item() for x, y in zip(a, b, strict=True)) for a, b in zip(p, q, strict=True)
    ]
    assert prediction_kl(s, t).tolist() == pytest.approx(by_hand, rel=1e-5)
    far = [
        sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
        for a, b in zip(s.tolist(), t.tolist(), strict=True)
    ]
    assert map_distance(s, t).tolist() == pytest.approx(far, rel=1e-5)


# ------------------------------------------------------------------ the restart


def test_the_distilled_student_starts_from_the_very_theta0(world: World) -> None:
    for seed in (0, 1):
        folder = world.distill(f"restart-{seed}", world.inputs("kcd", seed), seed=seed)
        theta0 = world.path(f"artifacts/pretrained/small/{seed}/weights/init.safetensors")
        assert (folder / "weights/init.safetensors").read_bytes() == theta0.read_bytes()


def test_first_steps_loss_is_by_hand(world: World) -> None:
    from pipeline.training.setting import Setting

    inputs = world.inputs("kcd", recipe=Recipe(epochs=1, batch_size=100))
    folder = world.distill("kcd-first", inputs)
    row = (folder / "history.csv").read_text().splitlines()
    said = dict(zip(row[0].split(","), row[1].split(","), strict=True))
    (views,) = (
        Setting.of(world.prepared, inputs.views, current()).batches(inputs.recipe, 0, inputs.slots).epoch(0)
    )
    permutation = kcd_of(world, 0).arrays["permutation"][0]
    with torch.no_grad():
        image = views.image.cpu()
        ours = build(STUDENT, 0).record(image, {"stage2", "logits"})
        theirs = load(world.path("artifacts/teachers/big/weights"))[0].record(image, {"stage2"})["stage2"]
        mimic = ((ours["stage2"] - theirs[:, permutation]) ** 2).mean().item()
    assert float(said["mimic"]) == pytest.approx(mimic, rel=1e-4)
    assert float(said["loss"]) == pytest.approx(float(said["ce"]) + 100 * float(said["mimic"]), rel=1e-5)


def test_evaluation_reports_the_distance_to_the_teacher(world: World) -> None:
    for run, moved in (("kcd", True), ("fitnet", False), ("online", False), ("kd", None)):
        folder = world.distill(f"compared-{run}", world.inputs(run))
        assert not (folder / "comparison.json").exists()  # a training measures what it needs itself
        assert not (folder / TRANSFORM).exists()  # the matching is an artifact of its own
        found = compare(folder, world.inputs(run), current())
        split, meta = world.prepared.split("test"), world.prepared.meta
        image = (torch.from_numpy(np.array(split.images)).float() / 255 - meta.mean[0]) / meta.std[0]
        with torch.no_grad():
            ours = load(folder / "weights")[0].record(image, {"stage2", "logits"})
            theirs = load(world.path("artifacts/teachers/big/weights"))[0].record(image, {"stage2", "logits"})
        p, q = theirs["logits"].softmax(1), ours["logits"].softmax(1)
        assert found["teacher_kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-3)
        if moved is None:
            assert "teacher_l2" not in found
            continue
        order = kcd_of(world, 0).arrays["permutation"][0]
        taught = theirs["stage2"][:, order] if moved else theirs["stage2"]
        assert found["teacher_l2"] == pytest.approx(
            (ours["stage2"] - taught).flatten(1).norm(dim=1).mean().item(), rel=1e-3
        )


def test_a_dynamic_run_that_was_interrupted_ends_alike(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(epochs=5, batch_size=20, milestones=(3,))
    inputs = world.inputs("kcd", transform=DYNAMIC, recipe=recipe)
    permutations = []
    observe = Transform.observe

    def noted(self: Transform, *args: Any) -> None:
        observe(self, *args)
        permutations.append(self.rearrangement.permutation[0].tolist())

    monkeypatch.setattr(Transform, "observe", noted)
    whole = world.distill("dynamic-whole", inputs)
    seen = permutations.copy()
    assert len(seen) == 25  # once a step
    assert seen[0] == seen[9] != seen[10]  # matched anew after two epochs
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Training, "_keep", cut_off_after(Training._keep, 3))
        with pytest.raises(KeyboardInterrupt):
            world.distill("dynamic-cut", inputs)
    again = world.distill("dynamic-cut", inputs)
    for path in (*(f"weights/{name}.safetensors" for name in ("init", "best", "last")), TRANSFORM):
        assert (again / path).read_bytes() == (whole / path).read_bytes(), path
    assert permutations[-5:] == seen[-5:]


def test_the_comparison_is_under_the_permutation_that_training_ended_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = world.inputs("kcd", transform=DYNAMIC, recipe=Recipe(epochs=3, batch_size=20))
    ended: list[Distillation] = []
    run = Training.run

    def watched(self: Training) -> list[Any]:
        rows = run(self)
        assert isinstance(self.objective, Distillation)
        ended.append(self.objective)
        return rows

    monkeypatch.setattr(Training, "run", watched)
    folder = world.distill("dynamic-compared", inputs)
    transform = ended[0].transform
    assert isinstance(transform, Transform)
    final = transform.rearrangement.permutation[0].tolist()
    first = kcd_of(world, 0).arrays["permutation"][0].tolist()
    assert final != first  # matched anew after two of three epochs

    saved = load_file(folder / TRANSFORM)
    assert saved.keys() == transform.state_dict().keys()
    for name, x in transform.state_dict().items():
        assert torch.equal(saved[name], x.cpu()), name

    split, meta = world.prepared.split("test"), world.prepared.meta
    image = (torch.from_numpy(np.array(split.images)).float() / 255 - meta.mean[0]) / meta.std[0]
    with torch.no_grad():
        ours = ended[0].student.cpu().eval().record(image, {"stage2"})["stage2"]  # as training left it
        theirs = load(world.path("artifacts/teachers/big/weights"))[0].record(image, {"stage2"})["stage2"]
    ends, starts = (
        (ours - theirs[:, order]).flatten(1).norm(dim=1).mean().item() for order in (final, first)
    )
    found = compare(folder, inputs, current())["teacher_l2"]
    assert found == pytest.approx(ends, rel=1e-4)
    assert found != pytest.approx(starts, rel=1e-3)


@pytest.mark.cpu
def test_a_comparison_without_the_transforms_state_names_the_command(world: World) -> None:
    inputs = world.inputs("kcd", transform=DYNAMIC, recipe=Recipe(epochs=1, batch_size=50))
    folder = world.distill("dynamic-lost", inputs)
    (folder / TRANSFORM).unlink()
    with pytest.raises(MissingArtifactError, match=r"transform\.safetensors does not exist") as error:
        compare(folder, inputs, current())
    assert "dvc repro" in one_line(error)


# ------------------------------------------------------------------ ablations, by params alone


def resolved(world: World, folder: Path, recipe: dict[str, Any], **run: Any) -> RunInputs:
    """Match by a changed recipe, resolve a changed run, and return its inputs."""
    blocks = world.blocks(
        matchings={"kcd": recipe},
        runs={"changed": PARAMS["runs"]["kcd"] | run},
        distill=["pair/changed"],
    )
    matchings = copied(world, folder)
    if recipe:
        shutil.rmtree(matchings / "own")
        world.match(matchings / "own", block=blocks / "matchings/pair.json", metrics=folder / "kcd.json")
    found = world.resolve(folder / "inputs", block=blocks / "pairs/pair.json", matchings=matchings)
    return RunInputs.model_validate_json(found["changed"])


def permuted(**settings: Any) -> dict[str, Any]:
    """Return the transform of stage2 with other settings."""
    return {"permutation": {"features": ["stage2"]} | settings}


def block_of(world: World, folder: Path, **recipe: Any) -> Path:
    """Return the pair's block of matchings with a changed recipe, as one of an earlier params.yaml would be."""
    content = json.loads(world.path("artifacts/params/matchings/pair.json").read_text())
    content["recipes"]["kcd"] |= recipe
    path = folder / "matchings.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "recipe",
    [
        {"measure": "l1"},
        {"measure": "l2"},
        {"measure": "cosine"},
        {"measure": "kl"},
        {"strategy": "greedy"},
        {"strategy": "random"},
        {"strategy": "identity"},
        {"strategy": "fc", "epochs": 1},
        {"strategy": "residual", "epochs": 1},
        {"student_weights": "init"},
        {"ranges": CLASSES},
    ],
    ids=lambda recipe: "-".join(map(str, recipe.values())),
)
def test_an_ablation_is_a_line_of_params(world: World, tmp_path: Path, recipe: dict[str, Any]) -> None:
    inputs = resolved(world, tmp_path, recipe)
    found = Matching.load(Path(inputs.matchings["kcd"][0]), "dvc repro")
    assert found.recipe == MatchingParams(**STAGE2, **recipe)
    folder = world.distill("-".join(map(str, recipe.values())), inputs)
    start, end = (load_file(folder / f"weights/{name}.safetensors") for name in ("init", "last"))
    theta0 = load_file(world.path("artifacts/pretrained/small/0/weights/init.safetensors"))
    assert all(torch.equal(start[name], x) for name, x in theta0.items())
    assert all(torch.isfinite(x).all() for x in end.values() if x.is_floating_point())
    numbers = json.loads((tmp_path / "kcd.json").read_text())["kcd"]["0"]
    if recipe.get("strategy") in ("fc", "residual"):
        assert numbers["gamma"]["learned"] > numbers["gamma"]["identity"]
        assert "permutation" not in found.arrays
    else:
        assert found.arrays["permutation"].shape == (recipe.get("ranges", 1), 32)


def test_learned_networks_learn_consistency(world: World, tmp_path: Path) -> None:
    block = block_of(world, tmp_path, strategy="fc", epochs=60)
    world.match(tmp_path / "fc", block=block, metrics=tmp_path / "fc.json")
    gamma = json.loads((tmp_path / "fc.json").read_text())["kcd"]["0"]["gamma"]
    assert gamma["learned"] > gamma["bipartite"]  # a linear map can be any permutation, and more


def test_each_range_is_matched_by_its_own_samples(world: World, tmp_path: Path) -> None:
    block = block_of(world, tmp_path, ranges=2)
    folder = world.match(tmp_path / "two", block=block, metrics=tmp_path / "two.json")
    a, b, label = live(world)
    with np.load(folder / "kcd/measured/0.npz") as file:
        for number, chosen in enumerate((label < 2, label >= 2)):
            np.testing.assert_allclose(file["matrix"][number], gammas(a[chosen], b[chosen]), atol=1e-3)


def test_untrained_networks_give_the_statistics(world: World, tmp_path: Path) -> None:
    block = block_of(world, tmp_path, student_weights="init")
    folder = world.match(tmp_path / "theta0", block=block, metrics=tmp_path / "theta0.json")
    a, b, _ = live(world, weights="init")
    with np.load(folder / "kcd/measured/0.npz") as file:
        np.testing.assert_allclose(file["matrix"][0], gammas(a, b), atol=1e-4)


def test_the_matching_of_another_students_theta0(world: World, tmp_path: Path) -> None:
    inputs = resolved(world, tmp_path, {}, transform=permuted(matching="kcd", seed=1))
    assert inputs.seed == 0
    assert Path(inputs.matchings["kcd@1"][0]).name == "1.npz"
    folder = world.distill("other-theta0", inputs)
    theta0 = world.path("artifacts/pretrained/small/0/weights/init.safetensors")  # it starts from its own
    assert (folder / "weights/init.safetensors").read_bytes() == theta0.read_bytes()


@pytest.mark.parametrize(
    "run",
    [
        {"methods": "fitnet"},
        {"source": "online"},
        {"slots": 2},
    ],
    ids=["fitnet", "online", "slots"],
)
def test_the_transform_composes_with_methods_and_sources(
    world: World, tmp_path: Path, run: dict[str, Any]
) -> None:
    inputs = resolved(world, tmp_path, {}, **run)
    folder = world.distill(f"composed-{next(iter(run))}", inputs)
    assert "teacher_l2" in compare(folder, inputs, current())


@pytest.mark.cpu
def test_maps_of_other_sizes_are_refused(world: World, tmp_path: Path) -> None:
    block = block_of(world, tmp_path, student_tap="stage1", teacher_feature="stage2")
    with pytest.raises(ShapeError, match="'stage1' of 8x8 with teacher feature 'stage2' of 4x4") as error:
        world.match(tmp_path / "sizes", block=block)
    assert "dvc repro" in one_line(error)
    assert not (tmp_path / "sizes").exists()


def test_a_teacher_with_fewer_channels_is_greedy_or_refused(world: World, tmp_path: Path) -> None:
    recipe = {"student_tap": "pooled", "teacher_feature": "logits"}  # 64 channels against 4
    block = block_of(world, tmp_path, **recipe)
    with pytest.raises(ShapeError, match="64 channels a channel of its own, and the teacher has 4") as error:
        world.match(tmp_path / "out", block=block)
    one_line(error)
    block = block_of(world, tmp_path, **recipe, strategy="greedy")
    folder = world.match(tmp_path / "greedy", block=block, metrics=tmp_path / "greedy.json")
    assert Matching.load(folder / "kcd/0.npz", "dvc repro").arrays["permutation"].shape == (1, 64)
    numbers = json.loads((tmp_path / "greedy.json").read_text())["kcd"]["0"]
    assert set(numbers["gamma"]) == {"greedy"}
    assert set(numbers["overlap"]) == {"transformed", "students"}
    assert set(numbers["alone"]) == {"kl", "l2_transformed"}


# ------------------------------------------------------------------ refusals


def copied(world: World, folder: Path) -> Path:
    copy = folder / "matchings"
    shutil.copytree(world.path("artifacts/matchings/pair"), copy)
    return copy


def refused(world: World, folder: Path, **places: Path) -> str:
    with pytest.raises(StillhouseError) as error:
        world.resolve(folder / "out", **places)
    assert not (folder / "out").exists()
    return one_line(error)


@pytest.mark.cpu
@pytest.mark.parametrize("field", ["student", "seed", "teacher", "teacher_weights", "data"])
def test_a_permutation_made_from_something_else_is_refused(world: World, tmp_path: Path, field: str) -> None:
    matchings = copied(world, tmp_path)
    path = matchings / "own/kcd/0.npz"
    found = Matching.load(path, "dvc repro")
    other = {"seed": 1}.get(field, "other")
    Matching(found.origin.model_copy(update={field: other}), found.arrays).save(path)
    message = refused(world, tmp_path, matchings=matchings)
    assert f"was made with other {field}: found {other}, expected" in message
    assert "dvc repro --force --single-item match_channels@pair" in message


@pytest.mark.cpu
def test_a_permutation_of_another_theta0_is_refused(world: World, tmp_path: Path) -> None:
    path, found = tmp_path / "0.npz", kcd_of(world, 1)
    Matching(found.origin.model_copy(update={"seed": 0}), found.arrays).save(path)
    inputs = world.inputs("kcd", matchings={"kcd": (str(path), file_hash(path))})
    with pytest.raises(StaleArtifactError, match="does not start from the weights") as error:
        world.distill("other-init", inputs)
    assert "dvc repro --force --single-item match_channels@pair" in one_line(error)
    stale = world.inputs("kcd", matchings={"kcd": (str(path), "0")})
    with pytest.raises(StaleArtifactError, match="is not the file that this run was resolved with"):
        world.distill("other-file", stale)


@pytest.mark.cpu
def test_a_missing_matching_names_its_stage(world: World, tmp_path: Path) -> None:
    matchings = copied(world, tmp_path)
    (matchings / "own/kcd/1.npz").unlink()
    message = refused(world, tmp_path, matchings=matchings)
    assert "kcd/1.npz does not exist" in message
    assert "dvc repro match_channels@pair" in message
    blocks = crossed(world)
    message = refused(world, tmp_path, block=blocks / "pairs/pair.json", matchings=matchings)
    assert "crossed/kcd/0.npz does not exist" in message
    assert "dvc repro match_borrowed@crossed" in message


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        ({"teacher_feature": "stage1"}, "Add it to teachers.big.features in params.yaml"),
        ({"teacher_checkpoint": "init"}, "Add it to teachers.big.checkpoints in params.yaml"),
        ({"student_tap": "stage9"}, r"reads student tap 'stage9'. 'small' has stem_pre, "),
        ({"ranges": 5}, r"matchings.kcd.ranges is 5, and 'toy' has 4 classes"),
        ({"pictured": 4}, r"matchings.kcd.pictured is 4, and 'toy' has 4 classes"),
    ],
)
def test_what_a_matching_lacks_is_reported_with_its_line(
    world: World, tmp_path: Path, recipe: dict[str, Any], match: str
) -> None:
    block = block_of(world, tmp_path, **recipe)
    with pytest.raises(StillhouseError, match=match) as error:
        world.match(tmp_path / "out", block=block)
    one_line(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.cpu
@pytest.mark.parametrize("field", ["data", "weights"])
def test_a_store_of_something_else_is_refused(world: World, tmp_path: Path, field: str) -> None:
    store = tmp_path / "big.zarr"
    shutil.copytree(world.path("artifacts/features/big.zarr"), store)
    rewrite_manifest(store, lambda said: said.update({field: dict.fromkeys(said[field], "0")}))
    with pytest.raises(StaleArtifactError, match=f"was made with other {field}") as error:
        world.match(tmp_path / "out", store=store)
    one_line(error)


# ------------------------------------------------------------------ another teacher's matching


def crossed(world: World) -> Path:
    """Return the blocks where the run learns from `big` in the order that `huge` would have had."""
    return world.blocks(
        teachers={"huge": PARAMS["teachers"]["big"] | {"seed": 5}},
        borrowed={"crossed": {"pair": "pair", "teacher": "huge", "student": "small", "matching": "kcd"}},
        runs={"crossed": PARAMS["runs"]["kcd"] | {"transform": permuted(teacher="huge")}},
        distill=["pair/crossed"],
    )


@pytest.mark.cpu
def test_another_teachers_matching_is_a_line_of_params(world: World, tmp_path: Path) -> None:
    """Table 3 (b)."""
    blocks, matchings = crossed(world), copied(world, tmp_path)
    # Another teacher's artifacts are stood in for by the first one's.
    block, metrics = blocks / "borrowed/crossed.json", tmp_path / "crossed.json"
    world.match(matchings / "crossed", block=block, metrics=metrics)
    found = world.resolve(tmp_path / "inputs", block=blocks / "pairs/pair.json", matchings=matchings)
    inputs = RunInputs.model_validate_json(found["crossed"])
    assert {key: Path(path).parent.parent.name for key, (path, _) in inputs.matchings.items()} == {
        "huge/kcd": "crossed"
    }
    world.distill("crossed", inputs)


@pytest.mark.cpu
def test_a_pair_whose_runs_ask_for_no_matching_has_none(world: World, tmp_path: Path) -> None:
    block = crossed(world) / "matchings/pair.json"
    out = world.match(tmp_path / "own", block=block, metrics=tmp_path / "own.json")
    assert list(out.iterdir()) == []
    assert json.loads((tmp_path / "own.json").read_text()) == {}


@pytest.mark.cpu
def test_a_matching_changes_the_runs_that_use_it_alone(world: World, tmp_path: Path) -> None:
    matchings = copied(world, tmp_path)
    path = matchings / "own/kcd/0.npz"
    found = Matching.load(path, "dvc repro")
    flipped = {"permutation": found.arrays["permutation"][:, ::-1]}
    Matching(found.origin, flipped).save(path)
    home = str(world.path("artifacts/matchings/pair")).encode()
    before = world.resolve(tmp_path / "before")
    after = world.resolve(tmp_path / "after", matchings=matchings)
    changed = {run for run in before if before[run] != after[run].replace(str(matchings).encode(), home)}
    assert changed == {"kcd"}
    one = (tmp_path / "after/kcd/1.json").read_bytes().replace(str(matchings).encode(), home)
    assert one == (tmp_path / "before/kcd/1.json").read_bytes()  # and its other seeds not
