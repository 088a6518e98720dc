"""What methods cost: a row for each, sizes against plain counts, and the page that shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import Field
from test_benchmark import TINY
from torch import Tensor
from training_fixtures import plug

from pipeline import plugin
from pipeline.benchmark import costs, page, record
from pipeline.benchmark.material import Bench
from pipeline.benchmark.record import Record, missing
from pipeline.compute.machine import Machine
from pipeline.distillation.method import MethodConfig, Weights
from pipeline.distillation.methods import ab, kd
from pipeline.networks.network import build

IMAGES = 3000


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    scale = replace(TINY, images=IMAGES, rounds=1)
    return Bench(scale, Machine(torch.device("cpu")), tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def found(bench: Bench) -> dict[str, Record]:
    return {one.name.removeprefix("costs/resnet14-resnet8/"): one for one in costs.costs(bench)}


def value(found: dict[str, Record], name: str) -> float:
    number = found[name].value
    assert number is not None, found[name].note
    return number


def test_every_method_has_a_row(found: dict[str, Record]) -> None:
    rows = (*plugin.names("methods"), *costs.SCHEDULES)
    assert found.keys() == {f"{row}/{key}" for row in rows for key in costs.UNITS}
    assert [one.note for one in found.values() if one.value is None] == []
    assert value(found, "kd/step") == 1
    assert all(value(found, f"{row}/step") > 0 for row in rows)


def test_sizes_are_those_of_plain_counts(bench: Bench, found: dict[str, Record]) -> None:
    student = sum(x.numel() for x in build(bench.spec("resnet.resnet8"), 0).parameters())
    teacher = sum(x.numel() for x in build(bench.spec("resnet.resnet14"), 0).parameters())
    assert value(found, "kd/at inference") == value(found, "fitnet/at inference") == student
    assert value(found, "kd/trained beside") == value(found, "kd/state beside") == 0
    # FitNet: a 3x3 convolution of 32 to 32 channels would be larger; its 1x1 one and a BN, with a bias or without.
    assert value(found, "fitnet/trained beside") in (32 * 32 + 2 * 32, 32 * 32 + 3 * 32)
    assert value(found, "self_learning/trained beside") == 2 * teacher
    assert value(found, "letkd/at inference") > student + 2 * 64 * 4096  # two 1x1 convolutions of the layer
    # CRD: two memories of 128 numbers for each image of a whole epoch.
    assert value(found, "crd/state beside") > 2 * IMAGES * 128 * 4 / 1e6


@pytest.mark.parametrize(
    ("row", "numbers", "read"),
    [
        ("kd", 100, "reads logits"),
        ("fitnet", 32 * 4 * 4, "reads stage2"),
        ("at", 16 * 8 * 8 + 32 * 4 * 4 + 64 * 2 * 2, "reads stage1, stage2, stage3"),
        ("letkd", 64 * 2 * 2, "reads final, words"),
    ],
)
def test_what_is_cached_is_every_view_of_every_image(
    found: dict[str, Record], row: str, numbers: int, read: str
) -> None:
    raw = 2 * numbers * IMAGES * (162 + 1) / 1e9  # float16; 9x9 offsets, mirrored or not, and the plain view
    # Whole chunks, with checksums and indices.
    assert raw <= value(found, f"{row}/all views") < 1.5 * raw
    assert found[f"{row}/all views"].note == read


def test_a_method_without_a_teacher_caches_nothing(found: dict[str, Record]) -> None:
    assert value(found, "byot/all views") == 0
    assert found["byot/all views"].note == "reads nothing"


def test_memory_grows_by_what_a_method_computes(found: dict[str, Record]) -> None:
    heads = ("byot", "dskd", "reviewkd", "self_learning", "letkd")
    assert all(value(found, f"{row}/memory") > 1.2 * value(found, "kd/memory") for row in heads)


def test_a_storage_that_is_saved_twice_counts_once() -> None:
    x, weight = torch.ones(1000, requires_grad=True), torch.full((1000,), 2.0, requires_grad=True)

    def work() -> Tensor:
        y = x.exp()  # saves its result,
        z = y.view(10, 100).square()  # and this one a view of it
        return (z.flatten() * weight).sum()  # saves z and the weight

    with costs.kept([weight]) as storages:
        total = work()
    assert sum(one.untyped_storage().nbytes() for one in storages.values()) == 2 * 4000
    total.backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 4 * torch.full((1000,), 2.0).exp())


def test_a_method_with_phases_is_measured_in_its_first_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[str] = []
    forward = ab.Method.forward

    def noted(self: ab.Method, student: dict[str, Tensor], batch: object) -> dict[str, Tensor]:
        phases.append(batch.phase)
        return forward(self, student, batch)

    monkeypatch.setattr(ab.Method, "forward", noted)
    known = plugin.names
    monkeypatch.setattr(plugin, "names", lambda kind: ["ab", "kd"] if kind == "methods" else known(kind))
    costs.costs(bench)
    assert set(phases) == {"boundary"}


class Required(MethodConfig):
    weights: Weights = {"ce": 1.0}
    bins: int = Field(ge=2)


def test_a_method_that_has_no_defaults_has_a_row_that_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug(monkeypatch, "methods", "required", Config=Required, Method=kd.Method)
    known = plugin.names
    monkeypatch.setattr(
        plugin, "names", lambda kind: ["kd", "required"] if kind == "methods" else known(kind)
    )
    rows = {one.name.rpartition("/")[2]: one for one in costs.costs(bench) if "/required/" in one.name}
    assert rows.keys() == costs.UNITS.keys()
    assert all(one.value is None and "bins" in one.note for one in rows.values())


# The page.

PAGE = "# T\n\n<!-- measured: costs -->\nold\n<!-- end -->\n\nText.\n\n<!-- measured: read -->\nkept\n<!-- end -->\n"


def test_a_page_has_its_tables_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    assert page.measured(PAGE) == ["costs", "read"]
    records = [
        record.record("costs/a-b/kd/step", 1.0, "of KD's"),
        record.record("costs/a-b/kd/size", 12345.6, "MB", note="reads logits"),
        missing("costs/a-b/x/size", "MB", "no file"),
        record.record("startup/import", 3.0, "s"),
    ]
    for _ in range(2):  # again, the same
        page.fill(path, {"cores": 2, "load_before": 0.5}, records)
        assert path.read_text() == PAGE.replace(
            "old\n",
            "\n| a-b | step, of KD's | size, MB |  |\n| --- | ---: | ---: | --- |\n"
            "| `kd` | 1 | 12,346 | reads logits |\n| `x` |  | - | not measured: no file |\n"
            "\ncores 2, load before 0.5.\n\n",
        )
