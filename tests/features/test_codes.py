"""Codes of fitted tables through the stages' own commands: from a table to a student that learns from its codes."""

from __future__ import annotations

import csv
import json
import math
import shutil
from contextlib import nullcontext
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
    RUNS,
    SOFT,
    SUBCLASS,
    TABLES,
    WORDS,
    encode,
    make_coded_world,
    plain_maps,
    store_of,
    table_of,
    write_tables,
)
from device_fixtures import GapsOfCUDA, current, here
from error_fixtures import one_line
from feature_fixtures import CutOffError, cut_off, features_of, rewrite_manifest, sign
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
from pipeline.params.plug import Plug
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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------ what a store of codes holds


def test_a_store_holds_the_codes_of_every_view(world: World) -> None:
    shapes = {HARD: (2, 2), SOFT: (8, 2, 2), SUBCLASS: (2, 2)}
    store = world.path("artifacts/features/big.zarr")
    for name, code in CODES.items():
        path, table = store_of(world, code), code.partition("@")[2]
        assert path == world.path(f"artifacts/codes/big/{table}/{name}.zarr")
        manifest = manifests.read(path, "dvc repro")
        assert manifest.made_by == f"encode_views@big-{table}"
        feature = manifest.features[code]
        assert (feature.slots, feature.dtype, feature.shape) == (SLOTS, "uint16", shapes[code])
        assert manifest.tables.keys() == {table}
        values = stored(path, code)
        assert values.shape == (1 + SLOTS, 100, *shapes[code])
        assert len(np.unique(values)) > 3
        # Both stores show the same view in the same slot.
        views = [StoredArray(array_path(p, "view", "", "train")).all() for p in (path, store)]
        np.testing.assert_array_equal(*views)


def test_codes_are_made_from_the_views_own_maps(world: World) -> None:
    """The teacher's maps of every view are stored too, so the codes can be made from them by loops."""
    store = world.path("artifacts/features/big.zarr")
    maps, centers = stored(store, "final"), table_of(world, "words")["centers"]
    nearest = stored(store_of(world, HARD), HARD)
    ids, _ = codebook.unpack(torch.from_numpy(stored(store_of(world, SOFT), SOFT)[3]))
    inner, table = stored(store, INNER), table_of(world, "subclasses")
    within = stored(store_of(world, SUBCLASS), SUBCLASS)
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
    losses: dict[str, list[float]] = {HARD: [], SOFT: []}
    for pixel in np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]):
        weights = [math.exp(-0.5 * float(((pixel - c) ** 2).sum())) for c in table["centers"].astype(float)]
        weights = sorted((w / sum(weights) for w in weights), reverse=True)
        losses[HARD].append(-math.log(weights[0]))
        losses[SOFT].append(-math.log(sum(weights[:4])))
    for table in TABLES:
        content = json.loads(world.path(f"artifacts/metrics/codes/big/{table}.json").read_text())
        metrics = {code: found for code, found in content.items() if not code.startswith("_")}
        assert metrics.keys() == {code for code in CODES.values() if code.endswith(f"@{table}")}
        for code, found in metrics.items():
            expected = float(np.mean(losses[code])) if code in losses else 0.0
            assert found["mean_kl_lost"] == pytest.approx(expected, rel=1e-4, abs=1e-7)
            assert found["slots"] == SLOTS
    assert np.mean(losses[HARD]) > 0.01  # the words are near enough for the test to see something


