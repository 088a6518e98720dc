"""A run is rehearsed on shapes alone: every method can be, and a table's stand-in has the sizes of what is fitted."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from error_fixtures import one_line
from table_fixtures import digit_maps
from training_fixtures import KNOWN, PARAMS, STUDENT, changed, plug

from pipeline import plugin
from pipeline.distillation import combination
from pipeline.distillation.method import BaseMethod, MethodConfig, Needs
from pipeline.errors import ParamsError, ShapeError, StillhouseError
from pipeline.networks.architecture import architecture, blank
from pipeline.networks.layer import LayerSpec
from pipeline.networks.network import probe
from pipeline.params.plug import Plug
from pipeline.params.runs import RunParams
from pipeline.runs.check import check
from pipeline.runs.composition import Composition
from pipeline.runs.rehearsal import feature_shape, rehearse
from pipeline.tables.table import FitContext

FITS = {"kmeans": {"clusters": 5}, "kernels": {}, "moments": {}, "lda": {"components": 3},
        "subclasses": {"components": 3, "per_class": 2},
        "coarse": {"threshold": 0.0}}  # fmt: skip


def composed(methods: dict[str, Any], **more: Any) -> Composition:
    return Composition.of(RunParams.model_validate({"methods": methods} | more), "runs.x", KNOWN)


@pytest.mark.parametrize("name", plugin.names("tables"))
def test_a_stand_in_has_the_sizes_of_what_is_fitted(name: str) -> None:
    module = plugin.load("tables", name)
    config = module.Config(feature="final", **FITS[name])
    fitted = module.fit(digit_maps(300), config, FitContext(num_classes=10)).arrays
    stand_in = module.stand_in(config, 12, 10)
    assert stand_in.keys() <= fitted.keys()
    for array, values in stand_in.items():
        assert values.shape == fitted[array].shape, array
        assert values.dtype == fitted[array].dtype, array


@pytest.mark.parametrize("name", plugin.names("methods"))
def test_every_method_is_rehearsed_to_its_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its heads and projectors are built, for the shapes that its networks have."""
    assembled, assemble = list[Any](), combination.assemble

    def noted(*given: Any) -> Any:
        assembled.append(assemble(*given))
        return assembled[-1]

    monkeypatch.setattr(combination, "assemble", noted)
    settings = {"mimicry": {"student_tap": "stage2", "teacher_feature": "stage2"}}.get(name, {})
    words = plugin.load("tables", "kmeans").stand_in(SimpleNamespace(clusters=5, temperature=1.0), 64, 4)
    labels = plugin.load("tables", "coarse").stand_in(SimpleNamespace(), 64, 4)
    tables = {"words": words} | {f"coarse{stage}": labels for stage in (1, 2, 3)}
    rehearse(composed({name: settings}), STUDENT, KNOWN, tables)
    assert len(assembled) == 1


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ShapeError, match="Mimicry pairs equal shapes"):
        rehearse(
            composed({"mimicry": {"student_tap": "stage1", "teacher_feature": "stage2"}}), STUDENT, KNOWN, {}
        )
    layers = [{"stage2": {"kd_layer": {"words": words}}} for words in (3, 4)]
    with pytest.raises(ParamsError, match="Methods 'kd' and 'fitnet' of one run put different layers"):
        rehearse(composed({"kd": {"insert": layers[0]}, "fitnet": {"insert": layers[1]}}), STUDENT, KNOWN, {})


def test_a_student_of_another_width_can_have_the_teachers_classifier() -> None:
    narrow = STUDENT.model_copy(update={"network": "resnet8x0.25"})
    known = replace(KNOWN, student=architecture(narrow))
    rehearse(composed({"simkd": {}}), narrow, known, {})
    spec = narrow.model_copy(
        update={
            "classifier_width": 64,
            "inserted": {"final": LayerSpec.of("projector", outputs=64, height=2, width=2)},
        }
    )
    network = blank(spec)
    assert (network.classifier.in_features, network.classifier.out_features) == (64, 4)
    assert probe(network, 8, 1)["logits"] == (4,)


def test_what_two_methods_cannot_do_together_is_an_error() -> None:
    with pytest.raises(ParamsError, match="each train in phases of their own"):
        rehearse(composed({"ab": {}, "fsp": {}}), STUDENT, KNOWN, {})
    rehearse(composed({"ab": {}, "fsp": {"epochs": 0}}), STUDENT, KNOWN, {})


def test_a_transform_without_matchings_is_rehearsed_too() -> None:
    wide = {"methods": {"kd": {}, "fsp": {"places": {"stage1": "stage1", "stage2": "stage3"}}}}
    for more in ({}, {"transform": "logit_standardization"}):
        with pytest.raises(ShapeError, match="as many channels"):
            rehearse(composed(**wide, **more), STUDENT, KNOWN, {})


