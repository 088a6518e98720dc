"""The plan: sizes that the disk will hold, forward passes that the extraction will make, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dvc_project import NETWORK, ONE, RECIPE, Project, make
from feature_fixtures import CROPS, REQUESTED, extraction, network, no_progress, prepare, run_stage
from ruamel.yaml import YAML

from pipeline.data.layout import Meta
from pipeline.data.prepared import Prepared
from pipeline.errors import ParamsError
from pipeline.features.layout import SHARD_BYTES, Layout
from pipeline.params.top import Top
from pipeline.runs.check import project as checked
from pipeline.runs.planning import Item, Plan, plan, store_bytes
from stages import plan as stage

EPOCHS, TRAIN, TEST = 4, 50, 12


def params(features: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return a params.yaml of one teacher of random data, one student, and a cached run of KD on two seeds."""
    own = NETWORK | {"dataset": "random"}
    views = CROPS.model_dump(mode="json", exclude={"space"})
    return {
        "seeds": [0, 1],
        "recipes": {"quick": RECIPE | {"epochs": EPOCHS, "batch_size": 16}},
        "datasets": {"random": {"source": "digits", "views": {"crop_flip": views}}},
        "teachers": {"small": own | {"features": features}},
        "students": {"sam": own},
        "pairs": {"small-sam": {"teacher": "small", "student": "sam"}},
        "runs": {"kd": {"methods": "kd", "slots": 2}},
        "distill": ["small-sam/kd"],
    } | more


LOGITS = {"logits": {"slots": 2, "dtype": "float32"}}


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(tmp_path / "data/prepared/random", samples=(TRAIN, TEST))


def planned(content: Mapping[str, Any], meta: Meta) -> Plan:
    return plan(checked(content), {"random": meta})


@pytest.mark.parametrize(
    "requested",
    [
        REQUESTED,
        {"logits": (18, "float16"), "stage1": (7, "float32")},
        {"stage3:pooled": (0, "float16")},
    ],
    ids=["mixed", "maps", "plain"],
)
@pytest.mark.parametrize("checkpoints", [("last",), ("last", "best")], ids=len)
def test_a_store_takes_what_was_planned(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepared: Prepared,
    requested: Mapping[str, tuple[int, str]],
    checkpoints: tuple[str, ...],
) -> None:
    shard_bytes = 30_000  # many shards, whole slots in some and parts of a slot in others
    cut = Layout.plan
    monkeypatch.setattr(Layout, "plan", lambda shape, dtype, size=0: cut(shape, dtype, shard_bytes))
    features = {name: {"slots": slots, "dtype": dtype} for name, (slots, dtype) in requested.items()}
    content = params(features, distill=[])
    content["teachers"]["small"]["checkpoints"] = list(checkpoints)
    item = next(item for item in planned(content, prepared.meta).items if item.kind == "store")

    one, spec = network()
    made = extraction(prepared, dict.fromkeys(checkpoints, one), spec, requested=requested)
    store = tmp_path / "small.zarr"
    made.run(store, no_progress)
    files = [path for path in store.rglob("*") if path.is_file()]
    assert item.files == len(files)
    assert item.bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.02)
    assert item.forwards == made.num_forwards()


def test_the_largest_logits_are_planned_as_they_are_stored(tmp_path: Path, prepared: Prepared) -> None:
    largest = {"logits": {"slots": 2, "dtype": "float32", "top": 2}}
    content = params(largest, copies={"one": {"teacher": "small", "student": "sam", "slots": 2}})
    made = planned(content, prepared.meta)
    whole = planned(content | {"teachers": params(LOGITS)["teachers"]}, prepared.meta)

    one, spec = network()
    requested, kept = {"logits": (2, "float32")}, {"logits": Top(kept=2, dtype="float32")}
    extraction(prepared, {"last": one}, spec, requested=requested, largest=kept, shard_bytes=SHARD_BYTES).run(
        tmp_path / "x", no_progress
    )
    size = sum(path.stat().st_size for path in (tmp_path / "x").rglob("*") if path.is_file())
    store = next(item for item in made.items if item.kind == "store")
    # The manifest has a few letters more or less, which count in so small a store.
    assert store.bytes == pytest.approx(size, abs=250)
    # Two ids of 2 bytes, two logits and the rest; all ten logits are 40.
    assert (made.costs[0].view_bytes, whole.costs[0].view_bytes) == (16, 40)
    copies = [next(item for item in each.items if item.kind == "copy") for each in (whole, made)]
    assert copies[0].bytes - copies[1].bytes == (40 - 16) * 3 * TRAIN  # of two views and the plain one


