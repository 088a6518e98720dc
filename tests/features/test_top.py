"""A store that keeps the largest logits: its code, what readers get, what the gate says is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from device_fixtures import GapsOfCUDA, current, here
from error_fixtures import one_line
from feature_fixtures import (
    CROPS,
    HINT,
    Small,
    extract_block,
    extraction,
    features_of,
    network,
    prepare,
    run_stage,
    save_teacher,
    sign,
    small_store,
)
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.data.views import view_ids, view_space
from pipeline.errors import ParamsError
from pipeline.features import check, difference, manifest, top
from pipeline.features.check import Live
from pipeline.features.contents import StoredFeature, StoredTop
from pipeline.features.loss import losses
from pipeline.features.source import CachedSource, OnlineSource
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher
from pipeline.params.top import Top
from stages import check_features, extract_features

pytestmark = pytest.mark.usefixtures("device")

Array = NDArray[Any]
Dtype = Literal["float16", "float32"]

KEPT = Top(kept=3, dtype="float16")
REQUESTED = {"logits": (2, "float16"), "stage3:pooled": (0, "float16")}
# Of a value; float16 has 11 bits.
ROUNDED: dict[Dtype, float] = {"float16": 2**-11, "float32": 2**-22}


def drawn(rows: int = 7, classes: int = 12, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes))


def read_back(logits: Array, kept: int) -> Array:
    """Return by its definition what is left of logits (N, K), without any rounding: slowly, one view at a time."""
    rows = []
    for z in logits.astype(np.float64).tolist():
        order = sorted(range(len(z)), key=lambda c: (-z[c], c))
        named, others = order[:kept], order[kept:]
        rest = math.log(sum(math.exp(z[c]) for c in others) / len(others))
        rows.append([z[c] if c in named else rest for c in range(len(z))])
    return np.array(rows)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kept", [1, 4, 11])
def test_the_largest_stay_and_the_others_share_the_rest(kept: int, dtype: Dtype) -> None:
    logits, settings = drawn(), Top(kept=kept, dtype=dtype)
    with GapsOfCUDA():
        code = top.encode(here(logits), settings)
        found = top.decode(code, settings, 12).cpu()

    assert code.dtype == torch.uint16
    assert code.shape == (7, settings.width)
    assert 2 * settings.width == 2 * kept + (kept + 1) * (2 if dtype == "float16" else 4)
    torch.testing.assert_close(
        found.double(), torch.from_numpy(read_back(logits.numpy(), kept)), rtol=ROUNDED[dtype], atol=1e-6
    )
    assert torch.equal(found.argmax(dim=1), logits.argmax(dim=1))
    # The rounding of single logits alone.
    torch.testing.assert_close(
        found.logsumexp(dim=1), logits.logsumexp(dim=1), rtol=0, atol=20 * ROUNDED[dtype]
    )


def test_at_temperature_1_the_kept_probabilities_are_the_teachers() -> None:
    logits, settings = drawn(), Top(kept=4, dtype="float32")
    p, q = logits.softmax(dim=1), top.kept(here(logits), settings).cpu().softmax(dim=1)
    largest = p.topk(4, dim=1).indices
    torch.testing.assert_close(q.gather(1, largest), p.gather(1, largest))
    # The others have one probability, which is the mean of theirs.
    others = torch.ones_like(p).scatter(1, largest, 0).bool()
    mean = p[others].view(7, 8).mean(dim=1, keepdim=True).expand(7, 8)
    torch.testing.assert_close(q[others].view(7, 8), mean)


def test_of_equal_logits_the_smaller_ids_are_kept() -> None:
    logits = torch.tensor([[0.0, 2, 1, 2, 1, 1], [5, 5, 5, 5, 5, 5]])
    ids, numbers = top.unpack(top.encode(here(logits), Top(kept=3)), Top(kept=3))
    assert ids.tolist() == [[1, 3, 2], [0, 1, 2]]
    assert numbers[:, :3].tolist() == [[2, 2, 1], [5, 5, 5]]
    # Few bits make many ties, in as many classes as a sort might put in any order.
    coarse = drawn(4, 1000).bfloat16().float()
    ids, _ = top.unpack(top.encode(here(coarse), Top(kept=64)), Top(kept=64))
    assert ids.tolist() == [
        sorted(range(1000), key=lambda c, z=row: (-z[c], c))[:64] for row in coarse.tolist()
    ]


def test_what_float16_cannot_hold_stays_finite() -> None:
    logits = torch.tensor([[1e6, 0.0, -1e6, -2e6]])
    found = top.kept(here(logits), Top(kept=2)).cpu()
    assert found.tolist() == [[65504, 0, -65504, -65504]]


def test_ids_are_told_apart_up_to_16_bits() -> None:
    logits = torch.zeros(1, 1 << 16)
    logits[0, -1] = 1
    assert int(top.kept(here(logits), Top(kept=1)).argmax()) == (1 << 16) - 1
    with pytest.raises(ParamsError) as error:
        top.encode(here(torch.zeros(1, (1 << 16) + 1)), Top(kept=1))
    one_line(error, "65,536", "65,537", "Drop 'top'")


def test_a_store_that_keeps_all_says_nothing_of_it() -> None:
    """So its manifest has the bytes that it had before, and what depends on them is not made again."""
    plain = StoredFeature(slots=1, dtype="float16", shape=(10,))
    assert plain.model_dump(mode="json").keys() == {"slots", "dtype", "shape", "digest"}
    assert plain.read_shape == (10,)
    coded = StoredFeature(slots=1, dtype="uint16", shape=(7,), top=StoredTop(kept=3, classes=10))
    assert coded.read_shape == (10,)
    assert StoredFeature.model_validate_json(coded.model_dump_json()) == coded


# Stores.


@pytest.fixture(scope="module")
def small(device: str, tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("largest")
    return small_store(folder, requested=REQUESTED, largest={"logits": KEPT})


def teacher(small: Small, largest: bool = False, checkpoint: str = "last") -> Teacher:
    return Teacher(small.networks[checkpoint], current(), largest={"logits": KEPT} if largest else None)


def normalize(small: Small) -> Normalize:
    return Normalize(small.prepared.meta.mean, small.prepared.meta.std, current().device)


def shown(small: Small, slot: int, index: Tensor, split: str = "train") -> Tensor:
    space = view_space(CROPS)
    rows = small.prepared.splits[split].images.rows(index.numpy())
    image, index = here(torch.from_numpy(rows)), here(index)
    return normalize(small)(space.apply(image, view_ids(space, slot, index), index))


@pytest.mark.parametrize("resident_bytes", [1 << 30, 0], ids=["resident", "batch by batch"])
@pytest.mark.parametrize("checkpoint", ["last", "anchor_050"])
def test_cached_is_what_online_gives(small: Small, checkpoint: str, resident_bytes: int) -> None:
    names = ["logits"]
    cached = CachedSource({"logits": small.path}, [checkpoint], 2, current().device, resident_bytes)
    online = OnlineSource({checkpoint: teacher(small, largest=True, checkpoint=checkpoint)}, names)
    whole = teacher(small, checkpoint=checkpoint)

    for slot in range(3):
        index = torch.arange(50).roll(slot)
        image = shown(small, slot, index)
        ours = features_of(cached, checkpoint, slot, index, image)["logits"]
        live = features_of(online, checkpoint, slot, index, image)["logits"]
        logits = whole.features(image, names, here(torch.zeros_like(index)))["logits"]

        assert ours.dtype == live.dtype == torch.float32
        torch.testing.assert_close(ours, live, rtol=1e-3, atol=1e-3)
        expected = torch.from_numpy(read_back(logits.cpu().numpy(), KEPT.kept))
        torch.testing.assert_close(live.cpu().double(), expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(live, logits, rtol=1e-2, atol=1e-2)


def test_the_manifest_says_what_the_array_holds(small: Small) -> None:
    stored = manifest.read(small.path, HINT).features
    assert stored["logits"].top == StoredTop(kept=3, dtype="float16", classes=10)
    assert (stored["logits"].dtype, stored["logits"].shape) == ("uint16", (7,))
    assert StoredArray.of(small.path, "last", "test", "logits").shape == (1, 12, 7)
    assert "top" not in stored["stage3:pooled"].model_dump(mode="json")


def test_as_many_as_there_are_classes_is_refused(tmp_path: Path) -> None:
    prepared, (one, spec) = prepare(tmp_path), network()
    with pytest.raises(ParamsError) as error:
        extraction(prepared, {"last": one}, spec, requested=REQUESTED, largest={"logits": Top(kept=10)})
    one_line(error, "features.logits.top is 10", "10 classes", "Lower it")


# The gate.


def worst(small: Small, path: Path) -> dict[str, float]:
    """Return the largest share of what rounding explains, by array of the checkpoint "last"."""
    live = Live.of(small.networks["last"], small.manifest.precision, current().device, normalize(small))
    found = check.compare(
        path, small.manifest, live, "last", small.prepared.splits, view_space(CROPS), rows=1500
    )
    arrays = {one.array for one in found}
    return {array: difference.worst(one for one in found if one.array == array).share for array in arrays}


def altered(small: Small, folder: Path, column: int, value: int) -> Path:
    """Copy the store with another number in one code of the training split."""
    path = folder / "small.zarr"
    for file in small.path.rglob("*"):
        if file.is_file():
            copy = path / file.relative_to(small.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    array = StoredArray(array_path(path, "last", "train", "logits"))
    values = array.all()
    values[1, 31, column] = value
    for begin, end in array.layout.shards(0, array.layout.positions):
        (first, start), (last, stop) = divmod(begin, 50), divmod(end - 1, 50)
        array.write(first, start, values[first : last + 1, start : stop + 1])
    sign(path, "last", "train", "logits")
    return path


def test_the_gate_accepts_a_good_store(small: Small) -> None:
    found = worst(small, small.path)
    assert found.keys() == {f"last/{split}/{name}" for split in ("train", "test") for name in REQUESTED}
    assert max(found.values()) <= 1


@pytest.mark.parametrize("column", [0, 2, 3, 5, 6], ids=["first id", "last id", "first", "last", "rest"])
def test_a_code_that_was_altered_is_found(small: Small, tmp_path: Path, column: int) -> None:
    code = StoredArray(array_path(small.path, "last", "train", "logits")).read(1, np.array([31]))[0]
    unnamed = next(c for c in range(10) if c not in code[:3].tolist())
    # Another class, or a logit whose exponent is off by one.
    value = unnamed if column < 3 else int(code[column]) ^ (1 << 10)
    found = worst(small, altered(small, tmp_path, column, value))
    assert found.pop("last/train/logits") > 1
    assert max(found.values()) <= 1


def test_the_loss_is_that_of_its_formula(small: Small) -> None:
    live = teacher(small)
    splits, space = small.prepared.splits, view_space(CROPS)
    where = small.path, small.manifest, live, normalize(small), "last", splits, space
    found = losses(*where, [4.0], rows=1500)
    assert found.keys() == {"last/train/logits", "last/test/logits"}

    # The test split has one slot: with so many rows all of it is drawn, with some views twice.
    drawn_rows = [index for _, index, _ in check.draw(small.manifest, "last", "test", 12, 1500)]
    index = torch.cat(drawn_rows)
    assert set(index.tolist()) == set(range(12))
    every = torch.arange(12)
    image = normalize(small)(here(torch.from_numpy(splits["test"].images.rows(every.numpy()))))
    logits = live.features(image, ["logits"], here(every))["logits"].cpu().double().numpy()
    kept = read_back(logits, KEPT.kept)

    test = found["last/test/logits"]
    assert (test.kept, test.classes, test.rows) == (3, 10, len(index))
    assert (test.bytes, test.whole) == (14, 20)
    assert test.top1 == 1
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert test.mass == pytest.approx(np.sort(p, axis=1)[index, -3:].sum(axis=1).mean(), abs=1e-5)

    assert list(test.kl) == ["1", "4"]
    for t in (1, 4):
        p, q = (np.exp(z / t) / np.exp(z / t).sum(axis=1, keepdims=True) for z in (logits, kept))
        kl = (p * np.log(p / q)).sum(axis=1)[index.numpy()]
        # Beside it, the rounding to float16 hardly counts.
        assert test.kl[str(t)]["mean"] == pytest.approx(kl.mean(), rel=0.02)
        entropy = -(p * np.log(p)).sum(axis=1)[index.numpy()]
        assert test.kl[str(t)]["flat"] == pytest.approx((math.log(10) - entropy).mean(), rel=1e-4)
        assert test.kl[str(t)]["high"] == pytest.approx(np.quantile(kl, 0.99), rel=0.02)


def test_nothing_is_lost_of_other_stores(device: str, tmp_path: Path) -> None:
    plain = small_store(tmp_path, requested={"logits": (0, "float32")})
    where = plain.path, plain.manifest, teacher(plain), normalize(plain), "last"
    assert losses(*where, plain.prepared.splits, view_space(CROPS), [4.0], rows=16) == {}


class Stages:
    """Extraction and gate of one teacher, as commands."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.prepared: Prepared = prepare(folder / "data")
        save_teacher(folder / "weights", {"last": network(0)[0]}, network(0)[1])

    def extract(self, kept: int) -> int:
        block = extract_block(self.folder / "extract.json", {"logits": {"slots": 1, "top": kept}})
        return self._run(extract_features.main, block, "--out", self.folder / "small.zarr")

    def check(self) -> dict[str, Any]:
        block = self.folder / "check.json"
        content = {"stage": "check_features@small", "teacher": "small", "temperatures": [2.5]}
        block.write_text(json.dumps(content))
        outs = ("--out", self.folder / "out.json", "--summary", self.folder / "summary.json")
        assert self._run(check_features.main, block, "--store", self.folder / "small.zarr", *outs) == 0
        metrics: dict[str, Any] = json.loads((self.folder / "out.json").read_text())
        return metrics

    def _run(self, main: Any, *arguments: object) -> int:
        places = ("--data", self.prepared.folder, "--weights", self.folder / "weights")
        return run_stage(self.monkeypatch, main, *arguments, *places, "--device", current().device)


def test_the_gate_reports_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = Stages(tmp_path, monkeypatch)
    assert stages.extract(4) == 0
    capsys.readouterr()
    metrics = stages.check()
    assert 0 < metrics["largest_share"] <= 1
    lost = metrics["lost"]["last/train/logits"]
    assert lost.keys() == {"kept", "classes", "bytes", "whole", "rows", "mass", "top1", "kl"}
    assert lost["kl"].keys() == {"1", "2.5"}
    assert 0 < lost["kl"]["1"]["mean"] < lost["kl"]["1"]["high"]

    (line,) = [one for one in capsys.readouterr().err.splitlines() if "last/train/logits" in one]
    assert "4 of 10 logits are kept, 18 bytes a view for 20" in line
    # Codes are no channels, of which the summary speaks.
    assert json.loads((tmp_path / "summary.json").read_text())["features"] == {}


def test_the_stage_refuses_more_than_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Stages(tmp_path, monkeypatch).extract(10) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: params.yaml: teachers.small.features.logits.top is 10")
    assert not (tmp_path / "small.zarr").exists()
