"""What the check of params.yaml knows of networks, stores, tables, matchings and views, before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import params_fixtures
import pytest
from training_fixtures import PARAMS, changed

from pipeline.data.prepared import Prepared
from pipeline.params.views import CropFlip, Plain, TwoViews
from pipeline.runs.check import check, project

# The same on images of 32x32, which VGGs can read at every stage.
CIFAR = changed(PARAMS, "datasets.toy.source", "cifar")
VGG = changed(changed(CIFAR, "teachers.big.network", "vgg13"), "students.small.network", "vgg8")
WORDS = changed(PARAMS, "tables.words", {"kmeans": {"feature": "stage2", "clusters": 4}})
LARGEST = changed(PARAMS, "teachers.big.features.logits.top", 3)
COPY = {"teacher": "big", "student": "small"}
ASSISTANT = {"teacher": "big", "network": "resnet8", "recipe": "quick", "follows": "teacher"}
UNBOUNDED = changed(PARAMS, "datasets.toy.views", "random_resized_crop")
FEW = changed(UNBOUNDED, "teachers.big.features", {"logits": {"slots": 2}, "stage2": {"slots": 2}})
LAYER = {"kd_layer": {"words": 3}}


def refused(params: dict[str, Any], changes: dict[str, Any]) -> str:
    """Return the one line with which `params` with `changes` are refused."""
    for place, value in changes.items():
        params = changed(params, place, value)
    return params_fixtures.refused(params)


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where prepared data are opened: the check reads params.yaml alone."""

    def opened(folder: Path) -> Prepared:
        raise AssertionError(f"{folder} was opened")

    monkeypatch.setattr(Prepared, "open", opened)


def place(tap: str, **settings: Any) -> dict[str, Any]:
    return {"letkd": {"places": {tap: {"table": "words"} | settings}}}