def test_codes_are_read_as_integers(world: World) -> None:
    for run, code, resident in (("hard", HARD, 0), ("hard", HARD, 1 << 30), ("soft", SOFT, 0)):
        place = Path(world.inputs(run).stored[code].store)
        source = CachedSource({code: place}, ["last"], SLOTS, current().device, resident)
        index, image = torch.tensor([5, 99, 0]), here(torch.zeros(3, 1, 8, 8))
        found = features_of(source, "last", 4, index, image)[code]
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
        world.distill(f"gaps-{run}-{resident}", inputs, resident_bytes=resident)


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
            folder = world.distill(name, world.inputs(name))
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
    folder = world.distill("stay", inputs)
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
    folder = world.distill("probed", inputs)
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
    folder = world.distill("logits", world.inputs("letkd1"))
    image = torch.randn(20, 1, 8, 8, generator=seeding.generator(1))
    with torch.no_grad():
        expected = kept[0].cpu().eval()(image)
        torch.testing.assert_close(load(folder / "weights")[0](image), expected, rtol=0, atol=0)


def test_a_layer_can_be_given_to_any_method(world: World) -> None:
    """The control of supplementary Table 6: FitNets on a student with as many parameters, unsupervised."""
    inputs = world.inputs("capacity")
    assert "pipeline/networks/layers/kd_layer.py" in inputs.code
    assert "pipeline/networks/layers/kd_layer.py" not in world.inputs("kd").code
    folder = world.distill("capacity", inputs)
    network, _ = load(folder / "weights")
    assert num_params(network) == num_params(build(STUDENT, 0)) + 2 * 64 * 5 + 2 * 5 + 2
    first, last = (load_file(folder / f"weights/{name}.safetensors") for name in ("init", "last"))
    for name in ("scores.kernels", "scores.scale", "norm.weight", "values", "value_scale"):
        assert not torch.equal(first[f"inserted.final.{name}"], last[f"inserted.final.{name}"]), name
    assert set(history(folder)[0]) >= {"ce", "hint"}


def test_quest_learns_from_codes_and_keeps_a_plain_student(world: World) -> None:
    folder = world.distill("quest", world.inputs("quest"))
    assert load_file(folder / "weights/last.safetensors").keys() == build(STUDENT, 0).state_dict().keys()
    assert float(history(folder)[1]["words"]) < float(history(folder)[0]["words"])


@pytest.mark.parametrize(("method", "t", "other"), [("quest", 5.0, 1.0), ("letkd", 1.0, 5.0)])
def test_a_run_is_the_same_with_its_place_written_out(
    world: World, method: str, t: float, other: float
) -> None:
    def trained(name: str, config: dict[str, Any]) -> bytes:
        model = plugin.load("methods", method).Config
        config = validate(model, config, "runs.x").resolved(KNOWN).model_dump(mode="json")
        inputs = world.inputs("letkd1", methods=(Plug.of(method, **config),))
        folder = world.distill(f"{method}-{name}", inputs)
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
        HARD: "nearest",
        SUBCLASS: "subclass",
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
    paths = {"table": tables / "words.npz", "out": codes / "words", "metrics": tmp_path / "metrics.json"}
    encode(world, "words", **paths)
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
    assert "dvc repro --force --single-item encode_views@big-words" in message


@pytest.mark.cpu
@pytest.mark.parametrize("field", ["weights", "data", "std", "views"])
def test_codes_of_something_else_are_refused_with_the_command(
    world: World, tmp_path: Path, field: str
) -> None:
    codes = copied(world, tmp_path, "codes")
    other: dict[str, Any] = {
        "weights": {"last": "0"}, "data": {"train": "0", "test": "0"}, "std": [0.5], "views": {"space": "plain"},
    }  # fmt: skip
    rewrite_manifest(codes / "subclasses/subclass.zarr", lambda said: said.update({field: other[field]}))
    message = resolve_error(world, tmp_path / "out", codes=codes)
    assert f"was made with other {field}" in message
    assert "dvc repro --force --single-item encode_views@big-subclasses" in message


@pytest.mark.cpu
def test_codes_that_are_not_there_name_their_stage(world: World, tmp_path: Path) -> None:
    codes = copied(world, tmp_path, "codes")
    shutil.rmtree(codes / "words/top4.zarr")
    message = resolve_error(world, tmp_path / "out", codes=codes)
    assert "top4.zarr holds no store" in message
    assert "dvc repro encode_views@big-words" in message


