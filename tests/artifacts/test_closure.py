"""The closure of a module's imports, and the hash of its code."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from training_fixtures import PARAMS, World, make_world
from warm_python import MODULES

from pipeline import plugin
from pipeline.artifacts import closure
from pipeline.artifacts.closure import code_hash, code_hashes, digest, root
from pipeline.params.sections import merged

STAGES = sorted(
    path.stem for path in (root() / "stages").glob("*.py") if path.stem not in ("__init__", "command")
)
PLUGINS = {plugin.package(catalogue) for catalogue in plugin.CATALOGUES}  # loaded by name


def tree(base: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return base


def closed(base: Path, *modules: str) -> set[str]:
    return {path.as_posix() for path in closure.closure(modules, base)}


# ------------------------------------------------------------------ closure


def test_closure_follows_every_form_of_import(tmp_path: Path) -> None:
    base = tree(
        tmp_path,
        {
            "pipeline/__init__.py": "",
            "pipeline/top.py": "import pipeline.plain\nfrom pipeline import module\nfrom pipeline.named import thing\n"
            "import os, numpy\n\n"
            "def f():\n    from pipeline import nested\n    if f:\n        import pipeline.deep as d\n",
            "pipeline/plain.py": "from pipeline.further import x",
            "pipeline/further.py": "x = 1",
            "pipeline/module.py": "try:\n    import pipeline.tried\nexcept ImportError:\n    pass",
            "pipeline/tried.py": "",
            "pipeline/named.py": "class A:\n    from pipeline import held\n",
            "pipeline/held.py": "y = 1",
            "pipeline/nested.py": "from pipeline import top  # a circle",
            "pipeline/deep.py": "",
            "pipeline/alone.py": "",
        },
    )
    names = {path.stem for path in (base / "pipeline").glob("*.py")} - {"alone", "__init__"}
    assert closed(base, "pipeline.top") == {f"pipeline/{name}.py" for name in names}
    assert closed(base, "pipeline.alone") == {"pipeline/alone.py"}
    assert closed(base, "pipeline.plain", "pipeline.deep") == {
        "pipeline/plain.py", "pipeline/further.py", "pipeline/deep.py",
    }  # fmt: skip


def test_imports_for_type_checking_do_not_count(tmp_path: Path) -> None:
    base = tree(
        tmp_path,
        {
            "pipeline/a.py": "import typing\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    from pipeline import b\nelse:\n    from pipeline import c\n"
            "if typing.TYPE_CHECKING:\n    from pipeline import d\n"
            "if not TYPE_CHECKING:\n    from pipeline import e\n",
            **{f"pipeline/{name}.py": "" for name in "bcde"},
        },
    )
    assert closed(base, "pipeline.a") == {"pipeline/a.py", "pipeline/c.py", "pipeline/e.py"}


def test_relative_imports_count(tmp_path: Path) -> None:
    base = tree(
        tmp_path,
        {
            "pipeline/sub/__init__.py": "from .d import x",
            "pipeline/sub/a.py": "from . import b\nfrom .c import x\nfrom .. import e\nfrom ..f import y",
            **{f"pipeline/sub/{name}.py": "" for name in "bcdg"},
            **{f"pipeline/{name}.py": "" for name in "efg"},
        },
    )
    expected = {"sub/__init__", "sub/a", "sub/b", "sub/c", "sub/d", "e", "f"}
    assert closed(base, "pipeline.sub.a") == {f"pipeline/{name}.py" for name in expected}


def test_packages_that_are_run_count(tmp_path: Path) -> None:
    files = {"pipeline/__init__.py": "x = 1", "pipeline/sub/__init__.py": "", "pipeline/sub/a.py": ""}
    assert closed(tree(tmp_path, files), "pipeline.sub.a") == {"pipeline/__init__.py", "pipeline/sub/a.py"}


def test_what_is_not_there_is_passed_over(tmp_path: Path) -> None:
    base = tree(tmp_path, {"pipeline/a.py": "from pipeline import nothing\nimport json", "json.py": "x = 1"})
    assert closed(base, "pipeline.a", "pipeline.none") == {"pipeline/a.py"}


def test_what_was_not_there_may_come(tmp_path: Path) -> None:
    base = tree(tmp_path, {"pipeline/a.py": "from pipeline import later"})
    assert closed(base, "pipeline.a") == {"pipeline/a.py"}
    tree(tmp_path, {"pipeline/later.py": "x = 1"})
    assert closed(base, "pipeline.a") == {"pipeline/a.py", "pipeline/later.py"}


def test_methods_have_closures_of_their_own() -> None:
    kd, fitnet = (code_hashes([f"pipeline.distillation.methods.{name}"]) for name in ("kd", "fitnet"))
    assert "pipeline/distillation/losses.py" in kd
    assert "pipeline/distillation/methods/fitnet.py" not in kd
    assert "pipeline/distillation/methods/kd.py" not in fitnet
    distill = code_hashes(["stages.distill"])
    assert not any(path.startswith("pipeline/distillation/methods/") for path in distill)
    assert "pipeline/training/loop.py" in distill


@pytest.mark.parametrize("name", plugin.names("tables"))
def test_a_fit_reads_only_what_is_its_own(name: str) -> None:
    """No edit of a network, of a machine or of how features are extracted refits a table."""
    paths = [str(path) for path in closure.closure(["stages.fit_table", plugin.module("tables", name)])]
    assert "pipeline/features/contents.py" in paths
    foreign = (
        "networks/",
        "compute/",
        "distillation/",
        "training/",
        "runs/",
        "evaluation/",
        "report/",
        "matching/",
    )
    assert [path for path in paths if path.startswith(tuple(f"pipeline/{room}" for room in foreign))] == []
    for path in ("features/teacher.py", "features/extract.py", "features/manifest.py", "params/teacher.py"):
        assert f"pipeline/{path}" not in paths
    plugins = {path for path in paths if path.startswith("pipeline/tables/fits/")}
    assert plugins == {f"pipeline/tables/fits/{name}.py"}


def test_the_teachers_chain_does_not_depend_on_methods_or_distilling() -> None:
    for stage in ("train_teacher", "extract_features", "prepare_data"):
        paths = set(code_hashes([f"stages.{stage}"]))
        assert paths.isdisjoint(
            {
                "pipeline/distillation/method.py",
                "pipeline/training/distill.py",
                "pipeline/distillation/losses.py",
            }
        ), stage
        assert not any(
            path.startswith(("pipeline/report/", "pipeline/distillation/methods/")) for path in paths
        ), stage


TRAINING = ("train_teacher", "extract_features", "fit_table", "encode_views", "train_copy", "pretrain_student",
            "match_channels", "distill")  # fmt: skip


@pytest.mark.parametrize("stage", TRAINING)
def test_what_is_measured_and_what_may_be_asked_for_rerun_nothing_expensive(stage: str) -> None:
    """The comparison of student and teacher, the report, and the grammar of params.yaml."""
    paths = set(code_hashes([f"stages.{stage}"]))
    foreign = ("evaluation/evaluate.py", "runs/comparison.py", "runs/project.py", "runs/blocks.py", "runs/resolve.py",
               "params/sections.py", "params/runs.py", "params/pairs.py")  # fmt: skip
    assert paths.isdisjoint(f"pipeline/{path}" for path in foreign)
    assert not any(path.startswith("pipeline/report/") for path in paths)


def test_what_a_run_is_made_from_reruns_no_student_alone() -> None:
    assert "pipeline/runs/inputs.py" not in code_hashes(["stages.pretrain_student"])
    assert "pipeline/runs/inputs.py" in code_hashes(["stages.distill"])


def test_digest_depends_on_every_file() -> None:
    assert digest(["pipeline.distillation.methods.kd"]) == digest(["pipeline.distillation.methods.kd"])
    assert digest(["pipeline.distillation.methods.kd"]) != digest(["pipeline.distillation.methods.fitnet"])


# ------------------------------------------------------------------ hash

CODE = '''"""Doc."""

import os  # why


def f(x: int = 1) -> str:
    """Do.

    More.
    """
    # a comment
    text = """a

      b # not a comment
    """
    return f"{x}#{text}"  # end


class A:
    """Doc."""

    y = "#"
'''


def hashed(tmp_path: Path, text: str) -> str:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.py"
    path.write_text(text, encoding="utf-8")
    return code_hash(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Doc."""\n\nimport', '"""Another,\n\nlonger doc: café → naïve 🎓."""\n\n\nimport'),
        ('"""Doc."""\n\nimport', "import"),
        ("  # why", "  # é → because 🎓"),
        ("  # why", ""),
        ("    # a comment\n", ""),
        ("    # a comment\n", "    # a comment: über\n    # and another\n\n"),
        ('    """Do.\n\n    More.\n    """\n', '    """Do it at once."""\n'),
        ("\n\n\nclass A", "\n\n# between\n\n\nclass A"),
        ("  # end", "   "),
        ('    """Doc."""\n\n    y', "    y"),
        ('    y = "#"\n', '    y = "#"  # é\n\n\n'),
    ],
)
def test_comments_docstrings_and_blank_lines_do_not_count(tmp_path: Path, old: str, new: str) -> None:
    assert old in CODE
    assert hashed(tmp_path, CODE) == hashed(tmp_path, CODE.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import os", "import io"),
        ("x: int = 1", "x: int = 2"),
        ('y = "#"', 'y = "# "'),
        ("b # not a comment", "b # a comment"),
        ('"""a\n\n', '"""a\n'),  # a blank line inside a string that is no docstring
        ('"""a\n\n', '"""a  \n\n'),
        ('f"{x}#{text}"', 'f"{x}# {text}"'),
        ('    y = "#"', 'y = "#"'),
        ("    return f", "    x += 1\n    return f"),
    ],
)
def test_code_counts(tmp_path: Path, old: str, new: str) -> None:
    assert old in CODE
    assert hashed(tmp_path, CODE) != hashed(tmp_path, CODE.replace(old, new, 1))