def test_a_method_may_learn_at_a_tap_of_an_inserted_layer() -> None:
    layer = {"insert": {"final": {"kd_layer": {"words": 5}}}}
    for method in ("vid", "ab"):
        rehearse(composed({method: {"places": {"final.scores": "final"}} | layer}), STUDENT, KNOWN, {})


def test_variances_of_any_size_can_be_started_from() -> None:
    for variance in (1e-3, 5.0, 1e4):
        rehearse(composed({"vid": {"variance": variance}}), STUDENT, KNOWN, {})


def test_what_a_plugin_computes_from_values_it_computes_from_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    class Config(MethodConfig):
        weights: dict[str, float] = {"ce": 1.0}

    class Counting(BaseMethod[Config]):
        def __init__(self, config: Config, context: Any) -> None:
            super().__init__(config, context)
            self.first = float(next(context.student.parameters()).detach().flatten()[0])

        @classmethod
        def needs(cls, config: Config) -> Needs:
            return Needs()

    plug(monkeypatch, "methods", "counting", Config=Config, Method=Counting)
    rehearse(composed({"counting": {}}), STUDENT, KNOWN, {})
    # A table of which no sizes are known, and a transform, too.
    rehearse(composed({"letkd": {}}), STUDENT, KNOWN, {})
    wrong = {"mimicry": {"student_tap": "stage1", "teacher_feature": "stage2"}}
    rehearse(composed(wrong, transform={"permutation": {"features": ["stage2"]}}), STUDENT, KNOWN, {})


STAGES = ("stage1", "stage2", "stage3")
STORED = ["logits", "final", "pooled", "stem", *STAGES, *(f"{stage}_pre" for stage in STAGES)]
LAYER = {"kd_layer": {"words": 3}}
# What may be right in itself, and does not fit the networks or what else the run does.
UNFIT: list[tuple[dict[str, Any], list[str]]] = [
    # places
    ({"methods": {"ofd": {"places": {"pooled": "stage2_pre"}}}}, ["OFD pairs two maps", "'pooled' is (64,)"]),
    ({"methods": {"ofd": {"places": {"stage2": "pooled"}}}}, ["OFD reads the BN before teacher feature 'pooled'"]),
    ({"methods": {"ofd": {"places": {"stage9_pre": "stage2_pre"}}}}, ["Unknown student tap", "mean 'stage3_pre'?"]),
    ({"methods": {"ofd": {"places": {"stage2_pre": "stage9_pre"}}}}, ["Unknown teacher tap", "mean 'stage3_pre'?"]),
    ({"methods": {"ofd": {"places": {"last_pre": "stage2_pre", "stage3_pre": "stage3_pre"}}}},
     ["places has 'stage3_pre' of the student under two names"]),
    *[({"methods": {name: {"places": {}}}}, ["these networks have none in common", "Name 'places'"])
      for name in ("ofd", "ab", "fsp", "at", "vid", "reviewkd")],
    ({"methods": {"fitnet": {"student_tap": "pooled", "teacher_feature": "pooled"}}}, ["A regressor pairs two maps"]),
    # layers
    ({"methods": {"kd": {"insert": {"pooled": LAYER}}}}, ["Layer 'kd_layer' reads a map, and student tap 'pooled'"]),
    ({"methods": {"kd": {"insert": {"logits": {"projector": {"outputs": 4, "height": 1, "width": 1}}}}}},
     ["Layer 'projector' reads a map, and student tap 'logits'"]),
    ({"methods": {"kd": {"insert": {"final": {"projector": {"outputs": 12, "height": 1, "width": 1}}}}}},
     ["with layers at final", "Choose other layers"]),
    ({"methods": {"kd": {"insert": {"final": {"projector": {"outputs": -1, "height": 1, "width": 1}}}}}},
     ["'outputs' is -1"]),
    ({"methods": {"kd": {"insert": {"stage9": LAYER}}}}, ["Unknown tap 'stage9'"]),
    # two at one place
    ({"methods": {"letkd": {"insert": {"final": LAYER}}}}, ["a layer at 'final', where the method puts its own"]),
    ({"methods": {"kd": {"insert": {"final": LAYER}}, "letkd": {}}},
     ["Methods 'kd' and 'letkd'", "different layers at student tap 'final'"]),
    ({"methods": {"simkd": {}, "letkd": {}}}, ["Methods 'simkd' and 'letkd'", "different layers", "'final'"]),
    ({"methods": {"kd": {"insert": {"final": LAYER}}, "simkd": {}}}, ["Methods 'kd' and 'simkd'", "'final'"]),
    ({"methods": {"simkd": {"insert": {"final": LAYER}}}}, ["'insert' names another layer there"]),
    ({"methods": {"ab": {}, "fsp": {}}}, ["Methods 'ab' and 'fsp'", "each train in phases of their own"]),
    # the teacher's modules beside what is not the teacher's any more
    *[({"methods": name, "transform": {"permutation": {"features": [feature]}}},
       [f"transform changes teacher feature '{feature}', which method '{name}' reads together with modules"])
      for name, feature in (("ofd", "stage2_pre"), ("sdd", "final"), ("simkd", "final"))],
    *[({"methods": name, "schedule": {"anchors": {"anchors": ["anchor_050", "last"]}}},
       ["the anchors are anchor_050, last", "Drop anchor_050"]) for name in ("ofd", "sdd", "simkd")],
    ({"methods": "sdd", "transform": "logit_standardization"}, ["changes teacher feature 'logits'", "reads final"]),
]  # fmt: skip


