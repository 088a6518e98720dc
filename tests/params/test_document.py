"""What of yaml may stand in params.yaml, and that the rest is refused before it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from params_fixtures import line_of
from ruamel.yaml import YAML

from pipeline.params import document, events
from pipeline.params.document import BYTES, parse, read
from pipeline.params.events import DEPTH, VALUES
from stages import check_params, params, plan

ROOT = Path(__file__).parents[2]
LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(
    f"a{k + 1}: &a{k + 1} [{', '.join([f'*a{k}'] * 9)}]\n" for k in range(9)
)
MERGED = "a: &a {x: 1}\nb: {<<: [" + ", ".join(["*a"] * VALUES) + "]}\n"

# A document, and what the one line must say.
DOCUMENTS: list[tuple[str, str]] = [
    # nesting
    *[(f"a: {'[' * depth}{']' * depth}", f"nests lists and mappings deeper than {DEPTH} in line 1")
      for depth in (DEPTH, 1_000, 100_000)],
    ("{a: " * 100_000, f"deeper than {DEPTH} in line 1"),
    ("- " * 1_000 + "x", f"deeper than {DEPTH} in line 1"),
    ("".join(" " * depth + "a:\n" for depth in range(1_000)), f"deeper than {DEPTH} in line {DEPTH + 1}"),
    # aliases
    ("a: &a [*a]\n", "the alias *a inside of what it stands for in line 1"),
    ("seeds: []\nruns: &a {kd: {recipe: *a}}\n", "the alias *a inside of what it stands for in line 2"),
    ("a: &a {<<: *a}\n", "the alias *a inside of what it stands for"),
    ("a: *b\n", "the alias *b, and no &b before it in line 1"),
    ("a: &a 1\nb: &a 2\n", "the anchor &a for a second time in line 2"),
    ("a: &a x\n*a : 1\n", "the alias *a as a key in line 2"),
    (LAUGHS, f"more than {VALUES:,} values in line 6"),
    (MERGED, f"more than {VALUES:,} values in line 2"),
    ("a: {<<: x}\n", "is not valid yaml"),
    # the same key twice
    ("a: 1\n'a': 2\n", "the key 'a' twice in one mapping in line 2"),
    ("a: {b: {c: 1, c: 1}}\n", "the key 'c' twice in one mapping in line 1"),
    ("a: &a {x: 1}\nb: {<<: *a, y: 2, y: 3}\n", "the key 'y' twice in one mapping in line 2"),
    ("a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", "the key '<<' twice in one mapping in line 2"),
    # keys that are no text
    ("? [a]\n: 1\n", "a key that is a list or mapping in line 1"),
    ("? {a: 1}\n: 1\n", "a key that is a list or mapping in line 1"),
    ("? \n: 1\n", "the key None, which yaml reads as NoneType"),
    # tags, directives, documents
    *[(f"a: {tag} {value}\n", f"the tag {tag.replace('!!', 'tag:yaml.org,2002:')} in line 1") for tag, value in (
        ("!!python/object/apply:os.system", "[touch owned]"), ("!!binary", "aGk="), ("!!set", "{x, y}"),
        ("!!omap", "[x: 1]"), ("!!str", "1"), ("!!int", "x"), ("!!bool", "x"), ("!own", "1"), ("!", "x"))],
    ("%YAML 1.1\n---\na: yes\n", "a directive (%)"),
    ("%TAG ! tag:yaml.org,2002:\n---\na: !str 1\n", "a directive (%)"),
    ("a: 1\n---\nb: 1\n", "another document (---) in line 2"),
    # what is not quoted and reads as something else
    *[(f"a: [{date}]\n", f"has {date}, which yaml reads as a date in line 1. Quote it: '{date}'")
      for date in ("2020-01-01", "2001-12-14t21:59:43.10-05:00", "2020-13-45")],
    ("a: =\n", "has =, which yaml reads as a special value in line 1. Quote it: '='"),
    *[(f"a:\n  b: {number}\n", f"has {number}, which is no plain number in line 2") for number in (
        "010", "-007", "00", "0o17", "0x1F", "0b11", "1_000", "1_0.5", "01.5", "00e1", "-0", "+0", ".inf", "-.inf",
        ".nan")],
    (f"a: {'9' * 400}\n", "has a whole number of 400 digits in line 1. Write 18 at most"),
    (f"a: {2**63}\n", "has a whole number of 19 digits"),
    # characters
    ("a: \0\n", "is not valid yaml"),
    ("a: \x07\n", "is not valid yaml"),
    ("a:\n\tb: 1\n", "is not valid yaml"),
    # another top level
    ("", "holds NoneType"),
    ("# nothing\n", "holds NoneType"),
    ("text", "holds str"),
    ("- a\n", "holds list"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "part"), DOCUMENTS, ids=[content[:24] for content, _ in DOCUMENTS])
def test_what_no_file_of_settings_has_is_refused_in_one_line(content: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content.encode())
    line = line_of(lambda: check_params.main(path))
    assert line.startswith(f"{path} ")
    assert part in line
    assert len(line.removeprefix(str(path))) < 400


def test_a_list_holds_no_more_values_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a smaller limit: so many are read for seconds."""
    monkeypatch.setattr(events, "VALUES", 1_000)
    line = line_of(lambda: parse("a: [" + "1, " * 1_000 + "1]\n", Path("params.yaml")))
    assert "more than 1,000 values" in line