# Params, changes, and what the message must say: the place, what was found and what was expected, what to write.
TAPS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (PARAMS, {"runs.fitnet.methods": {"fitnet": {"student_tap": "stag2"}}},
     ["Unknown student tap of runs.fitnet: 'stag2'", "Did you mean 'stage2'?", "Known: final, logits"]),
    (PARAMS, {"runs.fitnet.methods": {"fitnet": {"teacher_feature": "stag2"}}},
     ["Unknown teacher tap of runs.fitnet: 'stag2'", "Did you mean 'stage2'?"]),
    (PARAMS, {"runs.fitnet.methods": {"fitnet": {"student_tap": "stage2:pooled"}}},
     ["Unknown student tap of runs.fitnet: 'stage2:pooled'", "A student's tap has no encoding."]),
    (PARAMS, {"runs.fitnet.methods": {"fitnet": {"teacher_feature": "stage 2"}}},
     ["params.yaml: runs.fitnet", "'stage 2' names no feature", "Expected a tap, tap:encoding"]),
    (PARAMS, {"pairs.pair.overrides": {"fitnet": {"methods": {"fitnet": {"student_tap": "stag2"}}}}},
     ["Unknown student tap of pairs.pair.overrides.fitnet: 'stag2'"]),
    (PARAMS, {"runs.kd.methods": {"kd": {"insert": {"stage9": LAYER}}}},
     ["params.yaml: runs.kd (of pair pair)", "Unknown tap 'stage9'", "Did you mean 'stage3'?"]),
    (PARAMS, {"runs.kd.methods": {"kd": {"insert": {"stage2": "kd_layer"}}}},
     ["params.yaml: runs.kd (of pair pair)", "Layer 'kd_layer' at 'stage2'", "'words' is missing"]),
    *[(PARAMS, {"runs.kd.methods": {"kd": {"insert": {"stage2": {"kd_layer": {"words": 4} | settings}}}}},
       [f"runs.kd (of pair pair): Layer 'kd_layer' at 'stage2': {part}"]) for settings, part in (
        ({"words": "4"}, "'words' is '4'"), ({"words": 0}, "'words' is 0"), ({"words": 2**40}, "'words' is"),
        ({"alpha": True}, "'alpha' is True"), ({"scale": -1.0}, "'scale' is -1.0"),
        ({"wordz": 4}, "unknown key 'wordz'. Did you mean 'words'?"))],
    # a wrong last stage
    (PARAMS, {"runs.fitnet.methods": {"fitnet": {"student_tap": "stage4_block1"}}},
     ["Unknown student tap of runs.fitnet: 'stage4_block1'",
      "The last stage of resnet8 is stage3: write stage3_block1, or last_block1."]),
    (VGG, {"runs.fitnet.methods": {"fitnet": {"student_tap": "stage5_block1"}}},
     ["The last stage of vgg8 is stage4: write stage4_block1, or last_block1."]),
    (VGG, {"runs.fitnet.methods": {"fitnet": {"teacher_feature": "stage5_block1"}}},
     ["The last stage of vgg13 is stage4: write stage4_block1, or last_block1."]),
    (PARAMS, {"matchings.kcd.student_tap": "stage4"},
     ["Unknown student tap of matchings.kcd: 'stage4'", "resnet8 is stage3: write stage3, or last."]),
    # features of a store
    (PARAMS, {"teachers.big.features.stage9": {}}, ["Unknown teacher tap of teachers.big.features: 'stage9'"]),
    (PARAMS, {"teachers.big.features.last_block9": {}}, ["Unknown teacher tap", "'stage3_block9'", "'stage3_block1'?"]),
    (PARAMS, {"teachers.big.features.stage3": {}, "teachers.big.features.last": {}},
     ["teachers.big.features has 'stage3' twice. Name it once."]),
    (PARAMS, {"teachers.big.features.stage2:nearest@moments": {}},
     ["teachers.big.features has 'stage2:nearest@moments'", "Drop it: codes are made where a run asks for them"]),
    (PARAMS, {"teachers.big.features.stage2:nearest": {}},
     ["params.yaml: teachers.big.features", "'nearest' reads a table: add @table"]),
    (PARAMS, {"teachers.big.features.logits:pooled": {}},
     ["params.yaml: teachers.big.features", "Encoding 'pooled' reads 3 axes", "(10,)"]),
    (PARAMS, {"runs.fitnet.methods": {"fitnet": {"teacher_feature": "stage3"}}},
     ["runs.fitnet reads 'stage3' of teacher 'big', whose store holds logits, stage2",
      "Add it to teachers.big.features, or set 'source: online' of the run."]),
]  # fmt: skip
TABLES: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (PARAMS, {"runs.fitnet.methods": {"fitnet": {"standardize": "moment"}}},
     ["Unknown table of runs.fitnet: 'moment'", "Did you mean 'moments'?", "Add it to 'tables'."]),
    (PARAMS, {"runs.kd.methods": place("stage2")},
     ["runs.kd (of pair pair): Place 'stage2' learns the table 'words'", "has moments. Name one of these"]),
    (WORDS, {"tables.words.kmeans.feature": "final", "runs.kd.methods": place("final")},
     ["tables.words is fitted to 'final', and the store of teacher 'big' holds logits, stage2",
      "Add final: {slots: 0} to teachers.big.features."]),
    (WORDS, {"tables.words.kmeans.feature": "last", "teachers.big.tables": {"words": None}},
     ["tables.words is fitted to 'stage3', and the store", "Add stage3: {slots: 0}"]),
    (WORDS, {"tables.words.kmeans.feature": "stage9", "teachers.big.tables": {"words": {}}},
     ["Unknown teacher tap of tables.words: 'stage9'", "resnet14 is stage3: write stage3, or last."]),
    (WORDS, {"teachers.big.tables": {"words": {"clusters": 0}}},
     ["'teachers.big.tables.words.clusters' is 0", "greater than or equal to 1"]),
    (WORDS, {"teachers.big.tables": {"words": {}}, "teachers.big.checkpoints": ["anchor_050"], "distill": []},
     ["tables.words is fitted to the last checkpoint of teacher 'big'", "Add last to teachers.big.checkpoints."]),
    (WORDS, {"runs.rco.methods": place("stage2", encoding="nearest")},
     ["runs.rco learns from the codes 'stage2:nearest@words' of anchor_050, last",
      "codes are made of the last checkpoint. Set 'source: online' of the run."]),
    # of logits whose largest alone are kept
    (LARGEST, {"teachers.big.features.logits.top": 0}, ["'teachers.big.features.logits.top' is 0", "greater than or"]),
    (LARGEST, {"teachers.big.features.logits.top": 10},
     ["teachers.big.features.logits.top is 10, and the data have 10 classes. Lower it, or drop it"]),
    (LARGEST, {"teachers.big.features.stage2.top": 3},
     ["teachers.big.features.stage2.top is 3, and only of logits the largest can stand for all. Drop it."]),
    (LARGEST, {"tables.words": {"moments": {"feature": "logits"}}, "teachers.big.tables": {"words": None}},
     ["tables.words is fitted to 'logits', of which the store of teacher 'big' keeps the 3 largest alone",
      "Drop teachers.big.features.logits.top, or name another feature."]),
    (LARGEST, {"matchings.kcd.teacher_feature": "logits"}, ["matchings.kcd matches 'logits', of which the store"]),
    # sizes
    (WORDS, {"tables.words": {"subclasses": {"feature": "stage2", "components": 10}}, "teachers.big.tables": {
        "words": None}}, ["tables.words keeps 10 components of 'stage2' of teacher 'big'", "9 at most. Lower"]),
    (WORDS, {"tables.words": {"lda": {"feature": "logits", "components": 11}}, "teachers.big.tables": {"words": None}},
     ["tables.words keeps 11 components of 'logits'", "10 channels and 10 classes give 9 at most"]),
    (CIFAR, {"tables.words": {"subclasses": {"feature": "stage2", "components": 4, "per_class": 200}},
             "runs.kd.methods": place("stage2")},
     ["'per_class: 200' of 100 classes are 20,000 sub-classes, expected 16,384 at most"]),
    # of a kind that the method cannot learn
    (PARAMS, {"runs.kd.methods": {"letkd": {"places": {"stage2": "moments"}}}},
     ["runs.kd (of pair pair)", "which holds mean, std: neither words nor sub-classes"]),
    (WORDS, {"runs.kd.methods": place("stage2", encoding="subclass")},
     ["runs.kd (of pair pair)", "encoding 'subclass'", "encodings are nearest, top4"]),
    (WORDS, {"tables.words": {"subclasses": {"feature": "stage2", "components": 4}}, "runs.kd.methods": {
        "quest": {"places": {"stage2": "words"}}}}, ["runs.kd (of pair pair)", "QuEST learns words"]),
    (WORDS, {"runs.kd.methods": {"fitnet": {"standardize": "words"}}},
     ["runs.kd (of pair pair)", "Fit a 'moments' table"]),
]  # fmt: skip
TEACHERS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    # checkpoints
    (PARAMS, {"runs.rco.schedule": {"anchors": {"anchors": ["anchor_025", "last"]}}},
     ["Unknown checkpoint of runs.rco: 'anchor_025'", "Known: anchor_050, best, init, last.", "teachers.big.anchors"]),
    (PARAMS, {"runs.rco.schedule": {"anchors": {"anchors": ["anchor_025"]}}, "runs.rco.source": "online"},
     ["Unknown checkpoint of runs.rco: 'anchor_025'"]),
    (PARAMS, {"runs.rco.schedule": {"anchors": {"anchors": ["best"]}}},
     ["runs.rco learns from checkpoint 'best', and the store of teacher 'big' holds last, anchor_050",
      "Add it to teachers.big.checkpoints."]),
    # matchings
    (PARAMS, {"runs.kcd.transform": {"permutation": {"matching": "kdc", "features": ["stage2"]}}},
     ["Unknown matching of runs.kcd: 'kdc'", "Did you mean 'kcd'?", "Add it to 'matchings'."]),
    (PARAMS, {"runs.kcd.transform": {"permutation": {"features": ["stage2"], "seed": 7}}},
     ["runs.kcd takes the matching of seed 7, and seeds are 0, 1. Name one of these."]),
    (PARAMS, {"runs.kcd.transform": {"permutation": {"features": ["stage2"], "teacher": "bob"}}},
     ["runs.kcd takes the matching 'kcd' with teacher 'bob'",
      "Add bob-kcd: {pair: pair, teacher: bob, student: small, matching: kcd} to 'borrowed'."]),
    (PARAMS, {"matchings.kcd.teacher_feature": "stage3"},
     ["matchings.kcd matches 'stage3', and the store of teacher 'big' holds logits, stage2",
      "Add it to teachers.big.features."]),
    (PARAMS, {"matchings.kcd.teacher_checkpoint": "best"},
     ["matchings.kcd matches checkpoint 'best'", "Add it to teachers.big.checkpoints."]),
    (PARAMS, {"matchings.kcd.ranges": 11}, ["matchings.kcd.ranges is 11, and the data have 10 classes. Lower it."]),
    (PARAMS, {"matchings.kcd.pictured": 10}, ["matchings.kcd.pictured is 10, and the data have 10 classes"]),
    # transforms
    (PARAMS, {"runs.kcd.transform": {"permutation": {"features": ["final"]}}},
     ["runs.kcd.transform changes teacher feature 'final', and the run reads stage2",
      "Name one of these in the transform's features."]),
    (PARAMS, {"runs.kd.methods": "dsn", "runs.kd.transform": "permutation"}, ["and the run reads none"]),
    (PARAMS, {"runs.standardized.transform": {"permutation": {"features": ["stage2"]}}},
     ["runs.standardized reads table 'moments', which is fitted to 'stage2', and its transform changes that feature",
      "Drop the transform, or take the feature out"]),
    # copies
    (PARAMS, {"runs.kd.schedule": {"self_taught": {"names": ["two"]}}, "copies": {"one": COPY}},
     ["Unknown copy or assistant of teacher 'big' of runs.kd: 'two'", "Known: one", "Add it to 'copies' or"]),
    (PARAMS, {"copies": {"one": COPY}, "teachers.big.features": {"stage2": {}}, "distill": []},
     ["copies.one learns from the logits of teacher 'big', which its store does not hold",
      "Add teachers.big.features.logits."]),
    # networks and images
    (PARAMS, {"datasets.toy.source": {"image_folder": {"path": "x", "size": 2}}, "datasets.toy.views": "plain",
              "students.small.network": "vgg8"},
     ["params.yaml: students.small: The network cannot read 3x2x2 images",
      "Choose another network, or images of another size."]),
    (PARAMS, {"datasets.toy.source": {"image_folder": {"path": "x", "size": 10_000}}, "datasets.toy.views": "plain"},
     ["datasets.toy.source.image_folder has images of 10,000 pixels a side, expected 4,096 at most"]),
    (PARAMS, {"teachers.big.weights": "imagenet"},
     ["params.yaml: teachers.big.weights: Networks of family 'resnet' have no 'imagenet' weights. Set weights: none."]),
    (PARAMS, {"teachers.big.weights": "imagenet", "teachers.big.network": "resnet18"},
     ["params.yaml: teachers.big.weights: ImageNet weights read 3 channels, the images have 1. Set weights: none."]),
    (PARAMS, {"teachers.big.weights": "imagenet", "teachers.big.network": "mobilenet_v2x0.5"},
     ["params.yaml: teachers.big.weights: Network 'mobilenet_v2x0.5' has no 'imagenet' weights. Set weights: none."]),
    (PARAMS, {"teachers.big.network": "timm/vit_tiny_patch16_224"},
     ["params.yaml: teachers.big: The network cannot read 1x8x8 images", "or images of another size."]),
    (PARAMS, {"datasets.toy.views.crop_flip.padding": 8},
     ["datasets.toy.views pads images of 8x8 by 8, expected less than 8", "Set padding to 7 or less"]),
    # student and teacher
    (PARAMS, {"runs.fitnet.methods": {"mimicry": {"student_tap": "stage1", "teacher_feature": "stage2"}}},
     ["runs.fitnet (of pair pair): Mimicry pairs equal shapes", "(16, 8, 8)", "(32, 4, 4)"]),
    (WORDS, {"runs.kd.methods": place("stage1")},
     ["runs.kd (of pair pair): Place 'stage1' of the student has a map of 8x8"]),
]  # fmt: skip
SLOTS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (PARAMS, {"teachers.big.features.stage2.slots": 10},
     ["teachers.big.features.stage2.slots is 10, but this view space has 9 views"]),
    (PARAMS, {"teachers.big.features.stage2.slots": 3},
     ["runs.fitnet shows 9 view slots, and teachers.big.features.stage2.slots is 3", "Raise it, or set 'slots'"]),
    (PARAMS, {"runs.kd.slots": 10}, ["runs.kd.slots is 10, but this view space has 9 views"]),
    (PARAMS, {"runs.online.slots": 10}, ["runs.online.slots is 10, but this view space has 9 views"]),
    (PARAMS, {"copies": {"one": COPY | {"slots": 10}}}, ["copies.one.slots is 10, but this view space has 9 views"]),
    (PARAMS, {"copies": {"one": COPY | {"slots": 3}}, "teachers.big.features.logits.slots": 2, "distill": []},
     ["copies.one sees 3 view slots, and teachers.big.features.logits.slots is 2", "or lower copies.one.slots."]),
    (PARAMS, {"copies": {"one": COPY | {"slots": 2}}, "runs.kd.schedule": {"self_taught": {"names": ["one"]}}},
     ["runs.kd shows 9 view slots, and copies.one.slots is 2", "or set 'slots' of the run."]),
    # "all" of views that are unbounded: of features, runs and copies
    (UNBOUNDED, {}, ["teachers.big.features.logits.slots is 'all', but this view space is unbounded. Give a number."]),
    (FEW, {}, ["runs.kd.slots is 'all', but this view space is unbounded. Give a number."]),
    (FEW, {"distill": [], "copies": {"one": COPY}},
     ["copies.one.slots is 'all', but this view space is unbounded. Give a number."]),
    (FEW, {"distill": ["pair/online"], "copies": {"one": COPY | {"slots": 2}},
           "runs.online.schedule": {"self_taught": {"names": ["one"]}}},
     ["runs.online shows an unbounded number of views", "Set 'slots' of the run to a number."]),
]  # fmt: skip
VIEWS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (PARAMS, {"runs.kd.views": {"crop_flip": {"padding": 1, "fill": "reflect"}}},
     ["runs.kd.views is crop_flip {padding: 1, fill: reflect, flip: true}",
      "the store of teacher 'big' holds datasets.toy.views, crop_flip {padding: 1, fill: zero, flip: false}",
      "Set 'source: online' of the run, or drop its views."]),
    (PARAMS, {"pairs.pair.overrides": {"kd": {"views": "plain"}}},
     ["pairs.pair.overrides.kd.views is plain, and the store of teacher 'big' holds"]),
    (PARAMS, {"runs.online.views": "random_resized_crop", "runs.online.slots": 2, "copies": {"one": COPY},
              "runs.online.schedule": {"self_taught": {"names": ["one"]}}},
     ["runs.online.views is random_resized_crop {scale: [0.08, 1.0], ",
      "the logits of 'one' are stored of datasets.toy.views, crop_flip {padding: 1, ",
      "Drop the views of the run, or its schedule."]),
    (PARAMS, {"assistants": {"one": ASSISTANT},
              "runs.online": {"methods": "kd", "source": "online", "views": "plain",
                              "schedule": {"assistants": {"names": ["one"]}}}},
     ["runs.online.views is plain, and the logits of 'one' are stored of datasets.toy.views"]),
    (PARAMS, {"runs.online.views": {"crop_flip": {"padding": 8}}},
     ["runs.online.views pads images of 8x8 by 8, expected less than 8", "Set padding to 7 or less"]),
    (PARAMS, {"pairs.pair.overrides": {"online": {"views": {"crop_flip": {"padding": 8}}}}},
     ["pairs.pair.overrides.online.views pads images of 8x8 by 8"]),
    (PARAMS, {"runs.online.views": "plain", "runs.online.slots": 2},
     ["runs.online.slots is 2, but this view space has 1 views"]),
    # of a run that nobody asks for, too
    (PARAMS, {"runs.spare": {"methods": "kd", "views": "crop"}},
     ["Unknown view space of runs.spare.views: 'crop'", "Did you mean 'crop_flip'?"]),
    (PARAMS, {"runs.spare": {"methods": "kd", "views": {"rotate_flip": {"degrees": 0}}}},
     ["'runs.spare.views.rotate_flip.degrees' is 0"]),
    (PARAMS, {"pairs.pair.overrides": {"spare": {"views": "crop"}}, "runs.spare": {"methods": "kd"}},
     ["Unknown view space of pairs.pair.overrides.spare.views: 'crop'"]),
]  # fmt: skip
# Strong views beside the weak ones of PARAMS, whose stores hold as many slots as are asked for.
STRONG = changed(
    changed(PARAMS, "datasets.toy.strong_views", {"crop_flip": {"padding": 1}, "random_erasing": {}}),
    "teachers.big.features",
    {"logits": {"slots": 4}, "stage2": {"slots": 4}},
)
STRONG = changed(STRONG, "runs", {"crld": {"methods": "crld", "slots": 4}})
STRONG = changed(STRONG, "distill", ["pair/crld"])
ONLINE = changed(changed(STRONG, "datasets.toy.strong_views", ...), "runs.crld.source", "online")
ERASED = {"random_erasing": {}}
TWO: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (STRONG, {"datasets.toy.strong_views": ...},
     ["runs.crld (crld) learns from a weak and a strong view of each sample, and datasets.toy has views alone",
      "Add strong_views to it", "then: dvc repro params"]),
    (STRONG, {"runs.crld.slots": 0}, ["runs.crld (crld)", "its slots are 0", "Set slots to 2 or more"]),
    (STRONG, {"runs.crld.slots": 3}, ["runs.crld.slots is 3", "expected an even number", "Set it to 4"]),
    (STRONG, {"teachers.big.features.logits.slots": 3}, ["teachers.big.features.logits.slots is 3", "Set it to 4"]),
    (STRONG, {"teachers.big.features.logits.slots": 2}, ["runs.crld shows 4 view slots", "logits.slots is 2"]),
    (STRONG, {"runs.crld.slots": "all"}, ["runs.crld.slots is 'all', but this view space is unbounded"]),
    (STRONG, {"runs.crld.schedule": "self_learning"},
     ["runs.crld.schedule is 'self_learning', whose lessons are of one view, and method 'crld'",
      "Set the schedule to anchors or final"]),
    (STRONG, {"runs.crld.strong_views": "plain"},
     ["runs.crld.views is crop_flip {padding: 1, fill: zero, flip: false}; strong: plain",
      "the store of teacher 'big' holds", "Set 'source: online' of the run"]),
    (STRONG, {"datasets.toy.strong_views": "crop"}, ["Unknown view space of datasets.toy.strong_views: 'crop'"]),
    (STRONG, {"datasets.toy.strong_views": {"crop_flip": {"padding": 8}}},
     ["datasets.toy.strong_views pads images of 8x8 by 8, expected less than 8"]),
    (STRONG, {"datasets.toy.strong_views": {"color_jitter": {}}},
     ["datasets.toy.strong_views changes the saturation or hue of images of 1 channel"]),
    (STRONG, {"datasets.toy.strong_views": {"crop_flip": {}, "mixup": {}}},
     ["datasets.toy has strong_views and 'mixup'", "Drop either, then: dvc repro params"]),
    (ONLINE, {"runs.crld.strong_views": "plain", "runs.crld.views": "cutmix"},
     ["runs.crld has strong_views and 'cutmix'"]),
    (STRONG, {"runs.crld.views": "cutmix", "runs.crld.source": "online"},
     ["runs.crld (crld) learns from a weak and a strong view", "its views mix samples. Drop its views"]),
    (ONLINE, {"runs.crld.strong_views": {"crop_flip": {"padding": 8}}},
     ["runs.crld.strong_views pads images of 8x8 by 8"]),
    (ONLINE, {"runs.spare": {"methods": "kd", "strong_views": "crop"}},
     ["Unknown view space of runs.spare.strong_views: 'crop'"]),
    (ONLINE, {"runs.crld": {"methods": "kd", "source": "online", "slots": 4, "strong_views": ERASED}},
     ["runs.crld has strong_views, and kd learns from one view of each sample. Drop them"]),
    (STRONG, {"runs.crld": {"methods": {"kd": {}, "dist": {}}, "slots": 4, "strong_views": ERASED}},
     ["runs.crld has strong_views, and kd, dist learn from one view of each sample"]),
]  # fmt: skip
METHODS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (PARAMS, {"runs.kd.methods": {"kd": {"weights": {"hint": 1.0}}}},
     ["'runs.kd.methods.kd.weights'", "'hint' is no term of this method. Its terms are ce, kd."]),
    (PARAMS, {"runs.kd.methods": {"kd": {}, "fitnet": {"weights": {"kd": 1.0}}}},
     ["'runs.kd.methods.fitnet.weights'", "'kd' is no term of this method. Its terms are ce, hint."]),
    (PARAMS, {"runs.kd.methods": {"kd": {"insert": {"stage2": LAYER}}, "fitnet": {"insert": {
        "stage2": {"kd_layer": {"words": 4}}}}}},
     ["runs.kd (of pair pair): Methods 'kd' and 'fitnet' of one run put different layers at student tap 'stage2'",
      "{words: 3}", "{words: 4}", "Change the settings of either"]),
    # a layer that is as wide as its table; nothing is fitted yet
    (WORDS, {"runs.kd.methods": {**place("stage2"), "kd": {"insert": {"stage2": LAYER}}}},
     ["Methods 'letkd' and 'kd' of one run put different layers at student tap 'stage2'", "{words: 4, alpha: 1.0}"]),
    (WORDS, {"runs.kd.methods": {"letkd": {"places": {"stage2": "words"}, "insert": {"stage2": LAYER}}}},
     ["'runs.kd.methods.letkd'", "insert has a layer at 'stage2', where the method puts its own"]),
]  # fmt: skip
CASES = TAPS + TABLES + TEACHERS + SLOTS + VIEWS + TWO + METHODS


