"""Codes of fitted tables through the stages' own commands: from a table to a student that learns from its codes."""

from __future__ import annotations

import csv
import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from code_fixtures import (
    CODES,
    HARD,
    INNER,
    PER_CLASS,
    SOFT,
    SUBCLASS,
    WORDS,
    encode,
    make_coded_world,
    plain_maps,
    table_of,
    write_tables,
)
from device_fixtures import GapsOfCUDA, current, here
from feature_fixtures import CutOffError, cut_off_bar
from safetensors.torch import load_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn
from training_fixtures import KNOWN, STUDENT, World

from pipeline import plugin, progress, seeding
from pipeline.data.normalize import Normalize
from pipeline.data.views import view_space
from pipeline.errors import MissingArtifactError, ParamsError, StaleArtifactError, StillhouseError
from pipeline.evaluation.cost import macs, num_params
from pipeline.evaluation.evaluate import evaluate
from pipeline.features import codebook
from pipeline.features import codes as encoding
from pipeline.features import manifest as manifests
from pipeline.features.check import Live, compare
from pipeline.features.difference import CODES as SHARE
from pipeline.features.difference import CODES_OF_A_SAMPLE
from pipeline.features.encodings.top4 import differing
from pipeline.features.extract import Extraction
from pipeline.features.source import CachedSource
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import on_device
from pipeline.networks.network import build
from pipeline.networks.weights import load
from pipeline.params.base import validate
from pipeline.params.recipe import Recipe
from pipeline.training.loop import Training

pytestmark = pytest.mark.usefixtures("device")

SLOTS = 9  # all views of a crop by one pixel


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_coded_world(tmp_path_factory.mktemp("coded"))


def stored(path: Path, code: str) -> Any:
    return StoredArray(array_path(path, "last", "train", code)).all()


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def copied(world: World, tmp_path: Path, name: str) -> Path:
    """Return a copy of the teacher's codes or tables, in a folder that is named as the original is."""
    target = tmp_path / name / "big"
    shutil.copytree(world.path(f"artifacts/{name}/big"), target)
    return target


def one_line(error: pytest.ExceptionInfo[StillhouseError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------ what a store of codes holds


def test_a_store_holds_the_codes_of_every_view(world: World) -> None:
    shapes = {"big-nearest": (2, 2), "big-top4": (8, 2, 2), "big-subclass": (2, 2)}
    store = world.path("artifacts/features/big.zarr")
    for name, code in CODES.items():
        path = world.path(f"artifacts/codes/big/{name}.zarr")
        manifest = manifests.read(path, "dvc repro")
        feature = manifest.features[code]
        assert (feature.slots, feature.dtype, feature.shape) == (SLOTS, "uint16", shapes[name])
        assert manifest.tables.keys() == {code.partition("@")[2]}
        values = stored(path, code)
        assert values.shape == (1 + SLOTS, 100, *shapes[name])
        assert len(np.unique(values)) > 3
        # Both stores show the same view in the same slot.
        views = [StoredArray(array_path(p, "view", "", "train")).all() for p in (path, store)]
        np.testing.assert_array_equal(*views)


def test_codes_are_made_from_the_views_own_maps(world: World) -> None:
    """The teacher's maps of every view are stored too, so the codes can be made from them by loops."""
    store = world.path("artifacts/features/big.zarr")
    maps, centers = stored(store, "final"), table_of(world, "words")["centers"]
    nearest = stored(world.path("artifacts/codes/big/big-nearest.zarr"), HARD)
    ids, _ = codebook.unpack(
        torch.from_numpy(stored(world.path("artifacts/codes/big/big-top4.zarr"), SOFT)[3])
    )
    inner, table = stored(store, INNER), table_of(world, "subclasses")
    within = stored(world.path("artifacts/codes/big/big-subclass.zarr"), SUBCLASS)
    labels, differing = world.prepared.split("train").labels, 0
    for slot in (0, 3):
        for n in range(0, 100, 7):
            for i in range(2):
                for j in range(2):
                    squared = [float(((maps[slot, n, :, i, j] - c) ** 2).sum()) for c in centers]
                    order = np.argsort(squared)
                    differing += order[0] != nearest[slot, n, i, j]
                    differing += slot == 3 and list(order[:4]) != ids[n, :, i, j].tolist()
                    z = (inner[slot, n, :, i, j] - table["mean"]) @ table["scalings"]
                    own = PER_CLASS * labels[n] + np.arange(PER_CLASS)
                    best = own[((table["centers"][own] - z) ** 2).sum(axis=1).argmin()]
                    differing += best != within[slot, n, i, j]
    assert differing == 0


def test_what_a_code_loses_is_its_loop(world: World) -> None:
    maps, table = plain_maps(world, "final").double().cpu().numpy(), table_of(world, "words")
    losses: dict[str, list[float]] = {"big-nearest": [], "big-top4": []}
    for pixel in np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]):
        weights = [math.exp(-0.5 * float(((pixel - c) ** 2).sum())) for c in table["centers"].astype(float)]
        weights = sorted((w / sum(weights) for w in weights), reverse=True)
        losses["big-nearest"].append(-math.log(weights[0]))
        losses["big-top4"].append(-math.log(sum(weights[:4])))
    for name in CODES:
        found = json.loads(world.path(f"artifacts/metrics/codes/{name}.json").read_text())
        expected = float(np.mean(losses[name])) if name in losses else 0.0
        assert found["mean_kl_lost"] == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert (found["code"], found["slots"]) == (CODES[name], SLOTS)
    assert np.mean(losses["big-nearest"]) > 0.01  # the words are near enough for the test to see something


