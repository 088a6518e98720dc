"""Names of params.yaml: each becomes a file, a stage of DVC's and a part of commands, on every machine.

So a name must be one wherever the project is checked out: file systems of macOS take `KD` and `kd` for one file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.errors import ParamsError
from pipeline.params.sections import Sections
from pipeline.params.teaching import TEACHER

OWN = "own"  # folder of the matchings with a pair's own teacher; borrowed ones stand beside it
# What stands beside the folders of a section.
_FOLDERS = {"borrowed": OWN, "copies": TEACHER, "assistants": TEACHER}
# No slash, which parts pair and run; nothing that a shell reads; no dot or dash at the start, which would hide a file
# or make an option of it, and no dot at the end, where a suffix is expected.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.+-]*[A-Za-z0-9_+-])?")
_LENGTH = 100  # a file's name has 255 bytes at most: two names, a suffix, and what `publish.scratch` adds
_ENTRIES = ("exports",)  # sections whose keys are entries of `distill`, and checked with it
# What `stages.command.mark` and `stages.inputs` put beside artifacts of these names.
_TAKEN = ("about.json", "teacher.json")


def check(params: Sections) -> None:
    """Check the keys of all sections.

    Raises:
        ParamsError: a name cannot be a file's, or two would be one file or one stage.
    """
    for section in Sections.model_fields:
        entries = getattr(params, section)
        if isinstance(entries, dict) and section not in _ENTRIES:
            for name in entries:
                _check_name(section, name)
            _check_apart(section, entries)

    # DVC joins the parts of a stage's name by a dash, and keeps the last of two stages of one name without a word.
    stages: dict[str, tuple[str, str]] = {}
    for teacher in params.teachers:
        for table in params.tables:
            other = stages.setdefault(f"{teacher}-{table}", (teacher, table))
            if other != (teacher, table):
                raise ParamsError(
                    f"params.yaml: table '{table}' of teacher '{teacher}' and table '{other[1]}' of teacher "
                    f"'{other[0]}' are both the stage fit_table@{teacher}-{table}. Rename one of the tables."
                )


def _check_name(section: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ParamsError(
            f"params.yaml: '{section}.{name}' becomes a file's name. Use letters, digits and any of _.+-, with a "
            "letter or digit first and no dot last."
        )
    if len(name) > _LENGTH:
        raise ParamsError(
            f"params.yaml: '{section}.{name}' becomes a file's name and has {len(name)} letters. Use {_LENGTH} at most."
        )
    folded = name.casefold()
    if folded == _FOLDERS.get(section):
        raise ParamsError(f"params.yaml: {section}.{name} has the name of another folder. Rename it.")
    if folded in _TAKEN:
        raise ParamsError(f"params.yaml: '{section}.{name}' has the name of another file. Rename it.")


def _check_apart(section: str, names: Iterable[str]) -> None:
    """Refuse names that differ by case alone."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.casefold(), name)
        if other != name:
            raise ParamsError(
                f"params.yaml: {section}.{other} and {section}.{name} differ by case alone, and are one file on macOS "
                "and Windows. Rename one."
            )