def project(run: dict[str, Any]) -> dict[str, Any]:
    """Return params.yaml with this run alone, and a store that holds what the tests read."""
    return PARAMS | {
        "teachers": {"big": PARAMS["teachers"]["big"] | {"features": {name: {} for name in STORED}}},
        "tables": {"words": {"kmeans": {"feature": "final", "clusters": 12}}},
        "runs": {"x": run},
        "distill": ["pair/x"],
    }


@pytest.mark.parametrize(("run", "parts"), UNFIT, ids=[str(run)[:60] for run, _ in UNFIT])
def test_what_does_not_fit_together_is_refused_in_one_line(run: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(StillhouseError) as error:
        check(project(run))
    one_line(error, "runs.x", *parts)


@pytest.mark.parametrize(
    "run",
    [
        {"methods": "ofd"},
        {"methods": "sdd", "source": "online"},
        {"methods": {"sdd": {}, "kd": {}}, "schedule": {"anchors": {"anchors": ["last"]}}},
        {"methods": {"simkd": {}, "sdd": {}}},
        {"methods": {"sdd": {}, "letkd": {}, "kd": {"insert": {"stage1": LAYER}}}},
        {"methods": {"simkd": {}, "mimicry": {"student_tap": "stage2", "teacher_feature": "stage2"}},
         "transform": {"permutation": {"features": ["stage2"]}}},
    ],
    ids=str,
)  # fmt: skip
def test_what_fits_together_is_not_refused(run: dict[str, Any]) -> None:
    check(project(run))


@pytest.mark.parametrize(
    ("method", "network", "text"),
    [
        ("ofd", "shufflenetv2", "none there, but before stem_pre, final_pre."),
        ("ofd", "timm/resnet18", "none there, but before no tap at all."),
        (
            "sdd",
            "timm/convnext_atto",
            "by the teacher's classifier, which does not read the mean of this map",
        ),
        (
            "simkd",
            "timm/convnext_atto",
            "by the teacher's classifier, which does not read the mean of this map",
        ),
    ],
)
def test_a_teacher_whose_modules_do_not_serve_is_refused(method: str, network: str, text: str) -> None:
    if network.startswith("timm"):
        pytest.importorskip("timm")
    params = changed(project({"methods": method}), "teachers.big.network", network)
    params = changed(params, "teachers.big.features", {"logits": {}, "final": {}})
    with pytest.raises(ParamsError) as error:
        check(changed(params, "datasets.toy.source", "cifar"))
    one_line(error, "runs.x (of pair pair)", text, "of another family")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("stage2", (32, 4, 4)),
        ("stage2:pooled", (32,)),
        ("stage2:halved", (32, 2, 2)),
        ("stage2:nearest@words", (4, 4)),
        ("stage2:halved:nearest@words", (2, 2)),
        ("stage2:subclass@subclasses", (4, 4)),
    ],
)
def test_the_shape_of_a_feature_by_hand(name: str, shape: tuple[int, ...]) -> None:
    assert feature_shape(KNOWN.teacher.taps, name, 4) == shape


def test_a_run_is_what_its_plug_ins_say() -> None:
    run = composed(
        {"fitnet": {"standardize": "moments"}, "kd": {}},
        schedule={"anchors": {"anchors": ["best", "last"]}},
        transform={"permutation": {"features": ["logits"]}},
    )
    assert list(run.methods) == ["fitnet", "kd"]
    assert (run.needs.student, run.needs.teacher) == (("logits", "stage2"), ("stage2", "logits"))
    assert run.needs.tables == ("moments",)
    assert (run.checkpoints, run.copies, run.changes) == (("best", "last"), (), ("logits",))
    assert run.plugins == ("methods/fitnet", "methods/kd", "schedules/anchors", "transforms/permutation")
    assert [plug.name for plug in run.plugs()] == ["fitnet", "kd"]
    # What has been filled in is composed to the same again: a student's inputs hold it.
    again = RunParams.model_validate({
        "methods": {plug.name: plug.settings for plug in run.plugs()}, "transform": {"permutation": {
            "features": ["logits"]}}, "schedule": {"anchors": {"anchors": ["best", "last"]}},
    })  # fmt: skip
    assert Composition.of(again, "runs.x").plugs() == run.plugs()
    coded = composed({"letkd": {"places": {"final": {"table": "words", "encoding": "nearest"}}}})
    assert coded.plugins == ("methods/letkd", "schedules/final", "encodings/nearest", "layers/kd_layer")
    assert Plug.of("letkd", **coded.plugs()[0].settings) == coded.plugs()[0]