def test_codes_are_read_as_integers(world: World) -> None:
    for run, code, resident in (("hard", HARD, 0), ("hard", HARD, 1 << 30), ("soft", SOFT, 0)):
        place = Path(world.inputs(run).stored[code].store)
        source = CachedSource({code: place}, ["last"], SLOTS, current().device, resident)
        index, image = torch.tensor([5, 99, 0]), here(torch.zeros(3, 1, 8, 8))
        found = source.begin("last", 4, index, image, here(torch.zeros_like(index)))()[code]
        assert found.dtype == torch.uint16
        np.testing.assert_array_equal(found.cpu().numpy(), stored(place, code)[4][[5, 99, 0]])


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("run", "resident"),
    [("hard", 0), ("hard", 1 << 30), ("soft", 0), ("soft", 1 << 30), ("quest", 1 << 30), ("hard-online", 0),
     ("soft-online", 0)],
)  # fmt: skip
def test_codes_are_read_and_learned_from_by_what_cuda_can_do(world: World, run: str, resident: int) -> None:
    """CUDA computes with no unsigned integers but bytes: every kind of code, through source, targets and losses."""
    inputs = world.inputs(run, recipe=Recipe(epochs=1, batch_size=50))
    with GapsOfCUDA():
        world.distil(f"gaps-{run}-{resident}", inputs, resident_bytes=resident)


@pytest.mark.cpu
def test_gaps_of_cuda_are_reported() -> None:
    """What the test above rests on."""
    code = torch.zeros(2, 3, 4, dtype=torch.uint16)
    index = torch.tensor([0, 2])
    with GapsOfCUDA():
        for compute in (
            lambda: code[1, index],
            lambda: code.index_select(1, index),
            lambda: code.flip(0),
            lambda: code == code,
            code.sort,
        ):
            with pytest.raises(NotImplementedError, match="not implemented for"):
                compute()
        assert torch.cat([code, code]).view(torch.int16)[1, index].view(torch.uint16).long().sum() == 0


# ------------------------------------------------------------------ students


def test_cached_and_online_give_the_same_losses_for_the_same_views(world: World) -> None:
    losses = {}
    for run in ("hard", "soft", "whole"):
        for name in (run, f"{run}-online"):
            folder = world.distil(name, world.inputs(name))
            losses[name] = [
                [float(row[term]) for term in ("ce", "words", "subclasses")] for row in history(folder)
            ]
            assert len(losses[name]) == 2
        # Same codes, same float32 sums. A distance of a soft code may be rounded to the next float16; whole maps
        # are stored as float32.
        np.testing.assert_allclose(losses[run], losses[f"{run}-online"], rtol=1e-3 if run == "soft" else 1e-5)
    # Soft codes are nearer to the whole form than hard ones.
    whole, soft, hard = (np.array(losses[run])[0, 1] for run in ("whole", "soft", "hard"))
    assert abs(soft - whole) < abs(hard - whole)