@pytest.mark.parametrize(
    ("params", "changes", "parts"), CASES, ids=[str(changes)[1:60] for _, changes, _ in CASES]
)
def test_it_is_reported_before_anything_runs(
    params: dict[str, Any], changes: dict[str, Any], parts: list[str]
) -> None:
    message = refused(params, changes)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("params", "changes"),
    [
        # the last stage by its name
        (PARAMS, {"runs.fitnet.methods": {"fitnet": {"student_tap": "last_block1"}}, "distill": ["pair/fitnet"]}),
        (PARAMS, {"teachers.big.features.last": {}, "runs.fitnet.methods": {"fitnet": {
            "student_tap": "last", "teacher_feature": "stage3"}}}),
        # what a run reads online needs no store
        (PARAMS, {"runs.online.methods": {"fitnet": {"teacher_feature": "stage3"}}}),
        (PARAMS, {"runs.rco.source": "online", "teachers.big.checkpoints": ["last"]}),
        (FEW, {"distill": ["pair/online"]}),
        (FEW, {"distill": [], "copies": {"one": COPY | {"slots": 2}}}),
        # layers that agree are one
        (WORDS, {"runs.kd.methods": {**place("stage2"), "kd": {"insert": {
            "stage2": {"kd_layer": {"words": 4, "alpha": 1.0}}}}}}),
        # what nobody asks for is not looked up in a store
        (PARAMS, {"tables.words": {"kmeans": {"feature": "final", "clusters": 4}}}),
        (PARAMS, {"matchings.other": {}}),
        (PARAMS, {"runs.kd.slots": 2, "teachers.big.features.logits.slots": 2, "distill": ["pair/kd"]}),
        (PARAMS, {"datasets.toy.views.crop_flip.padding": 7}),
        # the largest logits: cached, online, of copies, and of classes that only the files know
        (LARGEST, {}),
        (LARGEST, {"runs.kd.source": "online", "copies": {"one": COPY}}),
        (PARAMS, {"datasets.toy.source": {"image_folder": {"path": "x", "size": 8}},
                  "teachers.big.features.logits.top": 999}),
        # views of a run's own: online; without a teacher's features; as the data set has them; unbounded
        (PARAMS, {"runs.online.views": {"crop_flip": {"fill": "reflect"}}}),
        (PARAMS, {"runs.kd": {"methods": "dsn", "views": "rotate_flip"}}),
        (PARAMS, {"runs.kd.views": {"crop_flip": {"padding": 1, "flip": False, "fill": "zero"}}}),
        (PARAMS, {"runs.online.views": "random_resized_crop"}),
        (PARAMS, {"runs.kcd": PARAMS["runs"]["kcd"] | {"views": "rotate_flip", "source": "online"}}),
        # a weak and a strong view: of the data set; of the run alone, unbounded too; of both, merged by an override
        (STRONG, {}),
        (STRONG, {"runs.crld": {"methods": {"kd": {}, "mlld": {}}, "slots": 4}}),
        (STRONG, {"datasets.toy.strong_views": "rotate_flip", "teachers.big.features": {"logits": {}},
                  "runs.crld.slots": "all"}),
        (ONLINE, {"runs.crld.strong_views": ERASED, "runs.crld.slots": "all"}),
        (ONLINE, {"runs.crld.strong_views": ERASED, "runs.crld.views": "plain"}),
        (ONLINE, {"pairs.pair.overrides": {"crld": {"strong_views": ERASED}}}),
        # mixed views of a run's own stand in the place of both
        (STRONG, {"runs.mixed": {"methods": "kd", "source": "online", "views": "mixup"},
                  "distill": [*STRONG["distill"], "pair/mixed"]}),
    ],
)  # fmt: skip
def test_what_fits_passes(params: dict[str, Any], changes: dict[str, Any]) -> None:
    for where, value in changes.items():
        params = changed(params, where, value)
    check(params)


