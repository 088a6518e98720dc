"""The pages: every block of params is checked, every example runs, every link leads somewhere."""

from __future__ import annotations

import csv
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from graph_fixtures import StandIn
from report_fixtures import Project
from ruamel.yaml import YAML
from table_fixtures import digit_maps
from torch import nn
from training_fixtures import PARAMS, assemble, job, make_world

import pipeline
from pipeline import plugin
from pipeline.compute import graphs
from pipeline.compute.machine import Machine
from pipeline.data.preparation import prepare
from pipeline.distillation.method import Context
from pipeline.errors import DataError
from pipeline.features.encoding import Feature
from pipeline.networks.layer import LayerSpec
from pipeline.networks.network import Network, build, probe
from pipeline.networks.spec import NetworkSpec
from pipeline.params.base import validate
from pipeline.params.document import parse
from pipeline.params.plug import Plug
from pipeline.params.recipe import Epoch, Recipe
from pipeline.params.sections import Sections, merged
from pipeline.runs.check import check
from pipeline.tables.table import FitContext
from pipeline.training import assembly, distill

ROOT = Path(__file__).parents[2]
DOCS = ROOT / ".github" / "docs"
PAGES = [ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
MARKS = {
    "params: merged": "a part of a params.yaml, read as merged onto the base",
    "params: base": "the base",
    "params: of an example": "a part that names a worked example, merged alike",
    "not params": "anything else",
}
ALONE = ("not params", "params: of an example")  # checked apart, or not at all
_FENCE = re.compile(
    r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<content>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Fence:
    """A block of code on a page.

    Attributes:
        page: the page.
        line: the line of the page at which it starts.
        mark: what the comment right before it says, or nothing.
        language: what is behind its first fence.
        content: the code.
    """

    page: Path
    line: int
    mark: str
    language: str
    content: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fences(language: str) -> list[Fence]:
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start("content"))
            found.append(Fence(page, line, match["mark"] or "", match["language"], match["content"]))
    return [fence for fence in found if fence.language == language]


YAMLS = fences("yaml")
EXAMPLES = {
    fence.mark.removeprefix("file: "): fence.content
    for fence in fences("python")
    if fence.mark.startswith("file: ")
}


# --- Blocks of params ---------------------------------------------------------------------------------------


def base() -> dict[str, Any]:
    """Return the params that partial blocks are merged onto."""
    found = [fence for fence in YAMLS if fence.mark == "params: base"]
    assert len(found) == 1, "one page has the base"
    return parse(found[0].content, found[0].page)


def completed(fence: Fence) -> dict[str, Any]:
    """Return a whole params.yaml; of a part all runs are asked for, of its own pair or the base's."""
    content = parse(fence.content, fence.page)
    if fence.mark not in ("params: merged", "params: of an example"):
        return content
    whole = merged(base(), content)
    pair = next(iter(content.get("pairs", base()["pairs"])))
    asked = dict.fromkeys(
        [*content.get("distill", ()), *(f"{pair}/{run}" for run in content.get("runs", ()))]
    )
    return whole | {"distill": list(asked)}


def test_the_readmes_own_params_are_among_the_blocks() -> None:
    assert {fence.page.name for fence in YAMLS} >= {"README.md", "params.md", "letkd.md", "kcd.md"}
    assert {fence.mark for fence in YAMLS} <= {"", *MARKS}


@pytest.mark.parametrize("fence", [fence for fence in YAMLS if fence.mark not in ALONE], ids=str)
def test_blocks_of_params_pass_the_check(fence: Fence) -> None:
    sections = check(completed(fence))
    assert sections.datasets


@pytest.mark.parametrize("fence", YAMLS, ids=str)
def test_blocks_are_yaml(fence: Fence) -> None:
    assert isinstance(YAML(typ="safe").load(fence.content), dict)


# --- Links and commands -------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return what a heading of the page can be linked to as, where it is not generated."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def test_named_commands_and_files_exist() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        for stage in re.findall(r"python -m stages\.(\w+)", text):
            assert (ROOT / "stages" / f"{stage}.py").is_file(), f"{page.name} names stages.{stage}"
        for path in re.findall(r"`((?:pipeline|stages|tests|\.github|\.ci)/[\w./]+\.\w+)`", text):
            assert (ROOT / path).is_file() or path in EXAMPLES, f"{page.name} names {path}"


def test_the_quickstart_speaks_of_the_shipped_params() -> None:
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text("utf-8"))
    page = (DOCS / "quickstart.md").read_text("utf-8")
    keys = re.findall(r"`([a-z]+(?:\.\w+)+): \S+`", page) + re.findall(r"-S '([\w.]+)=", page)
    assert len(keys) >= 4
    for key in keys:
        inner = params
        for part in key.split("."):
            assert part in inner, f"quickstart.md names {key}"
            inner = inner[part]
    named = re.findall(r"distill@([\w.-]+)/(\w+)-\d|`- ([\w.-]+)/(\w+)`", page)
    assert len(named) >= 2
    for pair, run, other_pair, other_run in named:
        assert (pair or other_pair) in params["pairs"]
        assert (run or other_run) in params["runs"]
    assert set(re.findall(r"check_features@(\w+)", page)) <= set(params["teachers"])