def test_the_layers_stay(world: World) -> None:
    inputs = world.inputs("hard")
    folder = world.distil("stay", inputs)
    (folder / "inputs.json").write_text(json.dumps(inputs.model_dump(mode="json") | {"seed": 0}))
    network, _ = load(folder / "weights")
    assert set(network.inserted) == {"final", INNER}
    saved = load_file(folder / "weights/last.safetensors")
    added = {name for name in saved if name.startswith("inserted.")}
    assert {name.rsplit(".", 1)[-1] for name in added} == {
        "kernels", "scale", "weight", "bias", "running_mean", "running_var", "num_batches_tracked", "values",
        "value_scale",
    }  # fmt: skip
    plain = build(STUDENT, 0)
    assert saved.keys() - added == plain.state_dict().keys()
    # The first weights that they share with the plain student are the same.
    first = load_file(folder / "weights/init.safetensors")
    assert all(torch.equal(first[name], x) for name, x in plain.state_dict().items())
    assert not any(torch.equal(first[name], saved[name]) for name in added if saved[name].is_floating_point())
    # What was trained is what is loaded: the evaluation during training is that of the saved weights.
    found, _ = evaluate(
        folder, world.path("data/prepared/toy"), json.loads((folder / "inputs.json").read_text()), current()
    )
    assert found["top1"] == pytest.approx(float(history(folder)[-1]["top1"]))
    words = WORDS + 4 * PER_CLASS
    assert found["params"] == num_params(plain) + 2 * 64 * words + 2 * words + 2 * 2
    assert found["macs"] == macs(plain, 8, 1) + 2 * 64 * words * 2 * 2
    image = torch.randn(20, 1, 8, 8, generator=seeding.generator(0))
    with torch.no_grad():  # without its layers the network is another one
        logits = network(image)
        again, _ = load(folder / "weights")
        torch.testing.assert_close(again(image), logits, rtol=0, atol=0)
        network.inserted = nn.ModuleDict()
        assert not torch.allclose(logits, network(image), atol=1e-3)


def test_probes_see_what_stands_before_and_after_each_layer(world: World) -> None:
    inputs = world.inputs("hard")
    folder = world.distil("probed", inputs)
    found, _ = evaluate(folder, world.path("data/prepared/toy"), {}, current())
    assert {name for name in found if name.startswith("probe_")} == {
        f"probe_{tap}{side}" for tap in ("final", INNER) for side in ("", ".input")
    }
    network, _ = load(folder / "weights")
    meta, seen = world.prepared.meta, {}
    for tap, layer in network.inserted.items():
        layer.register_forward_hook(
            lambda module, given, output, tap=tap: seen.update({tap: (given[0], output)})
        )
    pooled: dict[str, list[Any]] = {}
    for split in ("train", "test"):
        images = torch.from_numpy(np.array(world.prepared.split(split).images))
        with torch.no_grad():
            network(Normalize(meta.mean, meta.std, torch.device("cpu"))(images))
        for tap, pair in seen.items():
            for side, x in zip((".input", ""), pair, strict=True):
                pooled.setdefault(f"probe_{tap}{side}", []).append(x.double().sum(dim=(2, 3)).numpy() / 4)
    labels = [np.asarray(world.prepared.split(split).labels) for split in ("train", "test")]
    for name, (train, test) in pooled.items():
        lda = LinearDiscriminantAnalysis().fit(train, labels[0])
        assert found[name] == 100 * lda.score(test, labels[1]), name
    plain, _ = evaluate(world.path("artifacts/teachers/big"), world.path("data/prepared/toy"), {}, current())
    assert not any(name.startswith("probe_") for name in plain)