def test_unicode_columns(tmp_path: Path) -> None:
    one = 'class Ä: "é"; y = 1\nx = "é"  # ü\n'
    assert hashed(tmp_path, one) == hashed(
        tmp_path, one.replace("# ü", "# 🎓 ü").replace('"é";', '"other 🎓";')
    )
    assert hashed(tmp_path, one) != hashed(tmp_path, one.replace("y = 1", "y = 2"))


def test_line_separators_inside_strings_move_nothing(tmp_path: Path) -> None:
    one = 'x = "a\u2028b\x0cc"\n\n\ndef f():\n    """Doc."""\n    return 1\n'
    assert hashed(tmp_path, one) == hashed(tmp_path, one.replace("Doc", "Other doc"))
    assert hashed(tmp_path, one) != hashed(tmp_path, one.replace("return 1", "return 2"))


def test_every_file_of_the_project_can_be_hashed() -> None:
    for package in closure.PACKAGES:
        for path in (root() / package).rglob("*.py"):
            assert len(code_hash(path)) == 32


def test_relative_paths_and_folders_do_not_change_the_hash(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert hashed(tmp_path / "a", CODE) == hashed(tmp_path / "b", CODE)


def test_the_wording_of_commands_is_no_code(tmp_path: Path) -> None:
    """The help of an option, in whatever call, and all of what commands share; a default is code."""
    text = 'x = Option("--x", help="One.")\ny = Option(help=f"{x}")\n'
    file, reworded, other = (tmp_path / f"{name}.py" for name in "abc")
    file.write_text(text)
    reworded.write_text(text.replace("One.", "Another one."))
    other.write_text(text.replace("--x", "--y"))
    assert code_hash(file) == code_hash(reworded) != code_hash(other)
    assert "stages/command.py" not in code_hashes(["stages.distill"])


# ------------------------------------------------------------------ what stages really import

# Runs each command in a child of its own. Only libraries are shared, so that each is imported once.
DRIVER = """
import ast, importlib, json, os, sys
root, jobs, libraries = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
sys.path.insert(0, root)
for name in libraries:
    importlib.import_module(name)
import torch
torch.set_num_threads(1)
for name, arguments in jobs.items():
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        code, module = 0, importlib.import_module(f"stages.{name}")
        if arguments is None:
            for node in ast.walk(ast.parse(open(module.__file__).read())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    exec(ast.unparse(node), {})
        else:
            sys.argv = [name, *arguments]
            try:
                module.command.run(module.main)
            except SystemExit as error:
                code = error.code or 0
        loaded = [name for name in sys.modules if name.split(".")[0] in ("pipeline", "stages")]
        with os.fdopen(write, "w") as pipe:
            json.dump([code, sorted(loaded)], pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = json.loads(pipe.read() or '["died", []]')
    os.waitpid(child, 0)
    print(json.dumps([name, *answer]), flush=True)
"""


def commands(world: World) -> dict[str, list[str]]:
    """Return a command of every stage of dvc.yaml on toy artifacts."""
    at, out = (lambda name: str(world.path(name))), (lambda name: str(world.path(f"again/{name}")))
    block, asked = at("artifacts/params/teachers/big"), at("artifacts/inputs/teachers/big")
    prepared, data = at("data/prepared"), at("data/prepared/toy")
    weights, store = at("artifacts/teachers/big/weights"), at("artifacts/features/big.zarr")
    small = at("artifacts/inputs/students/small.json")
    places = ["--prepared", prepared, "--weights", weights, "--store", store]
    return {
        "code": ["--out", out("code")],
        "params": ["--params", at("params.yaml"), "--out", out("params"), "--mark", out("marked")],
        "prepare_data": [at("artifacts/params/datasets/toy.json"), "--out", out("data")],
        "train_teacher": [f"{block}/train.json", "--data", data, "--out", out("teacher")],
        "evaluate": [at("artifacts/students/pair/kcd/0"), "--out", out("metrics.json"),
                     "--predictions", out("predictions.npz")],
        "extract_features": [f"{block}/extract.json", "--data", data, "--weights", weights,
                             "--out", out("big.zarr")],
        "check_features": [f"{block}/check.json", "--store", store, "--data", data, "--weights", weights,
                           "--out", out("check.json"), "--summary", out("summary.json")],
        "teacher_inputs": [f"{block}/asked.json", "--store", store, "--out", out("asked"), "--mark", out("tables")],
        "fit_table": [f"{asked}/tables/words.json", "--prepared", prepared, "--store", store,
                      "--out", out("words.npz"), "--metrics", out("words.json")],
        "encode_views": [f"{asked}/codes/words.json", *places, "--table", at("artifacts/tables/big/words.npz"),
                         "--out", out("codes"), "--metrics", out("codes.json")],
        "train_copy": [at("artifacts/params/copies/copy.json"), *places, "--out", out("copy")],
        "student_inputs": [at("artifacts/params/students/small.json"), "--data", data,
                           "--code", at("artifacts/code"), "--out", out("small.json")],
        "pretrain_student": [small, "--seed", "0", "--out", out("alone")],
        "match_channels": [at("artifacts/params/matchings/pair.json"), *places,
                           "--students", at("artifacts/pretrained/small"),
                           "--out", out("own"), "--metrics", out("own.json")],
        "inputs": [at("artifacts/params/pairs/pair.json"), *places, "--codes", at("artifacts/codes/big"),
                   "--tables", at("artifacts/tables/big"), "--copies", at("artifacts/copies/big"),
                   "--matchings", at("artifacts/matchings/pair"),
                   "--evaluation", at("artifacts/predictions/teachers/big.npz"),
                   "--code", at("artifacts/code"), "--out", out("inputs")],
        "distill": [at("artifacts/inputs/pairs/pair/kcd/0.json"), "--out", out("student")],
    }  # fmt: skip


WORLD = merged(
    PARAMS,
    {
        "seeds": [0],
        "distill": ["pair/standardized", "pair/kcd", "pair/coded"],
        "runs": {
            "coded": {"methods": {"letkd": {"places": {"stage2": {"table": "words", "encoding": "top4"}}}}}
        },
        "tables": {"words": {"kmeans": {"feature": "stage2", "clusters": 5}}},
        "copies": {"copy": {"teacher": "big", "student": "small"}},
    },
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from stages import distill, encode_views

    world = make_world(tmp_path_factory.mktemp("world"), WORLD, runs=False)
    artifacts = world.path("artifacts")
    encode_views.main(
        artifacts / "inputs/teachers/big/codes/words.json",
        prepared=world.path("data/prepared"),
        weights=artifacts / "teachers/big/weights",
        store=artifacts / "features/big.zarr",
        table=artifacts / "tables/big/words.npz",
        out=artifacts / "codes/big/words",
        metrics=artifacts / "metrics/codes/big/words.json",
    )
    world.resolve(artifacts / "inputs/pairs/pair")
    distill.main([artifacts / "inputs/pairs/pair/kcd/0.json"], out=[artifacts / "students/pair/kcd/0"])
    return world


@pytest.fixture(scope="module")
def loaded(world: World) -> dict[str, list[str]]:
    """Run every stage, and return the project's modules that it had loaded at its end."""
    jobs = dict.fromkeys(STAGES) | commands(world)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(root()), json.dumps(jobs), json.dumps(MODULES)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(name, code) for name, code, _ in answers] == [(name, 0) for name in jobs], done.stderr
    return {name: modules for name, _, modules in answers}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_stages_import_nothing_outside_of_their_closure(loaded: dict[str, list[str]], stage: str) -> None:
    modules = loaded[stage]
    plugins = [name for name in modules if name.rpartition(".")[0] in PLUGINS]
    known = {path.as_posix() for path in closure.closure([f"stages.{stage}", *plugins])}
    # Which no artifact depends on.
    known |= {"stages/__init__.py", *(f"{name.replace('.', '/')}.py" for name in closure.WORDING)}
    for module in modules:
        path = root().joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.name != "__init__.py" or file.stat().st_size:
            assert file.relative_to(root()).as_posix() in known, module


@pytest.mark.slow
def test_stages_did_their_work(loaded: dict[str, list[str]], world: World) -> None:
    for name in ("student", "alone", "copy"):
        assert world.path(f"again/{name}/weights/last.safetensors").exists()
    assert world.path("again/codes/top4.zarr/zarr.json").exists()
    assert world.path("again/own/kcd/0.npz").exists()
    assert "teacher_l2" in json.loads(world.path("again/metrics.json").read_text())
    one = world.path("again/teacher/weights/last.safetensors").read_bytes()
    assert one == world.path("artifacts/teachers/big/weights/last.safetensors").read_bytes()
    for run in ("standardized", "kcd", "coded"):
        path = f"pair/{run}/0.json"
        again = world.path(f"again/inputs/{run}/0.json").read_bytes()
        assert again == world.path(f"artifacts/inputs/pairs/{path}").read_bytes()


@pytest.mark.slow
def test_code_stage_writes_the_closure_of_everything(loaded: dict[str, list[str]], world: World) -> None:
    folder = world.path("again/code")
    for stage in STAGES:
        assert json.loads((folder / f"stages/{stage}.json").read_text()) == code_hashes([f"stages.{stage}"])
    kd = json.loads((folder / "methods/kd.json").read_text())
    assert kd == code_hashes(["pipeline.distillation.methods.kd"])


def test_plug_ins_are_loaded_by_name_only() -> None:
    """A static import of a plug-in would tie a stage to it."""
    folders = [Path("pipeline", *room.split(".")) for room in plugin.CATALOGUES.values()]
    for stage in STAGES:
        for path in closure.closure([f"stages.{stage}"]):
            # Detectors have its blocks. These two make nothing that takes long, and depend on all code anyway.
            shared = stage in ("params", "plan") and path.name == "torchvision_resnet.py"
            assert shared or path.parent not in folders, f"{stage}: {path}"


def test_no_import_is_hidden_from_the_closure() -> None:
    """Modules are loaded by name in few places: plug-ins, sections of the report, measurements, stages in workers."""
    places = (
        "pipeline/plugin.py",
        "pipeline/params/tasks.py",  # what a stage runs for another task, whose hash is in that one's blocks and inputs
        "pipeline/report/page.py",
        "pipeline/benchmark/suite.py",
        "pipeline/execution/preload.py",  # of no artifact: what a process has imported before it runs a stage
        "pipeline/execution/worker.py",  # runs a stage as `python -m` does
        "pipeline/networks/families/imported.py",  # a network of the user's, whose hash is in its spec
    )
    allowed = {root() / place for place in places}
    loaders = {
        "__import__",
        "import_module",
        "importlib.import_module",
        "runpy.run_module",
        "pkgutil.resolve_name",
    }
    for package in closure.PACKAGES:
        for path in (root() / package).rglob("*.py"):
            names = {
                ast.unparse(node.func)
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call)
            }
            assert not names & loaders or path in allowed, path