@pytest.mark.parametrize(("params", "last"), [(PARAMS, "stage3"), (VGG, "stage4")], ids=["resnet", "vgg"])
def test_last_is_the_last_stage_of_each_network(params: dict[str, Any], last: str) -> None:
    params = changed(
        params, "runs.fitnet.methods", {"fitnet": {"student_tap": "last", "teacher_feature": "last"}}
    )
    params = changed(params, "teachers.big.features.last", {})
    params = changed(
        params, "matchings.last", {"student_tap": "last_block1", "teacher_feature": "last:pooled"}
    )
    params = changed(params, "tables.moments.moments.feature", "last")
    known = project(params | {"distill": ["pair/fitnet"]})

    run = known.run("pair", "fitnet")
    assert run.features == (last,)
    assert run.methods[0].settings["student_tap"] == last
    assert list(known.features("big")) == ["logits", "stage2", last]
    matching = known.matching("big", "small", "last")
    assert (matching.student_tap, matching.teacher_feature) == (f"{last}_block1", f"{last}:pooled")
    assert known.table("big", "moments").feature == last


def test_a_teachers_own_value_of_a_table_is_its_own() -> None:
    params = changed(WORDS, "teachers.other", WORDS["teachers"]["big"])
    params = changed(params, "teachers.big.tables", {"words": {"clusters": 8}})
    known = project(params)
    assert known.table("big", "words").model_dump()["clusters"] == 8
    assert known.table("other", "words").model_dump()["clusters"] == 4