def test_an_array_is_planned_to_the_byte() -> None:
    layout = Layout((3, 50, 8), "float32", (2, 64), 16)
    # Two shards of 2 slots; 4 chunks of 16 samples a slot; an index of 8 entries a shard.
    chunks = 3 * 4 * (16 * 8 * 4 + 4)
    index = 2 * (8 * 16 + 4)
    single = store_bytes(Layout((1, 1), "int8", (1, 1), 1)) - (5 + 20)
    assert store_bytes(layout) - chunks - index == single + 35  # one more shard, whose hash is listed


def test_break_even_by_hand(prepared: Prepared) -> None:
    paid = planned(params(LOGITS), prepared.meta).break_even[0]
    assert paid.cached == (1 + 2) * TRAIN + TEST == 162
    assert paid.online == EPOCHS * TRAIN == 200
    assert (paid.students, paid.after) == (2, 1)

    # All 18 views, and shorter students: 962 forward passes against 50 and 100 of two runs, 75 on average.
    runs = {
        "kd": {"methods": "kd", "recipe": {"epochs": 1}},
        "warm": {"methods": {"kd": {"temperature": 8.0}}},
    }
    pairs = {
        "small-sam": {"teacher": "small", "student": "sam", "overrides": {"warm": {"recipe": {"epochs": 2}}}}
    }
    content = params({"logits": {}}, runs=runs, pairs=pairs, distill=["small-sam/kd", "small-sam/warm"])
    paid = planned(content, prepared.meta).break_even[0]
    assert (paid.cached, paid.online, paid.students) == (19 * TRAIN + TEST, 75, 4)
    assert paid.after == 13  # 12 * 75 = 900 < 962 <= 13 * 75


def test_several_checkpoints_cost_as_many_passes(prepared: Prepared) -> None:
    content = params(LOGITS)
    content["teachers"]["small"]["checkpoints"] = ["last", "best"]
    assert planned(content, prepared.meta).break_even[0].cached == 2 * 162


def test_both_costs_of_a_feature(prepared: Prepared) -> None:
    runs = {
        "kd": {"methods": "kd", "slots": 2},
        "fitnet": {"methods": "fitnet", "source": "online", "recipe": {"drop_last": True}},
    }
    content = params(LOGITS, runs=runs, distill=["small-sam/kd", "small-sam/fitnet"])
    plan_of = planned(content, prepared.meta)
    logits, hint = plan_of.costs
    assert (logits.feature, logits.slots, logits.view_bytes, logits.students) == ("logits", 2, 40, 2)
    assert logits.bytes >= (3 * TRAIN + TEST) * 40
    assert logits.all_bytes is not None
    assert logits.all_bytes >= (19 * TRAIN + TEST) * 40
    assert logits.online == 200
    # FitNet's hint is not stored; its students see whole batches of 16 alone.
    assert (hint.feature, hint.slots, hint.bytes) == ("stage2", None, 0)
    assert hint.online == EPOCHS * 48
    online = next(item for item in plan_of.items if item.name == "small-sam/fitnet")
    assert online.forwards == EPOCHS * 48
    assert plan_of.break_even[0].students == 2  # the online run reads no store


def test_of_a_strong_view_the_teacher_computes_its_features_too(prepared: Prepared) -> None:
    runs = {"kd": {"methods": "kd", "slots": 2}, "crld": {"methods": "crld", "slots": 2}}
    content = params(LOGITS, runs=runs, distill=["small-sam/kd", "small-sam/crld"])
    content["datasets"]["random"]["strong_views"] = "crop_flip"
    # 200 forward passes of a student of one view, and 400 of one of both.
    assert planned(content, prepared.meta).break_even[0].online == 300

    runs["crld"] |= {"source": "online"}
    items = planned(content, prepared.meta).items
    assert next(item for item in items if item.name == "small-sam/crld").forwards == 400


