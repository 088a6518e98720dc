"""What a store says that it holds, as far as a reader of its features must know it.

It is a part of the manifest (`pipeline.features.manifest`), in a module of its own: a fit reads features and nothing
else, so no edit of networks, machines or views refits a table. Whoever opens a store compares this with what the
store is to be used with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SerializerFunctionWrapHandler, model_serializer

from pipeline.artifacts import advice
from pipeline.artifacts.hashing import content_hash
from pipeline.artifacts.publish import read_json
from pipeline.errors import DamagedArtifactError, MissingArtifactError, ParamsError, StaleArtifactError
from pipeline.params.base import Block, validate
from pipeline.params.top import Top

SCHEMA = 3
DIGEST = "digest"  # attribute of the root group: the hash of all the others


class StoredTop(Top):
    """The largest logits, of how many.

    Attributes:
        classes: number of all logits.
    """

    classes: int


class StoredFeature(Block):
    """One feature in the store.

    Attributes:
        slots: augmented slots of the training split, beside the plain one.
        dtype: the array's.
        shape: shape of one sample in the array.
        digest: hash of the content, by "checkpoint/split".
        top: what is kept of logits, where it is the largest alone; the array then holds codes.
    """

    slots: int
    dtype: str
    shape: tuple[int, ...]
    digest: dict[str, str] = {}
    top: StoredTop | None = None

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Unused it is not there, so that all other stores are as they were, to the last bit.
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if key != "top" or value is not None}

    @property
    def read_shape(self) -> tuple[int, ...]:
        """Shape of one sample as it is read."""
        return self.shape if self.top is None else (self.top.classes,)


class Contents(Block):
    """What a store holds.

    Attributes:
        schema_version: version of this layout.
        made_by: the DVC stage that made it, for instance "extract_features@T".
        teacher: key of `teachers` in params.yaml.
        weights: hash of the teacher's weights file, by checkpoint.
        data: fingerprint of the data, by split.
        features: what is stored, by feature name.
    """

    schema_version: int = SCHEMA
    made_by: str
    teacher: str
    weights: dict[str, str]
    data: dict[str, str]
    features: dict[str, StoredFeature]

    @property
    def hint(self) -> str:
        """The command that makes the store again."""
        return f"dvc repro {self.made_by}"


C = TypeVar("C", bound=Contents)


def read(store: Path, hint: str) -> Contents:
    """Read what the store at `store` holds, and nothing else of its manifest.

    Args:
        store: its folder.
        hint: the command that makes it, for the error where it cannot say so itself.

    Raises:
        MissingArtifactError: there is no store.
        StaleArtifactError: it was written in another layout.
        DamagedArtifactError: its attributes are not a manifest.
    """
    attributes = _attributes(store, hint)
    # The model refuses keys that it does not know, and a manifest has more than these.
    known = {key: attributes[key] for key in Contents.model_fields if key in attributes}
    return _parsed(Contents, known, store, hint)


def read_all(model: type[C], store: Path, hint: str) -> C:
    """Read all that a store says of itself, which must have the form of `model`; see `read`."""
    return _parsed(model, _attributes(store, hint), store, hint)


def store_of(path: Path) -> tuple[Path, str] | None:
    """Return the store that an array at `path` belongs to, and the stage that made it.

    None where no folder above it says so: a store that is not finished has no manifest.
    """
    for folder in path.parents:
        try:
            made_by = json.loads((folder / "zarr.json").read_text())["attributes"]["made_by"]
        except (OSError, ValueError, LookupError, TypeError):
            continue  # a group within the store, or a file that is as damaged as the array
        return folder, str(made_by)
    return None


def code_store(folder: Path, code: str) -> Path:
    """Return the store of a code in the folder of its table: "stage2:subclass@subclasses" is subclass.zarr."""
    return folder / f"{code.partition('@')[0].rpartition(':')[2]}.zarr"


def require(store: Path, contents: Contents, **expected: Any) -> None:
    """Refuse a store that was made from something else.

    Args:
        store: where it is, for the message.
        contents: what it says of itself.
        expected: values by field, for instance `weights={"last": "3f..."}`; of a mapping, the keys given.

    Raises:
        StaleArtifactError: the first field that differs, and the command that makes the store again.
    """
    for field, value in expected.items():
        own = getattr(contents, field)
        if isinstance(value, dict):  # the keys that differ are all that the message shows
            own = {key: own.get(key) for key in value if own.get(key) != value[key]}
            value = {key: value[key] for key in own}
        if own != value:
            raise StaleArtifactError(
                f"{store} was made with other {field}: found {_short(own)}, expected {_short(value)}. "
                f"{advice.again(contents.hint)}"
            )


def require_source(table: Path, origin: Mapping[str, Any], store: Path, contents: Contents) -> None:
    """Refuse a fitted table that was not fitted to what the store holds now.

    Args:
        table: where it is, for the message.
        origin: what it says of itself, as `fit_table` wrote it.
        store: the teacher's store.
        contents: what the store says of itself.

    Raises:
        StaleArtifactError: it is of another teacher, or of other content of its feature.
    """
    hint = f"dvc repro {origin.get('made_by', '')}".strip()
    if origin.get("teacher") != contents.teacher:
        raise StaleArtifactError(
            f"{table} was fitted to teacher '{origin.get('teacher')}', expected '{contents.teacher}'. "
            f"{advice.again(hint)}"
        )
    feature = origin.get("feature", "")
    # Tables are fitted to the training split of the last checkpoint.
    stored = contents.features.get(feature)
    if stored is None or stored.digest.get("last/train") != origin.get("digest"):
        raise StaleArtifactError(
            f"{table} was fitted to another '{feature}' than {store} holds. {advice.again(hint)}"
        )


def check_stored(store: Path, contents: Contents, name: str, checkpoints: Iterable[str], slots: int) -> None:
    """Check that the store holds a feature, at these checkpoints, with so many augmented slots.

    Args:
        store: where it is, for the message.
        contents: what it says of itself.
        name: of the feature.
        checkpoints: those of the teacher that are read.
        slots: number of augmented slots that are read.

    Raises:
        ParamsError: it does not; the message names the line of params.yaml and the next command.
    """
    feature = contents.features.get(name)
    teacher, then = f"teachers.{contents.teacher}", f"then: {contents.hint}"
    coded = "@" in name  # in a store of its own, of the last checkpoint
    online = "set 'source: online' of the run"

    if feature is None:
        raise ParamsError(
            f"{store} does not hold teacher feature '{name}'; it holds {', '.join(sorted(contents.features))}. "
            f"Add it to {teacher}.features in params.yaml, {then}"
        )

    if feature.slots < slots:
        cure = "Lower 'slots' of the run" if coded else f"Raise {teacher}.features.{name}.slots"
        raise ParamsError(
            f"{store} holds {feature.slots} view slots of '{name}', expected {slots}. {cure}, or {online}, in "
            f"params.yaml, {'then: dvc repro' if coded else then}"
        )

    for checkpoint in checkpoints:
        if checkpoint not in contents.weights:
            cure = f"Add it to {teacher}.checkpoints in params.yaml, {then}"
            raise ParamsError(
                f"{store} does not hold checkpoint '{checkpoint}'; it holds {', '.join(sorted(contents.weights))}. "
                + (f"{online.capitalize()} in params.yaml, then: dvc repro" if coded else cure)
            )


def _attributes(store: Path, hint: str) -> dict[str, Any]:
    """Return the attributes of a store's root group, which are of this layout."""
    path = store / "zarr.json"
    try:
        content = read_json(path, hint)
    except MissingArtifactError:
        raise MissingArtifactError(f"{store} holds no store. Make it with: {hint}") from None

    # A file that is no manifest has no version: it reads as another layout.
    attributes = content.get("attributes") if isinstance(content, dict) else None
    attributes = dict(attributes) if isinstance(attributes, dict) else {}
    version = attributes.get("schema_version")
    if version != SCHEMA:
        raise StaleArtifactError(
            f"{store} has schema version {version}, expected {SCHEMA}. {advice.again(hint)}"
        )

    # A digit that has changed in a slot, a mean or a hash would read as another store's.
    if attributes.pop(DIGEST, None) != content_hash(attributes):
        raise DamagedArtifactError(
            f"{path} is damaged: its attributes do not have the hash that they were written with. {advice.again(hint)}"
        )
    return attributes


def _parsed(model: type[C], attributes: Mapping[str, Any], store: Path, hint: str) -> C:
    try:
        return validate(model, attributes, "", f"{store}/zarr.json")
    except ParamsError as error:
        raise DamagedArtifactError(f"{error} {advice.again(hint)}") from None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