def test_a_run_says_what_it_reads() -> None:
    params = changed(PARAMS, "runs.online.methods", {"fitnet": {"standardize": "moments"}, "kd": {}})
    known = project(params | {"distill": ["pair/online", "pair/kcd", "pair/rco"]})
    runs = {run: known.run("pair", run) for run in ("online", "kcd", "rco")}
    assert (runs["online"].features, runs["online"].tables) == (("stage2", "logits"), ("moments",))
    assert [reference.matching for reference in runs["kcd"].matchings] == ["kcd"]
    assert runs["kcd"].changes == ("stage2",)
    assert runs["rco"].checkpoints == ("anchor_050", "last")
    assert [run.slots for run in runs.values()] == [9, 9, 9]
    assert [pair_run for *pair_run, _ in known.distilled()] == [
        ["pair", "online"],
        ["pair", "kcd"],
        ["pair", "rco"],
    ]


def test_the_teacher_that_encodes_beside_the_student_reads_the_table() -> None:
    """Codes that are stored are made already."""
    params = changed(WORDS, "runs.kd.methods", place("stage2", encoding="nearest"))
    params = changed(params, "runs.online.methods", place("stage2", encoding="nearest"))
    known = project(params)
    assert {known.run("pair", run).tables for run in ("kd", "online")} == {("words",)}
    assert known.run("pair", "online").features == ("stage2:nearest@words",)


