"""`raw.json` of prepared data: the raw files as they were listed, so that a change of them can be told.

DVC knows nothing of raw files. As a dependency it would read every byte of them on each machine, and call data that
were pulled out of date where there are none. So prepared data remember the names and sizes of what they were made of,
and the commands that start a session of work compare, for less than a second of 200,000 files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline import plugin
from pipeline.artifacts import advice, publish
from pipeline.data.raw.listing import Listed
from pipeline.data.raw.place import located
from pipeline.errors import DataError
from pipeline.params.base import Block

FILE = "raw.json"


class Record(Block):
    """What `raw.json` holds.

    Attributes:
        count: number of raw files.
        digest: hash of their names and sizes.
        skipped: names of damaged files that were left out.
    """

    count: int
    digest: str
    skipped: tuple[str, ...]


class Made(Protocol):
    """What `meta.json` of prepared data of any kind says of their making."""

    @property
    def source(self) -> str:
        """The plug-in that the data came from."""
        ...

    @property
    def made_by(self) -> str:
        """The DVC stage that made them."""
        ...


def write(folder: Path, listed: Listed, skipped: Sequence[str]) -> None:
    """Write the record of the raw files into prepared data."""
    record = Record(count=listed.count, digest=listed.digest, skipped=tuple(skipped))
    publish.write_json(folder / FILE, record.model_dump(mode="json"))


def read(folder: Path) -> Record:
    """Return the record of prepared data that have one.

    Raises:
        ValueError: it is damaged.
    """
    return Record.model_validate_json((folder / FILE).read_bytes())


def change(folder: Path, meta: Made, config: Block, most: int | None = None) -> str | None:
    """Say what has changed of the raw files since they were prepared.

    Args:
        folder: the prepared data.
        meta: what their `meta.json` holds.
        config: the settings of the source.
        most: more raw files than these are not looked at; None is no limit.

    Returns:
        a line; None where nothing has, or where the raw files are not on this machine.
    """
    path, listing = (
        getattr(config, "path", None),
        getattr(plugin.load("datasets", meta.source), "listed", None),
    )
    if path is None or listing is None or not (folder / FILE).is_file():
        return None

    command = advice.forced(f"dvc repro {meta.made_by}")
    again = f"Unless they are about to be prepared anyway, run: {command}, then: dvc repro"
    try:
        before = read(folder)
        if (most is not None and before.count > most) or not located(path).exists():
            return None
        now: Listed = listing(config)
    except DataError as error:
        return f"The raw files of {folder} have changed since they were prepared. {error}"
    except OSError as error:  # a disk that is closed to us stops nobody who does not need the raw files
        return f"The raw files of {folder} cannot be listed ({error.strerror}: {error.filename})."
    except ValueError:
        return f"{folder / FILE} is damaged. {advice.again(f'dvc repro {meta.made_by}')}"

    if now.digest == before.digest:
        return None
    return (
        f"{now.root} holds other raw files than {folder} was made of ({now.count:,}, and {before.count:,} then; by "
        f"their names and sizes). {again}"
    )