def test_loaded_logits_are_the_trained_network_s(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[nn.Module] = []
    run = Training.run
    monkeypatch.setattr(Training, "run", lambda self: (kept.append(self.modules["student"]), run(self))[1])
    folder = world.distil("logits", world.inputs("letkd1"))
    image = torch.randn(20, 1, 8, 8, generator=seeding.generator(1))
    with torch.no_grad():
        expected = kept[0].cpu().eval()(image)
        torch.testing.assert_close(load(folder / "weights")[0](image), expected, rtol=0, atol=0)


def test_a_layer_can_be_given_to_any_method(world: World) -> None:
    """The control of supplementary Table 6: FitNets on a student with as many parameters, unsupervised."""
    inputs = world.inputs("capacity")
    assert "pipeline/networks/layers/kd_layer.py" in inputs.code
    assert "pipeline/networks/layers/kd_layer.py" not in world.inputs("kd").code
    folder = world.distil("capacity", inputs)
    network, _ = load(folder / "weights")
    assert num_params(network) == num_params(build(STUDENT, 0)) + 2 * 64 * 5 + 2 * 5 + 2
    first, last = (load_file(folder / f"weights/{name}.safetensors") for name in ("init", "last"))
    for name in ("scores.kernels", "scores.scale", "norm.weight", "values", "value_scale"):
        assert not torch.equal(first[f"inserted.final.{name}"], last[f"inserted.final.{name}"]), name
    assert set(history(folder)[0]) >= {"ce", "hint"}


def test_quest_learns_from_codes_and_keeps_a_plain_student(world: World) -> None:
    folder = world.distil("quest", world.inputs("quest"))
    assert load_file(folder / "weights/last.safetensors").keys() == build(STUDENT, 0).state_dict().keys()
    assert float(history(folder)[1]["words"]) < float(history(folder)[0]["words"])


@pytest.mark.parametrize(("method", "t", "other"), [("quest", 5.0, 1.0), ("letkd", 1.0, 5.0)])
def test_a_run_is_the_same_with_its_place_written_out(
    world: World, method: str, t: float, other: float
) -> None:
    def trained(name: str, config: dict[str, Any]) -> bytes:
        model = plugin.load("methods", method).Config
        config = validate(model, config, "runs.x").resolved(KNOWN).model_dump(mode="json")
        inputs = world.inputs("letkd1", method=method, config=config)
        folder = world.distil(f"{method}-{name}", inputs)
        return (folder / "weights/last.safetensors").read_bytes()

    default = trained("default", {})
    written: dict[str, Any] = {
        "name": "words",
        "table": {"table": "words"},
        "t": {"table": "words", "temperature": t},
    }
    for name, place in written.items():
        assert trained(name, {"places": {"final": place}}) == default, name
    assert trained("other", {"places": {"final": {"table": "words", "temperature": other}}}) != default


# ------------------------------------------------------------------ what a run depends on


@pytest.mark.cpu
def test_inputs_name_the_codes_and_tables_that_are_read(world: World) -> None:
    hard, online = world.inputs("hard"), world.inputs("hard-online")
    assert {name: Path(one.store).stem for name, one in hard.stored.items()} == {
        HARD: "big-nearest",
        SUBCLASS: "big-subclass",
    }
    assert set(hard.tables) == set(online.tables) == {"words", "subclasses"}
    assert (online.stored, set(online.weights), hard.weights) == ({}, {"last"}, {})
    for inputs in (hard, online):
        assert {
            f"pipeline/features/encodings/{name}.py" for name in ("nearest", "subclass")
        } <= inputs.code.keys()
        assert "pipeline/networks/layers/kd_layer.py" in inputs.code


@pytest.mark.cpu
def test_a_new_table_changes_the_runs_that_read_it_and_no_others(world: World, tmp_path: Path) -> None:
    before = world.resolve(tmp_path / "before")
    tables, codes = copied(world, tmp_path, "tables"), copied(world, tmp_path, "codes")
    other = tmp_path / "other"
    other.mkdir()
    write_tables(world, other, seed=1)
    shutil.copy(other / "words.npz", tables / "words.npz")
    for name in ("big-nearest", "big-top4"):
        encode(
            world,
            name,
            table=tables / "words.npz",
            out=codes / f"{name}.zarr",
            summary=tables / f"{name}.json",
            metrics=tmp_path / "metrics.json",
        )
    after = world.resolve(tmp_path / "after", tables=tables, codes=codes)
    for run, content in after.items():  # the paths change with the copies
        for copy, name in ((tables, "tables"), (codes, "codes")):
            content = content.replace(str(copy).encode(), str(world.path(f"artifacts/{name}/big")).encode())
        after[run] = content
    changed = {run for run in before if before[run] != after[run]}
    assert changed == {
        "hard",
        "soft",
        "whole",
        "letkd1",
        "quest",
        *(f"{r}-online" for r in ("hard", "soft", "whole")),
    }
    assert {"kd", "capacity"} == before.keys() - changed


def resolve_error(world: World, out: Path, **places: Path) -> str:
    with pytest.raises(StillhouseError) as error:
        world.resolve(out, **places)
    assert not out.exists()
    return one_line(error)


@pytest.mark.cpu
def test_codes_of_another_table_are_refused_with_the_command(world: World, tmp_path: Path) -> None:
    tables = copied(world, tmp_path, "tables")
    write_tables(world, tables, seed=1)  # and the codes are not made again
    message = resolve_error(world, tmp_path / "out", tables=tables)
    assert "was made with other tables" in message
    assert "dvc repro encode_views@big-nearest" in message


@pytest.mark.cpu
@pytest.mark.parametrize("field", ["weights", "data", "std", "views"])
def test_codes_of_something_else_are_refused_with_the_command(
    world: World, tmp_path: Path, field: str
) -> None:
    codes = copied(world, tmp_path, "codes")
    path = codes / "big-subclass.zarr/zarr.json"
    content = json.loads(path.read_text())
    other: dict[str, Any] = {
        "weights": {"last": "0"}, "data": {"train": "0", "test": "0"}, "std": [0.5], "views": {"space": "plain"},
    }  # fmt: skip
    content["attributes"][field] = other[field]
    path.write_text(json.dumps(content))
    message = resolve_error(world, tmp_path / "out", codes=codes)
    assert f"was made with other {field}" in message
    assert "dvc repro encode_views@big-subclass" in message


@pytest.mark.cpu
def test_an_unknown_layer_is_told_by_its_name(world: World, tmp_path: Path) -> None:
    pair = world.blocks(runs={"kd": {"config": {"insert": {"final": "kd_layr"}}}}) / "pairs/pair.json"
    message = resolve_error(world, tmp_path / "out", block=pair)
    assert "'kd_layr'" in message
    assert "Did you mean 'kd_layer'?" in message


@pytest.mark.cpu
def test_a_code_that_nobody_asked_for_names_the_line(world: World, tmp_path: Path) -> None:
    tables = copied(world, tmp_path, "tables")
    (tables / "big-top4.json").unlink()
    message = resolve_error(world, tmp_path / "out", tables=tables)
    assert f"Teacher 'big' has no code '{SOFT}'" in message
    line = "Add big-words-codes: {teacher: big, table: words, feature: final:top4} to 'codes' in params.yaml"
    assert line in message
    assert "source: online" in message


@pytest.mark.cpu
def test_too_few_slots_and_other_checkpoints_name_the_cure(world: World, tmp_path: Path) -> None:
    codes, tables = copied(world, tmp_path, "codes"), copied(world, tmp_path, "tables")
    block = tmp_path / "few.json"
    content = json.loads(world.path("artifacts/params/codes/big-nearest.json").read_text())
    block.write_text(json.dumps(content | {"slots": 2}))
    places = {"out": codes / "big-nearest.zarr", "summary": tables / "big-nearest.json"}
    encode(world, "big-nearest", block=block, metrics=tmp_path / "metrics.json", **places)
    message = resolve_error(world, tmp_path / "out", codes=codes, tables=tables)
    assert "holds 2 view slots" in message
    assert "Lower 'slots' of the run, or set 'source: online' of the run" in message
    anchors = {"schedule": "anchors", "schedule_config": {"anchors": ["anchor_050", "last"]}}
    pair = world.blocks(runs={"hard": anchors}) / "pairs/pair.json"
    message = resolve_error(world, tmp_path / "out", block=pair)
    assert "does not hold checkpoint 'anchor_050'" in message
    assert "Set 'source: online'" in message


@pytest.mark.cpu
def test_a_run_refuses_codes_that_changed_since_it_was_resolved(world: World, tmp_path: Path) -> None:
    codes = copied(world, tmp_path, "codes")
    inputs = world.inputs("hard")
    other = {"store": str(codes / "big-nearest.zarr"), "digest": {"last/train": "0"}}
    one = inputs.stored[HARD].model_copy(update=other)
    with pytest.raises(StaleArtifactError, match=r"does not hold the 'final:nearest@words'"):
        world.distil("stale", inputs.model_copy(update={"stored": inputs.stored | {HARD: one}}))


# ------------------------------------------------------------------ making codes


@pytest.mark.cpu
def test_a_table_of_something_else_is_not_encoded_with(world: World, tmp_path: Path) -> None:
    for number, (origin, match) in enumerate((
        ({"teacher": "tall"}, "was fitted to teacher 'tall', expected 'big'"),
        ({"digest": "0"}, "was fitted to another 'final' than"),
    )):  # fmt: skip
        write_tables(world, tmp_path, **origin)
        out = tmp_path / f"codes/big/{number}.zarr"
        with pytest.raises(StaleArtifactError, match=match) as error:
            encode(world, "big-nearest", table=tmp_path / "words.npz", out=out)
        assert "dvc repro" in one_line(error)
        assert not out.exists()
    with pytest.raises(
        ParamsError, match=r"encodes 'final', and table 'words' was fitted to 'stage3_block1'"
    ):
        encode(world, "big-nearest", table=world.path("artifacts/tables/big/subclasses.npz"),
               out=tmp_path / "codes/big/third.zarr")  # fmt: skip
    with pytest.raises(MissingArtifactError):
        encode(world, "big-nearest", table=tmp_path / "none.npz", out=tmp_path / "codes/big/fourth.zarr")


@pytest.mark.parametrize(("name", "after"), [("big-nearest", 8), ("big-top4", 11), ("big-subclass", 20)])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int
) -> None:
    monkeypatch.setattr(encoding, "Extraction", partial(Extraction, shard_bytes=2500))  # many shards
    places = {"summary": tmp_path / "summary.json", "metrics": tmp_path / "metrics.json"}
    whole = encode(world, name, out=tmp_path / "codes/whole/x.zarr", **places)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "bar", cut_off_bar(after))  # of 20 batches
        with pytest.raises(CutOffError):
            encode(world, name, out=tmp_path / "codes/cut/x.zarr", **places)
    assert not (tmp_path / "codes/cut/x.zarr").exists()
    assert not places["summary"].exists()
    begun = list((tmp_path / "codes/cut").rglob("progress.json"))
    assert len(begun) == 1
    cut = encode(world, name, out=tmp_path / "codes/cut/x.zarr", **places)
    assert contents(cut) == contents(whole)
    assert contents(whole)