def test_views_that_are_unbounded_have_no_number_of_slots_online() -> None:
    assert project(FEW | {"distill": ["pair/online"]}).run("pair", "online").slots is None


def test_a_run_has_its_own_views_only_where_they_differ_from_its_data_sets() -> None:
    params = changed(PARAMS, "runs.online.views", {"crop_flip": {"fill": "reflect"}})
    params = changed(params, "pairs.second", {"teacher": "big", "student": "small"})
    params = changed(params, "pairs.second.overrides", {"online": {"views": "plain"}})
    params = changed(params, "pairs.third", {"teacher": "big", "student": "small"})
    params = changed(params, "pairs.third.overrides", {"online": {"views": None}})
    own = {"crop_flip": {"padding": 1, "flip": False}}
    params = changed(params, "runs.kd.views", own)
    known = project(
        params | {"distill": ["pair/online", "second/online", "third/online", "pair/kd", "pair/fitnet"]}
    )
    assert known.run("pair", "online").views == CropFlip(space="crop_flip", fill="reflect")
    assert known.run("pair", "online").slots == 162
    assert known.run("second", "online").views == Plain(space="plain")
    assert known.run("second", "online").slots == 1
    for pair, run in (("third", "online"), ("pair", "kd"), ("pair", "fitnet")):
        assert known.run(pair, run).views is None
        assert known.run(pair, run).slots == 9


def test_a_run_shows_two_views_where_it_or_its_data_set_has_strong_ones() -> None:
    assert project(STRONG).run("pair", "crld").views == project(STRONG).views["toy"]
    own = changed(
        changed(ONLINE, "runs.crld.strong_views", "plain"), "runs.kd", {"methods": "kd", "slots": 4}
    )
    known = project(changed(own, "distill", ["pair/crld", "pair/kd"]))
    views = known.run("pair", "crld").views
    assert isinstance(views, TwoViews)
    assert views.weak == known.views["toy"]
    assert views.strong == Plain(space="plain")
    assert known.run("pair", "kd").views is None
    # Of a data set's pairs a run of one view shows the weak ones, which are every second slot of the store.
    beside = project(changed(STRONG, "runs.kd", {"methods": "kd", "slots": 2}))
    assert beside.run("pair", "kd").views == beside.views["toy"]
