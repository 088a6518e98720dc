"""The code that a module is made of: itself and every project module that it imports, directly or not.

DVC hashes the files that a stage lists, not what they import, and a list kept by hand goes stale. So `stages.code`
writes one small json a stage and plug-in with the hash of every file in its closure, `stages.params` puts one hash of
the closures that a block names into its json, and stages depend on these. Comments, docstrings, blank lines and the
help of options do not count, nor does what all commands share: a correction there retrains no teacher.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pipeline
from pipeline.artifacts.hashing import content_hash

PACKAGES = ("pipeline", "stages")
# Options and error lines of all commands, what errors advise, and progress bars: no artifact depends on them.
WORDING = (
    "stages",
    "stages.command",
    "pipeline.artifacts.advice",
    "pipeline.artifacts.system",
    "pipeline.progress",
)
Span = tuple[tuple[int, int], tuple[int, int]]  # (line from 1, column in characters), end exclusive
# Dots before the module, the module ("" where there is none), names from it or of modules.
Import = tuple[int, str, list[str]]


class Source(NamedTuple):
    """What is read of a file's syntax tree, which is parsed once for both.

    Attributes:
        text: of the file.
        wording: spans of docstrings and of the help of options.
        imports: all but those for type checking alone.
    """

    text: str
    wording: list[Span]
    imports: list[Import]


def root() -> Path:
    """Return the folder that holds the project's packages."""
    return Path(next(iter(pipeline.__path__))).parent


def closure(
    modules: Iterable[str], base: Path | None = None, packages: tuple[str, ...] | None = PACKAGES
) -> list[Path]:
    """Return the files of `modules` and of all that they import, relative to `base`, in alphabetical order.

    Imports inside functions count; those for type checking alone, and empty `__init__` files, do not. A plug-in
    that is loaded by name is no import: it has a closure of its own.

    Args:
        modules: dotted names, for instance "pipeline.distillation.methods.kd".
        base: the folder that holds the packages; None is the running project's.
        packages: those that are followed; None is whatever lies in that folder.
    """
    base = base or root()
    # The wording counts as seen: neither it nor what it imports is ever followed.
    waiting, files = list(modules), dict[str, Path | None](dict.fromkeys(WORDING))
    while waiting:
        name = waiting.pop()
        if name in files:  # most names come up dozens of times
            continue
        path = files[name] = _file(name, base, packages)
        if path is not None:
            parent = name.rpartition(".")[0]  # a package's `__init__` runs before its modules
            waiting += [parent, *_imports(path, name if path.name == "__init__.py" else parent)]

    return sorted(
        path.relative_to(base)
        for path in files.values()
        if path is not None and (path.name != "__init__.py" or path.stat().st_size)
    )


def code_hashes(modules: Iterable[str], packages: tuple[str, ...] | None = PACKAGES) -> dict[str, str]:
    """Return the hash of every file in the closure of `modules`, by path relative to the project."""
    return {path.as_posix(): code_hash(root() / path) for path in closure(modules, packages=packages)}


def digest(modules: Iterable[str]) -> str:
    """Return one hash of the closure of `modules`."""
    return content_hash(code_hashes(modules))


@cache
def code_hash(path: Path) -> str:
    """Return the hash of a file's code: its text without comments, docstrings, help of options and blank lines.

    It is made from the text, not from a syntax tree's form, so all Python versions agree on it.
    """
    text, wording, _ = _source(path)
    lines = text.split("\n")
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    comments = [(token.start, token.end) for token in tokens if token.type == tokenize.COMMENT]
    spans = sorted(wording + comments, reverse=True)  # from the end, so that a cut moves no other span
    for (first, left), (last, right) in spans:
        lines[first - 1] = lines[first - 1][:left] + lines[last - 1][right:]
        lines[first:last] = [""] * (last - first)

    # Blanks at a line's end and blank lines mean nothing, unless they lie within a string.
    within = _within_strings(tokens, spans)
    kept = "\n".join(
        line if number in within else line.rstrip()
        for number, line in enumerate(lines, start=1)
        if number in within or line.strip()
    )
    return hashlib.blake2b(kept.encode(), digest_size=16).hexdigest()


def _within_strings(tokens: Iterable[tokenize.TokenInfo], spans: list[Span]) -> set[int]:
    """Return the lines, from 1, whose end lies inside a string outside of `spans`: there, blanks count."""
    return {
        line
        for token in tokens
        if token.start[0] < token.end[0]
        and not any(start <= token.start and token.end <= end for start, end in spans)
        for line in range(token.start[0], token.end[0])
    }


@cache
def _source(path: Path) -> Source:
    text = path.read_text()
    tree = ast.parse(text)
    return Source(text, list(_wording(text, tree)), list(_imported(ast.iter_child_nodes(tree))))


def _wording(text: str, tree: ast.Module) -> Iterator[Span]:
    """Give the spans of docstrings and of the help of options."""
    lines = text.split("\n")
    # Most of a tree are expressions, and few files have options.
    for node in ast.walk(tree) if "help" in text else _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield _span(first, lines)
        elif isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            yield _span(node.value, lines)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Give a node and all below it that is not within an expression."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from _statements(child)


def _span(node: ast.stmt | ast.expr, lines: list[str]) -> Span:
    """Return the span of a node; columns of the tree count bytes."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    left = len(lines[node.lineno - 1].encode()[: node.col_offset].decode())
    right = len(lines[node.end_lineno - 1].encode()[: node.end_col_offset].decode())
    return (node.lineno, left), (node.end_lineno, right)


def _file(name: str, base: Path, packages: tuple[str, ...] | None) -> Path | None:
    if packages is not None and name.partition(".")[0] not in packages:
        return None
    try:
        return _found(name, base)
    except FileNotFoundError:
        return None


@cache
def _found(name: str, base: Path) -> Path:
    """Return the file of a module; what is not there is not remembered, since it may still come.

    A look at the disk is slow, and closures share most of their names.
    """
    path = base.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(path)


@cache
def _imports(path: Path, package: str) -> list[str]:
    """Return the names that a module of `package` imports, those of what is in a module among them."""
    found = []
    for level, module, names in _source(path).imports:
        # Each dot beyond the first leads one package up.
        parents = package.split(".")[: len(package.split(".")) - level + 1] if level else []
        whole = ".".join([*parents, *([module] if module else [])])
        # A name may itself be a module; where it is something in one, `_file` finds nothing.
        found += [whole, *(f"{whole}.{name}" for name in names)] if level or module else names
    return found


def _imported(nodes: Iterable[ast.AST]) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _imported(node.orelse)
        elif isinstance(node, ast.Import):
            yield 0, "", [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]
        elif not isinstance(node, ast.expr):  # which holds no import, and is most of a tree
            yield from _imported(ast.iter_child_nodes(node))