# ------------------------------------------------------------------ the gate inside


def shares(world: World, path: Path, code: str, rows: int = 64) -> tuple[float, float]:
    """Return the mean and the largest share of codes that differ when they are made again."""
    table = code.partition("@")[2]
    prepared = world.prepared
    manifest = manifests.read(path, "dvc repro")
    live = Live.of(
        load(world.path("artifacts/teachers/big/weights"))[0],
        manifest.precision,
        current().device,
        Normalize(manifest.mean, manifest.std, current().device),
        on_device({table: table_of(world, table)}, current()),
    )
    splits = {"train": prepared.split("train")}
    every, worst = compare(path, manifest, live, "last", splits, view_space(manifest.views), rows=rows)
    return every.error, worst.error


@pytest.mark.parametrize("name", CODES)
def test_the_gate_passes_good_codes_and_finds_shuffled_rows(world: World, tmp_path: Path, name: str) -> None:
    path, code = tmp_path / "codes/big/copy.zarr", CODES[name]
    shutil.copytree(world.path(f"artifacts/codes/big/{name}.zarr"), path)
    mean, worst = shares(world, path, code)
    assert mean < SHARE / 5
    assert worst <= 0.25  # one of four pixels
    array = StoredArray(array_path(path, "last", "train", code))
    values = array.all()
    array.write(0, 0, np.roll(values, 1, axis=1))  # every row is the row of the sample before
    mean, worst = shares(world, path, code)
    assert mean > 4 * SHARE
    assert worst > CODES_OF_A_SAMPLE
    array.write(0, 0, np.roll(values, 3, axis=0))  # every slot is another one
    assert shares(world, path, code)[0] > SHARE