def test_every_stage_is_on_its_page() -> None:
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    page = (DOCS / "stages.md").read_text("utf-8")
    assert re.findall(r"^\| `(\w+)[@`]", page.partition("## By hand")[0], re.M) == list(stages)


def test_named_machine_options_are_those_of_the_commands() -> None:
    known = set(re.findall(r"STILLHOUSE_\w+", (ROOT / "stages" / "command.py").read_text("utf-8")))
    page = (DOCS / "stages.md").read_text("utf-8")
    assert set(re.findall(r"`(STILLHOUSE_\w+)`", page)) == known


def test_the_readme_is_one_page_with_the_commands_that_ci_reads() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 170
    for name in ("main", "test"):
        place = lines.index(f"<!-- {name} command -->")
        assert lines[place + 1] == "```sh"
        assert lines[place + 3] == "```"


def test_the_citation_names_the_four_papers() -> None:
    content = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text("utf-8"))
    found = {entry["value"] for paper in content["references"] for entry in paper["identifiers"]}
    assert found == {f"arXiv:{number}" for number in ("2309.02843", "2103.16844", "2304.11923", "2202.07846")}
    assert content["authors"] == [{"name": "The Stillhouse developers"}]
    assert all(paper["authors"] and paper["title"] for paper in content["references"])


