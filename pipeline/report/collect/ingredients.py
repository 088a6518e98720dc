"""What a run reads beside its data, compared with what the project has now.

Where something between params.yaml and a student has failed, the student is as it was, and so are its inputs: they
agree with each other, and not with the table or matching that params.yaml asks for now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.artifacts import advice
from pipeline.artifacts.hashing import content_hash
from pipeline.errors import StaleArtifactError
from pipeline.networks import taught
from pipeline.networks.taught import Taught
from pipeline.params.names import OWN
from pipeline.params.pairs import PairBlock, RunBlock
from pipeline.params.teaching import TEACHER
from pipeline.report.collect.blocks import Blocks
from pipeline.report.collect.missing import Omissions
from pipeline.report.results import Assistant, Code, Table, Teacher
from pipeline.report.trainings import Matched


@dataclass(frozen=True)
class Ingredients:
    """What is whole of what runs read.

    Attributes:
        tables: fitted tables.
        codes: codes of views.
    """

    tables: tuple[Table, ...]
    codes: tuple[Code, ...]

    def check(
        self,
        artifacts: Path,
        blocks: Blocks,
        block: PairBlock,
        run: RunBlock,
        teacher: Teacher,
        own: Iterable[Matched],
    ) -> None:
        """Refuse a run that reads what is left out.

        Args:
            artifacts: folder of all artifacts.
            blocks: the blocks of params.yaml.
            block: the pair.
            run: of the pair.
            teacher: of the pair.
            own: the matchings of the pair that are whole.

        Raises:
            MissingArtifactError: a copy or an assistant of the teacher has not been made.
            StaleArtifactError: what the run reads is left out, or is of other settings.
        """
        tables = {table.name for table in self.tables if table.teacher.name == teacher.name}
        codes = {code.name for code in self.codes if code.teacher == teacher.name}
        coded = [feature for feature in run.features if "@" in feature]
        for name in (*run.tables, *(feature.partition("@")[2] for feature in coded)):
            if name not in tables:
                raise StaleArtifactError(f"Its table {name} is left out.")
        for feature in coded if run.source == "cached" else ():
            if feature not in codes:
                raise StaleArtifactError(f"Its codes {feature} are left out.")

        matchings = {(matched.borrowed or OWN, matched.name) for matched in own}
        for wanted in run.matchings:
            lent = wanted.teacher is not None
            folder = block.borrowed[f"{wanted.teacher}/{wanted.matching}"] if lent else OWN
            if (folder, wanted.matching) not in matchings:
                raise StaleArtifactError(f"Its matching {wanted.key} is left out.")
        for name in run.copies:
            check_taught(artifacts, blocks, name, teacher)


def check_stored(inputs: Mapping[str, Any], path: Path, teacher: Teacher, hint: str) -> None:
    """Refuse inputs that name other features than the store held when it was checked.

    Args:
        inputs: of a student.
        path: where they stand, for the error.
        teacher: whose store was checked.
        hint: the command that resolves them.

    Raises:
        StaleArtifactError: a feature differs.
    """
    stored = inputs.get("stored")
    for feature, entry in stored.items() if isinstance(stored, dict) else ():
        checked = teacher.store["features"].get(feature, {}).get("digest", {})
        digest = entry.get("digest") if isinstance(entry, dict) else None
        for key, value in digest.items() if isinstance(digest, dict) else ():
            if checked.get(key, value) != value:
                raise StaleArtifactError(
                    f"{path} was resolved with another '{feature}' than was checked. {advice.again(hint)}"
                )


def assistants(
    artifacts: Path, blocks: Blocks, teachers: Mapping[str, Teacher], omissions: Omissions
) -> tuple[Assistant, ...]:
    """Read what assistants and copies say of themselves; those that are not whole are left out.

    Args:
        artifacts: folder of all artifacts.
        blocks: the blocks of params.yaml.
        teachers: those that are reported.
        omissions: takes what is left out.
    """
    known = []
    for teacher in teachers.values():
        own = (name for name, params in blocks.sections.taught.items() if params.teacher == teacher.name)
        for name in own:
            block = blocks.taught(name)
            what = f"{block.stage.partition('@')[0].removeprefix('train_')} {name} of teacher {teacher.name}"
            about = omissions.whole(
                what, block.stage, partial(check_taught, artifacts, blocks, name, teacher)
            )
            if about is not None:
                learned = teacher.name, block.network, block.learns_from
                known.append(Assistant(name, *learned, about.epochs, about.top1))
    return tuple(known)


def check_taught(artifacts: Path, blocks: Blocks, name: str, teacher: Teacher) -> Taught:
    """Read what a copy or an assistant says of itself; it and all before it must be what params.yaml asks for.

    Args:
        artifacts: folder of all artifacts.
        blocks: the blocks of params.yaml.
        name: of the copy or assistant.
        teacher: the teacher that it is of.

    Raises:
        MissingArtifactError: it has not been made, or one that it learned from.
        StaleArtifactError: it is of another teacher or of other settings, or learned from another assistant.
    """
    block, copies = blocks.taught(name), artifacts / "copies" / teacher.name
    about = taught.checked(copies, name, block.stage, teacher.trained.weights["last"])
    if about.settings != content_hash(block.model_dump(mode="json")):
        raise StaleArtifactError(
            f"{copies / name / taught.FILE} is of other settings than params.yaml has. "
            f"{advice.again(f'dvc repro {block.stage}')}"
        )
    for source in block.learns_from:
        if source != TEACHER:
            check_taught(artifacts, blocks, source, teacher)
    return about
