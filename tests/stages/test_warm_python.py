"""The `python` and `dvc` of toy projects end as the real ones do, and run what their folder holds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import warm_python
from execution_fixtures import gone, number_in, stage, until

pytestmark = pytest.mark.slow  # its server is what the other slow tests have anyway


def start(folder: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    path = f"{warm_python.programs()}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path} | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(folder: Path, *command: str, **environment: str) -> tuple[int, str, str]:
    process = start(folder, *command, **environment)
    out, error = process.communicate()
    return process.returncode, out, error


def test_a_stage_is_the_folder_s_own_and_ends_as_it_says(tmp_path: Path) -> None:
    source = "import os, sys\nprint(sys.argv[1], os.environ['MINE'], os.getcwd())\nsys.exit({end})\n"
    for end, status, error in (("0", 0, ""), ("3", 3, ""), ("'no'", 1, "no\n"), ("None", 0, "")):
        words = stage(tmp_path, "one", source.format(end=end)).split()
        assert run(tmp_path, *words, "a b", MINE="x") == (status, f"a b x {tmp_path}\n", error)
    words = stage(tmp_path, "one", "raise ValueError('odd')").split()
    status, _, error = run(tmp_path, *words)
    assert (status, error.splitlines()[-1]) == (1, "ValueError: odd")


def test_a_stage_has_the_imports_already_and_another_program_has_not(tmp_path: Path) -> None:
    asks = "import sys; print('torch' in sys.modules, 'pipeline' in sys.modules)"
    assert run(tmp_path, *stage(tmp_path, "one", asks).split())[1] == "True False\n"
    assert run(tmp_path, "python", "-c", asks)[1] == "False False\n"
    # What a process has from its start on, a fork cannot be given.
    words = stage(tmp_path, "one", asks).split()
    assert run(tmp_path, *words, OMP_NUM_THREADS="2")[1] == "False False\n"


REAL = {"OMP_NUM_THREADS": "2"}  # other than the server's: it stands aside


def test_dvc_writes_the_lock_that_it_writes_without_a_memory(tmp_path: Path) -> None:
    """Of stages one after another, before and after an edit of one; long commands are folded, and some have lines."""
    chain = "stages:\n" + "".join(
        f"  s{k}:\n    cmd:\n    - 'true {'word ' * 30}'\n    - |\n      true\n      cp f{k} f{k + 1}\n"
        f"    deps: [f{k}]\n    outs: [f{k + 1}]\n"
        for k in range(4)
    )
    locks = []
    for name, environment in (("warm", {}), ("real", REAL)):
        (folder := tmp_path / name).mkdir()
        (folder / "dvc.yaml").write_text(chain)
        assert run(folder, "dvc", "init", "--no-scm", "--quiet", **environment)[0] == 0
        for text in ("a", "b", "b"):
            (folder / "f0").write_text(text)
            status, out, _ = run(folder, "dvc", "repro", **environment)
            assert status == 0
        assert "up to date" in out
        locks.append((folder / "dvc.lock").read_bytes())
    assert locks[0] == locks[1]


def test_sources_are_parsed_as_they_are_without_a_memory(tmp_path: Path) -> None:
    file = warm_python.ROOT / "pipeline/plugin.py"
    asks = (
        "import ast, io, tokenize\n"
        f"text = open({str(file)!r}).read()\n"
        "for source in (text, text + 'MORE = 1  # one\\n'):\n"
        "    print(ast.dump(ast.parse(source), include_attributes=True))\n"
        "    print(*tokenize.generate_tokens(io.StringIO(source).readline))\n"
    )
    words = stage(tmp_path, "one", asks).split()
    warm, real = run(tmp_path, *words), run(tmp_path, *words, **REAL)
    assert warm == real
    assert warm[1].count("MORE") >= 2


def test_a_signal_ends_both_ends(tmp_path: Path) -> None:
    words = stage(tmp_path, "one", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n").split()
    assert run(tmp_path, *words)[0] == -9

    waits = "import os, time\nprint(os.getpid(), file=open('pid', 'w'), flush=True)\ntime.sleep(1000)\n"
    with start(tmp_path, *stage(tmp_path, "two", waits).split()) as process:
        number = number_in(tmp_path / "pid")
        assert not gone(number)
        process.kill()
        until(lambda: gone(number))


def test_dvc_is_the_environment_s(tmp_path: Path) -> None:
    import dvc

    assert run(tmp_path, "dvc", "--version") == (0, f"{dvc.__version__}\n", "")
    assert run(tmp_path, "dvc", "status")[0] == 253  # no repository