@pytest.mark.cpu
def test_a_table_that_nobody_asks_codes_of_has_an_empty_folder(world: World, tmp_path: Path) -> None:
    block = world.path("artifacts/inputs/teachers/big/codes/moments.json")
    assert json.loads(block.read_text()) is None
    out = encode(
        world, "moments", out=tmp_path / "moments", metrics=tmp_path / "metrics.json", table=tmp_path / "none"
    )
    assert list(out.iterdir()) == []
    assert json.loads((tmp_path / "metrics.json").read_text()) == {}


@pytest.mark.cpu
def test_codes_are_made_of_as_many_slots_as_runs_show(world: World) -> None:
    """The most of all runs; a run that shows fewer reads a part of them, one that shows none asks for none."""
    asked = {}
    for name, slots in {"few": (2, 3), "more": (2, "all")}.items():
        runs = {f"{name}-{i}": RUNS["hard"] | {"slots": number} for i, number in enumerate(slots)}
        runs["online"] = RUNS["hard"] | {"source": "online"}
        blocks = world.blocks(runs=runs, distill=[f"pair/{run}" for run in runs])
        asked[name] = json.loads((blocks / "teachers/big/asked.json").read_text())["codes"]
    assert asked["few"]["words"]["codes"] == {HARD: 3}
    assert asked["more"]["words"]["codes"] == {HARD: SLOTS}
    assert asked["few"]["subclasses"]["codes"] == {SUBCLASS: 3}
    online = world.blocks(runs={"online": RUNS["hard"] | {"source": "online"}}, distill=["pair/online"])
    assert set(json.loads((online / "teachers/big/asked.json").read_text())["codes"].values()) == {None}


@pytest.mark.cpu
def test_codes_of_too_few_slots_name_the_cure(world: World, tmp_path: Path) -> None:
    codes = copied(world, tmp_path, "codes")
    few = {HARD: 2, SOFT: 2}
    encode(world, "words", few, out=codes / "words", metrics=tmp_path / "metrics.json")
    message = resolve_error(world, tmp_path / "out", codes=codes)
    assert "holds 2 view slots" in message
    assert "Lower 'slots' of the run, or set 'source: online' of the run" in message


@pytest.mark.cpu
def test_a_run_refuses_codes_that_changed_since_it_was_resolved(world: World, tmp_path: Path) -> None:
    codes = copied(world, tmp_path, "codes")
    inputs = world.inputs("hard")
    other = {"store": str(codes / "words/nearest.zarr"), "digest": {"last/train": "0"}}
    one = inputs.stored[HARD].model_copy(update=other)
    with pytest.raises(StaleArtifactError, match=r"does not hold the 'final:nearest@words'"):
        world.distill("stale", inputs.model_copy(update={"stored": inputs.stored | {HARD: one}}))


# ------------------------------------------------------------------ making codes


@pytest.mark.cpu
def test_a_table_of_something_else_is_not_encoded_with(world: World, tmp_path: Path) -> None:
    for number, (origin, match) in enumerate((
        ({"teacher": "tall"}, "was fitted to teacher 'tall', expected 'big'"),
        ({"digest": "0"}, "was fitted to another 'final' than"),
    )):  # fmt: skip
        write_tables(world, tmp_path, **origin)
        out = tmp_path / f"codes/big/{number}"
        with pytest.raises(StaleArtifactError, match=match) as error:
            encode(world, "words", table=tmp_path / "words.npz", out=out)
        assert "dvc repro" in one_line(error)
        assert not out.exists()
    with pytest.raises(
        ParamsError, match=r"encodes 'final', and table 'words' was fitted to 'stage3_block1'"
    ):
        encode(world, "words", table=world.path("artifacts/tables/big/subclasses.npz"),
               out=tmp_path / "codes/big/third")  # fmt: skip
    with pytest.raises(MissingArtifactError):
        encode(world, "words", table=tmp_path / "none.npz", out=tmp_path / "codes/big/fourth")