# --- The site -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "-f",
        ".github/mkdocs.yml",
        "-d",
        out,
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import what fills in the pages, as mkdocs does."""
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("hooks")


def test_the_site_builds_without_a_warning(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")}
    assert len(list(site.rglob("index.html"))) == len(pages)
    assert not (site / "hooks.py").exists()
    for path in site.rglob("*.html"):
        assert "<!-- generated:" not in path.read_text("utf-8"), path


def test_every_key_and_plugin_is_on_a_page(site: Path, hooks: ModuleType) -> None:
    params = (site / "params" / "index.html").read_text("utf-8")
    for name, field in Sections.model_fields.items():
        assert f"<code>{name}</code>" in params
        for model in hooks.models(field.annotation):
            for place, _, _ in hooks.keys(model):
                assert f"<code>{place}</code>" in params
    plugins = (site / "plugins" / "index.html").read_text("utf-8")
    for catalogue in plugin.CATALOGUES:
        for name in plugin.names(catalogue):
            assert f"<code>{name}</code>" in plugins
    methods = (site / "methods" / "index.html").read_text("utf-8")
    for name in plugin.names("methods"):
        summary = str(plugin.load("methods", name).__doc__).partition(":")[0].partition("(")[0]
        assert f">{name}</code>" in methods
        assert summary.strip() in methods


def test_every_key_has_a_sentence(hooks: ModuleType) -> None:
    """A key that no `Attributes:` line describes would have an empty cell."""
    models = {"params.yaml": Sections}
    for catalogue in plugin.CATALOGUES:
        for name in plugin.names(catalogue):
            if (config := getattr(plugin.load(catalogue, name), "Config", None)) is not None:
                models[f"{catalogue}/{name}"] = config
    silent = [
        f"{of}: {place}" for of, model in models.items() for place, _, text in hooks.keys(model) if not text
    ]
    assert silent == []


# --- Worked examples ----------------------------------------------------------------------------------------


Importer = Callable[[str], ModuleType]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Importer]:
    """Write the examples of the page into a folder that the packages are extended by; return their importer."""
    for name, content in EXAMPLES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    monkeypatch.setattr(pipeline, "__path__", [*pipeline.__path__, str(tmp_path / "pipeline")])
    for folder in {str(Path(name).parent) for name in EXAMPLES}:
        package = importlib.import_module(folder.replace("/", "."))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / folder)])
    importlib.invalidate_caches()
    modules = [name.removesuffix(".py").replace("/", ".") for name in EXAMPLES]
    yield importlib.import_module
    for name in modules:
        module = sys.modules.pop(name, None)
        if module is not None:
            parent, _, child = name.rpartition(".")
            vars(sys.modules[parent]).pop(child, None)


def test_there_is_an_example_of_every_kind() -> None:
    folders = {str(Path(name).parent).replace("/", ".") for name in EXAMPLES}
    assert folders == {*map(plugin.package, plugin.CATALOGUES), "pipeline.report.sections"}


@pytest.mark.parametrize("fence", [x for x in YAMLS if x.mark == "params: of an example"], ids=str)
def test_params_of_the_examples_pass_the_check(fence: Fence, written: Importer) -> None:
    assert check(completed(fence)).datasets


def test_examples_are_clean(written: Importer, tmp_path: Path) -> None:
    ruff = Path(sys.executable).parent / "ruff"
    options = ["--config", ROOT / "pyproject.toml", "--no-cache"]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [ruff, *command, *options, tmp_path / "pipeline"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_example_of_a_data_set(written: Importer, tmp_path: Path) -> None:
    assert "npz" in plugin.names("datasets")
    module, file = plugin.load("datasets", "npz"), tmp_path / "mine.npz"
    settings = {"path": str(file), "size": 6, "channels": 1, "classes": ["cat", "dog"]}
    config = validate(module.Config, settings, "datasets.mine.source.npz")
    with pytest.raises(DataError, match="does not exist"):
        module.open_source(config)
    draw, arrays = np.random.default_rng(0), {}
    for split, number in (("train", 12), ("test", 6)):
        arrays[f"{split}_images"] = draw.integers(0, 256, (number, 1, 6, 6), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(number) % 2
    np.savez(file, allow_pickle=False, **arrays)

    facts = module.image(config)
    assert (facts.size, facts.channels, facts.classes) == (6, 1, 2)
    prepare(module.open_source(config), "npz", config, tmp_path / "prepared")
    from pipeline.data.prepared import Prepared

    prepared = Prepared.open(tmp_path / "prepared")
    assert prepared.meta.samples == {"train": 12, "test": 6}
    np.testing.assert_array_equal(prepared.split("test").images, arrays["test_images"])

    other = config.model_copy(update={"size": 8})
    with pytest.raises(DataError, match=r"expected \(1, 8, 8\)"):
        module.open_source(other)


def test_example_of_a_network(written: Importer) -> None:
    for name in plugin.load("networks", "convnet").NETWORKS:
        spec = NetworkSpec(family="convnet", network=name, size=16, channels=3, classes=5)
        network = build(spec, 0)
        shapes = probe(network, 16, 3)
        assert {"stem", "stage1", "stage1_block1", "stage2_pre", "final", "pooled", "logits"} <= set(shapes)
        assert shapes["stage2"] == (64, 4, 4)
        assert probe(network.rest("stage1"), 8, 32)["logits"] == (5,)


def test_example_of_a_method(written: Importer) -> None:
    found = assemble("similarity")
    batch = found.batch()
    taps = found.student.record(batch.image, found.needs.student)
    terms = found.method(taps, batch)
    assert terms.keys() == found.method.weights(batch).keys()
    s, t = taps["final"].detach().flatten(1), batch.teacher["final"].flatten(1)
    expected = 0.0
    for i in range(len(s)):
        one, other = (x @ x[i] for x in (s, t))
        expected += float(((one / one.norm() - other / other.norm()) ** 2).sum())
    assert float(terms["similarity"].detach()) == pytest.approx(expected / len(s) ** 2, rel=1e-4)
    terms["similarity"].backward()
    assert any(x.grad is not None and x.grad.abs().sum() > 0 for x in found.student.parameters())


def test_example_of_a_table(written: Importer) -> None:
    module, stream = plugin.load("tables", "class_means"), digit_maps(200)
    fitted = module.fit(stream, module.Config(feature="final"), FitContext(num_classes=10))
    for label in range(10):
        chosen = stream.values[stream.labels == label].astype(np.float64)
        np.testing.assert_allclose(fitted.arrays["means"][label], chosen.mean(axis=(0, 2, 3)), rtol=1e-6)
    assert fitted.arrays["samples"].sum() == 200
    assert fitted.quality["smallest_class"] > 0
    assert stream.passes == 1


def test_example_of_an_encoding(written: Importer) -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    found = Feature.parse("final:peak").encode(x)
    assert found.tolist() == [[float(channel.max()) for channel in sample] for sample in x]


def context(student: Network) -> Context:
    return Context(
        num_classes=4, labels=torch.zeros(8).long(), student=student, student_shapes={}, teacher_shapes={}
    )


def test_example_of_a_transform(written: Importer) -> None:
    found, module = assemble("kd"), plugin.load("transforms", "power")
    config = module.Config(power=0.3)
    transform = module.Transform(config, context(found.student))
    batch = found.batch()
    t = batch.teacher["logits"]
    changed = transform(batch.teacher, batch)["logits"]
    power = t.softmax(dim=1) ** 0.3
    torch.testing.assert_close(changed.softmax(dim=1), power / power.sum(dim=1, keepdim=True))
    assert module.Transform.changes(config) == ("logits",)
    assert not transform.train().training


def test_example_of_a_schedule(written: Importer) -> None:
    found, module = assemble("kd"), plugin.load("schedules", "early_stop")
    schedule = module.Schedule(module.Config(until=0.5), context(found.student))
    ways, terms = [], []
    for epoch in range(4):
        ways.append(schedule.start(Epoch("main", epoch, 4)))
        (lesson,) = schedule({}, found.batch(epoch=epoch, epochs=4)).lessons
        terms.append(lesson.terms)
    assert ways == [True, True, False, False]
    assert terms == [None, None, ("ce",), ("ce",)]
    assert schedule.checkpoint(Epoch("main", 0, 4)) == "last"


def test_example_of_a_schedule_is_a_step_that_a_gpu_can_repeat(
    written: Importer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph for the epochs with the teacher and one for those without: the bits of eager steps."""
    world = make_world(tmp_path, PARAMS)
    recipe = Recipe(
        epochs=4, batch_size=24, learning_rate=0.05
    )  # four whole batches an epoch, and one that is not
    inputs = world.inputs("kd", recipe=recipe).model_copy(
        update={"schedule": Plug.model_validate("early_stop")}
    )
    monkeypatch.setattr(graphs, "Graph", StandIn)
    monkeypatch.setattr(StandIn, "made", 0)
    monkeypatch.setattr(Machine, "fused", property(lambda self: True))

    weights, histories = [], []
    for captured in (True, False):
        machine = Machine(torch.device("cpu"), captured=captured)
        scratch = tmp_path / f"captured-{captured}"
        scratch.mkdir()
        assembly.train(distill.prepare(inputs, job(scratch, "early_stop", machine=machine)))
        weights.append((scratch / "weights" / "last.safetensors").read_bytes())
        with (scratch / "history.csv").open(newline="") as file:
            histories.append([(row["ce"], row["kd"]) for row in csv.DictReader(file)])
    assert StandIn.made == 2
    assert weights[0] == weights[1]
    assert histories[0] == histories[1]
    assert [bool(kd) for _, kd in histories[0]] == [True, True, False, False]


def test_example_of_a_layer(written: Importer) -> None:
    spec = NetworkSpec(family="resnet", network="resnet8", size=8, channels=1, classes=4)
    layer = LayerSpec.of("channel_scale", start=2.0)
    plain, scaled = build(spec, 0), build(spec.model_copy(update={"inserted": {"final": layer}}), 0)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    one, other = (network.eval().record(x, ("final",))["final"] for network in (plain, scaled))
    torch.testing.assert_close(other, 2 * one)
    assert isinstance(scaled.layers()["final"], nn.Module)


def test_example_of_a_report_section(written: Importer, tmp_path: Path) -> None:
    module = written("pipeline.report.sections.spread")
    (tmp_path / "project").mkdir()
    results = Project(tmp_path / "project").collect()
    html = module.section(results, results.pairs[0])
    for run in results.pairs[0].runs:
        assert run.name in html
        assert f"{max(run.values('top1')):.2f}" in html
    (tmp_path / "single").mkdir()
    single = Project(tmp_path / "single", seeds=(0,)).collect()
    assert module.section(single, single.pairs[0]) == ""