@pytest.mark.parametrize(
    "content",
    [f"a: {'[' * 100_000}", LAUGHS, MERGED, "a: &a [*a]\n"],
    ids=["deep", "laughs", "merged", "endless"],
)
def test_a_bomb_is_refused_before_anything_is_built(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: YAML, stream: object) -> object:
        raise AssertionError("it was built")

    monkeypatch.setattr(YAML, "load", load)
    line_of(lambda: parse(content, Path("params.yaml")))


def test_every_command_that_reads_the_file_refuses_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(LAUGHS)
    for command in (
        lambda: check_params.main(path),
        lambda: plan.main(params=path),
        lambda: params.main(tmp_path / "params", params=path),
    ):
        assert "more than 200,000 values" in line_of(command)
    assert not (tmp_path / "params").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a\n", {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}),
        ("a: &a {x: 1}\nb: {<<: *a, x: 2}\n", {"a": {"x": 1}, "b": {"x": 2}}),
        ("\ufeffa: 1\n", {"a": 1}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("a: 1\rb: 2\r", {"a": 1, "b": 2}),
        ("a: ['2020-01-01', '010', yes, 1:30]\n", {"a": ["2020-01-01", "010", "yes", "1:30"]}),
        ("a: [0, -1, +2, 0.5, .5, 5., 1e3, 5e-4, 0.0, 123456789012345678]\n",
         {"a": [0, -1, 2, 0.5, 0.5, 5.0, 1e3, 5e-4, 0.0, 123456789012345678]}),
        (f"a: {'[' * (DEPTH - 1)}{']' * (DEPTH - 1)}\n", None),
    ],
)  # fmt: skip
def test_the_rest_is_read_as_dvc_reads_it(content: str, expected: Any, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content.encode())
    assert read(path) == YAML(typ="safe").load(content)
    assert expected in (read(path), None)


def test_a_file_that_is_too_large_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "BYTES", 100)
    path = tmp_path / "params.yaml"
    path.write_text("a: 1\n" + "#" * 95)
    assert read(path) == {"a": 1}
    path.write_text("a: 1\n" + "#" * 96)
    assert "is larger than 100 bytes" in line_of(lambda: read(path))
    assert "is larger than 100 bytes" in line_of(lambda: read(Path("/dev/zero")))
    assert (ROOT / "params.yaml").stat().st_size * 100 < BYTES


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    assert "is a folder, expected a yaml file" in line_of(lambda: read(tmp_path))
    path = tmp_path / "params.yaml"
    for content in (b"a: \xff\n", "a: 1\n".encode("utf-16")):
        path.write_bytes(content)
        assert "is not valid yaml: 'utf-8' codec" in line_of(lambda: read(path))