@pytest.mark.parametrize(("table", "after"), [("words", 8), ("words", 31), ("subclasses", 20)])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, after: int
) -> None:
    """A code takes twenty batches, and two to measure: the second code of `words` is interrupted at 31."""
    monkeypatch.setattr(encoding, "Extraction", partial(Extraction, shard_bytes=2500))  # many shards
    whole = encode(world, table, out=tmp_path / "codes/whole/x", metrics=tmp_path / "whole.json")
    metrics, advance = tmp_path / "metrics.json", cut_off(after)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "bar", lambda title, total: nullcontext(advance))
        with pytest.raises(CutOffError):
            encode(world, table, out=tmp_path / "codes/cut/x", metrics=metrics)
    assert not (tmp_path / "codes/cut/x").exists()
    assert not metrics.exists()
    begun = list((tmp_path / "codes/cut").rglob("progress.json"))
    assert len(begun) == 1

    filled: list[str] = []
    real = encoding.fill
    monkeypatch.setattr(
        encoding, "fill", lambda path, *rest: (filled.append(path.name), real(path, *rest))[1]
    )
    cut = encode(world, table, out=tmp_path / "codes/cut/x", metrics=metrics)
    assert len(filled) == (
        2 if (table, after) == ("words", 8) else 1
    )  # a code that was whole is not made again
    assert contents(cut) == contents(whole)
    assert contents(whole)
    assert metrics.read_text() == (tmp_path / "whole.json").read_text()


@pytest.mark.cpu
def test_what_an_interrupted_run_left_of_other_codes_is_dropped(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, metrics, advance = tmp_path / "codes/x", tmp_path / "metrics.json", cut_off(31)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "bar", lambda title, total: nullcontext(advance))
        with pytest.raises(CutOffError):
            encode(world, "words", out=out, metrics=metrics)
    encode(world, "words", {SOFT: SLOTS}, out=out, metrics=metrics)
    assert [path.name for path in out.iterdir()] == ["top4.zarr"]


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


@pytest.mark.parametrize("code", CODES.values())
def test_the_gate_passes_good_codes_and_finds_shuffled_rows(world: World, tmp_path: Path, code: str) -> None:
    path = tmp_path / "codes/big/copy.zarr"
    shutil.copytree(store_of(world, code), path)
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
        real(scratch, *arguments)
        array = StoredArray(array_path(scratch, "last", "train", HARD))
        array.write(0, 0, np.roll(array.all(), 1, axis=1))
        sign(scratch, "last", "train", HARD)
        return manifests.read(scratch, "dvc repro")

    monkeypatch.setattr(encoding, "fill", shuffled)
    out, metrics = tmp_path / "codes/big/x", tmp_path / "m.json"
    with pytest.raises(
        StaleArtifactError, match=r"differs from the live teacher by .* \(codes.*\), expected at most"
    ) as error:
        encode(world, "words", {HARD: SLOTS}, out=out, metrics=metrics)
    one_line(error)
    assert not out.exists()
    assert not metrics.exists()


def test_soft_codes_may_differ_by_rounding_and_by_nothing_else() -> None:
    ids = here(torch.tensor([0, 1, 2, 3])).view(1, 4, 1, 1)
    near = here(torch.tensor([0.0, 1.0, 2.0, 4.0])).view(1, 4, 1, 1)
    code = codebook.pack(ids, near, 4)
    assert differing(code, code).tolist() == [0]
    assert differing(codebook.pack(ids, near * 1.002, 4), code).tolist() == [0]
    assert differing(codebook.pack(ids, near * 1.02, 4), code).tolist() == [1 / 8]  # the farthest by 2 %
    assert differing(codebook.pack(ids.flip(1), near, 4), code).tolist() == [1 / 2]
