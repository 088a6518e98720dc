"""The report of what the stages themselves make: everything belongs together, as they write it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from error_fixtures import one_line
from training_fixtures import PARAMS, World, make_world

from pipeline.errors import DamagedArtifactError
from pipeline.params.sections import merged
from pipeline.report.collect.collect import collect
from pipeline.report.results import Results
from pipeline.tables import table
from stages import check_features, distill, encode_views, evaluate

pytestmark = pytest.mark.cpu

PLACE = {"places": {"stage2": {"table": "words", "encoding": "nearest"}}}
SMALL = merged(
    PARAMS,
    {
        "seeds": [0],
        "distill": ["pair/kd", "pair/kcd", "pair/coded"],
        "runs": {"coded": {"methods": {"letkd": PLACE}}},
        "tables": {"words": {"kmeans": {"feature": "stage2", "clusters": 5}}},
        "matchings": {"kcd": {"pictured": 1}},
    },
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return a project that the stages have made, down to the last evaluation."""
    world = make_world(tmp_path_factory.mktemp("world"), SMALL, runs=False)
    a, data = world.path("artifacts"), world.path("data/prepared")
    store, weights = a / "features/big.zarr", a / "teachers/big/weights"
    check_features.main(
        a / "params/teachers/big/check.json",
        store=store,
        data=data / "toy",
        weights=weights,
        out=a / "metrics/features/big.json",
        summary=a / "checks/big.json",
        device="cpu",
    )
    encode_views.main(
        a / "inputs/teachers/big/codes/words.json",
        prepared=data,
        weights=weights,
        store=store,
        table=a / "tables/big/words.npz",
        out=a / "codes/big/words",
        metrics=a / "metrics/codes/big/words.json",
        device="cpu",
        precision="float32",
        batch_size=50,
    )
    world.resolve(a / "inputs/pairs/pair")
    measure(world, "pretrained/small/0")
    for run in ("kd", "kcd", "coded"):
        key = f"students/pair/{run}/0"
        distill.main([a / f"inputs/pairs/pair/{run}/0.json"], out=[a / key], device="cpu")
        measure(world, key)
    return world


def measure(world: World, key: str) -> None:
    a = world.path("artifacts")
    outs = {"out": a / f"metrics/{key}.json", "predictions": a / f"predictions/{key}.npz"}
    evaluate.main(a / key, **outs, device="cpu")


def report(world: World, params: Path | None = None) -> Results:
    return collect(
        params or world.path("artifacts/params"), world.path("artifacts"), world.path("data/prepared")
    )


def test_of_what_the_stages_make_nothing_is_left_out(world: World) -> None:
    results = report(world)
    assert results.missing == ()
    (pair,) = results.pairs
    assert [run.name for run in pair.runs[1:]] == ["kd", "kcd", "coded"]
    assert [matched.name for matched in pair.matchings] == ["kcd"]
    assert [table.title for table in results.tables] == ["big/words"]
    assert [code.name for code in results.codes] == ["stage2:nearest@words"]


CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"runs": {"kd": {"methods": {"kd": {"temperature": 2.0}}}}}, {"evaluate@pair/kd-0"}),
    ({"matchings": {"kcd": {"measure": "l2"}}}, {"match_channels@pair", "evaluate@pair/kcd-0"}),
    (
        {"tables": {"words": {"kmeans": {"clusters": 6}}}},
        {"fit_table@big-words", "evaluate@pair/coded-0"},
    ),
    ({"students": {"small": {"network": "resnet14"}}}, {"evaluate_pretrained@small-0"}),
    ({"teachers": {"big": {"seed": 7}}}, {"evaluate_teacher@big"}),
]


@pytest.mark.parametrize(
    ("change", "stages"), CHANGES, ids=["run", "matching", "table", "student", "teacher"]
)
def test_what_was_made_by_other_settings_is_left_out(
    world: World, change: dict[str, Any], stages: set[str]
) -> None:
    """Params have changed, and all stages between have failed: what lies there is of before."""
    params = world.blocks(**change)
    if "teachers" in change:
        with pytest.raises(
            FileNotFoundError, match=r"trained from other settings.*dvc repro evaluate_teacher@big$"
        ):
            report(world, params)
        return
    missing = {entry.stage for entry in report(world, params).missing}
    assert missing == stages


def test_a_table_other_than_the_measured_one_is_refused(world: World) -> None:
    """It is whole and of the same settings, weights and features; its measurements are of the old one."""
    path, kept = world.path("artifacts/tables/big/words.npz"), world.path("kept.npz")
    hint = "dvc repro --force --single-item fit_table@big-words"
    arrays, origin = table.load(path, hint)
    shutil.move(path, kept)
    try:
        table.save(path, table.Fitted(arrays | {"centers": arrays["centers"] + 1}, {}), origin)
        with pytest.raises(DamagedArtifactError) as error:
            report(world)
    finally:
        shutil.move(kept, path)
    one_line(error, "big/words.json", f"does not belong to {path}", hint)


def test_inputs_that_name_another_table_than_is_there_leave_out_the_student(world: World) -> None:
    inputs = world.path("artifacts/inputs/pairs/pair/coded/0.json")
    content = inputs.read_text()
    named = json.loads(content)
    named["tables"]["words"][1] = "0" * 32
    try:
        inputs.write_text(json.dumps(named))
        (entry,) = report(world).missing
    finally:
        inputs.write_text(content)
    assert entry.stage == "evaluate@pair/coded-0"
    assert "resolved with another 'words'" in entry.reason