def test_a_store_that_the_gate_refuses_is_not_published(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = encoding.fill

    def shuffled(scratch: Path, *arguments: Any) -> Any:
        manifest = real(scratch, *arguments)
        array = StoredArray(array_path(scratch, "last", "train", HARD))
        array.write(0, 0, np.roll(array.all(), 1, axis=1))
        return manifest

    monkeypatch.setattr(encoding, "fill", shuffled)
    out = tmp_path / "codes/big/x.zarr"
    with pytest.raises(
        StaleArtifactError, match=r"differs from the live teacher by .* \(codes.*\), expected at most"
    ) as error:
        encode(world, "big-nearest", out=out, summary=tmp_path / "s.json", metrics=tmp_path / "m.json")
    one_line(error)
    assert not out.exists()
    assert not (tmp_path / "s.json").exists()


def test_soft_codes_may_differ_by_rounding_and_by_nothing_else() -> None:
    ids = here(torch.tensor([0, 1, 2, 3])).view(1, 4, 1, 1)
    near = here(torch.tensor([0.0, 1.0, 2.0, 4.0])).view(1, 4, 1, 1)
    code = codebook.pack(ids, near, 4)
    assert differing(code, code).tolist() == [0]
    assert differing(codebook.pack(ids, near * 1.002, 4), code).tolist() == [0]
    assert differing(codebook.pack(ids, near * 1.02, 4), code).tolist() == [1 / 8]  # the farthest by 2 %
    assert differing(codebook.pack(ids.flip(1), near, 4), code).tolist() == [1 / 2]