def test_a_recipe_in_iterations_shows_what_its_steps_show(prepared: Prepared) -> None:
    recipe = {"iterations": 6, "milestones": []}  # an epoch of 16, 16, 16 and 2, and 2 steps of another
    runs = {"kd": {"methods": "kd", "source": "online", "recipe": recipe, "slots": 2}}
    plan_of = planned(params(LOGITS, runs=runs), prepared.meta)
    assert next(item for item in plan_of.items if item.name == "small-sam/kd").forwards == TRAIN + 32


def test_a_store_that_no_student_reads_has_no_break_even(prepared: Prepared) -> None:
    content = params(LOGITS, distill=[])
    assert planned(content, prepared.meta).break_even[0].after is None


def test_views_that_are_unbounded_cannot_be_stored_whole(prepared: Prepared) -> None:
    views = {"source": "digits", "views": "random_resized_crop"}
    content = params(LOGITS, datasets={"random": views})
    assert planned(content, prepared.meta).costs[0].all_bytes is None
    content["teachers"]["small"]["features"] = {"logits": {"slots": "all"}}
    with pytest.raises(ParamsError, match=r"teachers\.small\.features\.logits\.slots is 'all'"):
        planned(content, prepared.meta)


def test_what_runs_ask_for_is_planned(prepared: Prepared) -> None:
    """Tables, codes, matchings and copies: of a table that no run reads there is nothing."""
    features = {"logits": {"slots": 2}, "stage2": {"slots": 2}, "final": {"slots": 0}}
    words = {"table": "words", "encoding": "nearest"}
    content = params(
        features,
        tables={
            "words": {"kmeans": {"feature": "stage2", "clusters": 4}},
            "idle": {"kmeans": {"feature": "final", "clusters": 4}},
        },
        matchings={"kcd": {}, "idle": {}},
        runs={
            "letkd": {"methods": {"letkd": {"places": {"stage2": words}}}, "slots": 2},
            "brief": {"methods": {"letkd": {"places": {"stage2": words}}}, "slots": 1},
            "kcd": {"methods": "mimicry", "transform": "permutation", "slots": 0},
            "star": {"methods": "kd", "schedule": {"self_taught": {"names": ["copy"]}}, "slots": 2},
        },
        distill=["small-sam/letkd", "small-sam/brief", "small-sam/kcd", "small-sam/star"],
        copies={"copy": {"teacher": "small", "student": "sam", "slots": 2}},
    )
    items = {(item.kind, item.name): item for item in planned(content, prepared.meta).items}
    assert [name for kind, name in items if kind == "table"] == ["small/words"]
    assert [name for kind, name in items if kind == "codes"] == ["small/stage2:nearest@words"]
    code = items["codes", "small/stage2:nearest@words"]
    assert code.stages == ("encode_views@small-words",)
    assert code.forwards == (2 + 2) * TRAIN  # both slots, and the plain view twice
    assert code.bytes > 3 * TRAIN * 4 * 4
    matchings = items["matchings", "small-sam"]
    assert (matchings.stages, matchings.files) == (("match_channels@small-sam",), 2 * 2)  # of two seeds
    copy = items["copy", "small/copy"]
    assert (copy.stages, copy.forwards) == (("train_copy@copy",), 3 * TRAIN)
    assert {item.stages for item in items.values() if item.kind == "student"} == {
        tuple(f"distill@small-sam/{run}-{seed}" for seed in (0, 1))
        for run in ("letkd", "brief", "kcd", "star")
    }


def test_an_item_is_of_each_seed(prepared: Prepared) -> None:
    alone = next(
        item for item in planned(params(LOGITS), prepared.meta).items if item.kind == "student alone"
    )
    assert isinstance(alone, Item)
    assert alone.stages == ("pretrain_student@sam-0", "pretrain_student@sam-1")


# The command.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Prepared) -> Path:
    """Enter a folder with params.yaml and prepared data, no DVC repository."""
    YAML().dump(params(LOGITS), tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_prints_a_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(monkeypatch, stage.main) == 0
    printed = capsys.readouterr().out
    assert "small: its store costs 162 forward passes; online, a student costs 200." in printed
    assert "It has paid for itself after 1 student; 2 read it." in printed
    assert "no DVC repository: everything counts as to be made" in printed
    assert [line.split()[:4] for line in printed.splitlines()[1:5]] == [
        ["teacher", "small", "0", "1"],
        ["store", "small", "0", "1"],
        ["student", "alone", "sam", "0"],
        ["student", "small-sam/kd", "0", "2"],
    ]


def test_of_classifiers_nothing_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(monkeypatch, stage.main, "--measure") == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("warning: There is nothing to measure")
    assert "--measure" not in printed.out


def test_the_command_prints_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(monkeypatch, stage.main, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    total = sum(item["bytes"] * len(item["stages"]) for item in printed["items"])
    assert [item["made"] for item in printed["items"]] == [0] * 4
    assert [disk["bytes"] for disk in printed["disks"]] == [2 * total]  # a copy in DVC's cache
    assert printed["break_even"][0]["after"] == 1


def test_what_does_not_fit_the_disk_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert run_stage(monkeypatch, stage.main) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: The plan needs ")
    assert "1.0 kB are free" in error
    assert error.count("\n") == 1


def test_data_that_are_not_prepared_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "data")
    assert run_stage(monkeypatch, stage.main) == 1
    error = capsys.readouterr().err
    assert error.endswith("Make it with: dvc repro prepare_data@random\n")
    assert error.count("\n") == 1


def test_a_slip_in_params_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    YAML().dump(params({"stage9": {}}), folder / "params.yaml")
    assert run_stage(monkeypatch, stage.main) == 1
    error = capsys.readouterr().err
    assert "'stage9'" in error
    assert error.count("\n") == 1


# In a project.


def asked(project: Project) -> dict[str, Any]:
    printed: dict[str, Any] = json.loads(project.run("python", "-m", "stages.plan", "--json"))
    return printed


def to_make(content: Mapping[str, Any]) -> set[str]:
    return {
        f"{item['kind']} {item['name']}" for item in content["items"] if item["made"] < len(item["stages"])
    }


@pytest.mark.slow
def test_a_project_is_planned_fresh_finished_and_edited(tmp_path: Path) -> None:
    project = make(tmp_path, ONE)
    project.repro("prepare_data@digits")
    fresh = asked(project)
    everything = {"teacher ada", "store ada", "student alone sam", "student ada-sam/kd"}
    assert to_make(fresh) == everything

    project.repro()
    finished = asked(project)
    assert to_make(finished) == set()
    assert [disk["bytes"] for disk in finished["disks"]] == [0]
    for kind, made in {
        "teacher": "teachers/ada",
        "store": "features/ada.zarr",
        "student alone": "pretrained/sam/0",
        "student": "students/ada-sam/kd/0",
    }.items():
        files = [path for path in (tmp_path / "artifacts" / made).rglob("*") if path.is_file()]
        item = next(item for item in finished["items"] if item["kind"] == kind)
        assert item["files"] == len(files)
        assert item["bytes"] == pytest.approx(sum(path.stat().st_size for path in files), rel=0.03)

    # An edit of a run and a comment: the run's students alone.
    def edit(params: dict[str, Any]) -> None:
        params["runs"]["kd"]["methods"] = {"kd": {"temperature": 2.0}}

    project.edit(edit)
    project.append("pipeline/networks/network.py", "\n# What a network is.\n")
    before = project.run("git", "status", "--short"), project.run("dvc", "status")
    edited = asked(project)
    assert to_make(edited) == {"student ada-sam/kd"}
    assert before == (project.run("git", "status", "--short"), project.run("dvc", "status"))
    # The old students go from the workspace and stay in the cache.
    size = next(item["bytes"] for item in edited["items"] if item["kind"] == "student")
    assert edited["disks"][0]["bytes"] == pytest.approx(size, rel=0.1)

    project.append("pipeline/features/store.py", "\nEDITED = True\n")
    assert to_make(asked(project)) == everything - {"teacher ada", "student alone sam"}
