"""The manifest of a feature store: what it was made from, and what it holds.

It is the root group's attributes, so it can be read without zarr, and its digests stand for the arrays'
content. Whoever opens a store compares it with what it is to be used with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.artifacts.publish import read_json
from pipeline.compute.precision import Precision
from pipeline.errors import DamagedArtifactError, MissingArtifactError, ParamsError, StaleArtifactError
from pipeline.networks.spec import NetworkSpec
from pipeline.params.base import Block, validate
from pipeline.params.views import ViewParams

SCHEMA = 1


class StoredFeature(Block):
    """One feature in the store.

    Attributes:
        slots: augmented slots of the training split, beside the plain one.
        dtype: of the array.
        shape: of one sample.
        digest: hash of the content, by "checkpoint/split".
    """

    slots: int
    dtype: str
    shape: tuple[int, ...]
    digest: dict[str, str] = {}


class Manifest(Block):
    """Attributes of a store's root group.

    Attributes:
        schema_version: version of this layout.
        teacher: its key in params.yaml.
        network: what the teacher is.
        weights: hash of the weights file, by checkpoint.
        data: fingerprint of the data, by split.
        samples: number of samples, by split.
        mean: normalisation of the images that the teacher saw.
        std: as `mean`.
        views: the view space of the augmented slots.
        precision: that the teacher was run in.
        features: what is stored, by feature name.
        tables: hash of the fitted tables that features are encoded with, by table name.
        versions: of the libraries that made it; they are not compared.
    """

    schema_version: int = SCHEMA
    teacher: str
    network: NetworkSpec
    weights: dict[str, str]
    data: dict[str, str]
    samples: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: ViewParams
    precision: Precision
    features: dict[str, StoredFeature]
    tables: dict[str, str] = {}
    versions: dict[str, str] = Field(default_factory=dict)


def read(store: Path) -> Manifest:
    """Read the manifest of the store at `store`.

    Raises:
        MissingArtifactError: there is no store.
        StaleArtifactError: it was written in another layout.
        DamagedArtifactError: its attributes are not a manifest.
    """
    if not (store / "zarr.json").exists():
        raise MissingArtifactError(f"{store} holds no store. Make it with: {command(store)}")
    content = read_json(store / "zarr.json", command(store))
    attributes = content.get("attributes", {}) if isinstance(content, dict) else {}
    found = attributes.get("schema_version")
    if found != SCHEMA:
        raise StaleArtifactError(
            f"{store} has schema version {found}, expected {SCHEMA}. Make it again with: {command(store)}"
        )
    try:
        return validate(Manifest, attributes, "")
    except ParamsError as error:
        reason = str(error).removeprefix("params.yaml: ")
        raise DamagedArtifactError(
            f"{store}/zarr.json is not a manifest: {reason} Make it again with: {command(store)}"
        ) from None


def require(store: Path, manifest: Manifest, **expected: Any) -> None:
    """Refuse a store that was made from something else.

    Args:
        store: where it is, for the message.
        manifest: what it says of itself.
        expected: values by field, for instance `weights={"last": "3f..."}`; of a mapping, the keys given.

    Raises:
        StaleArtifactError: the first field that differs, and the command that rebuilds the store.
    """
    for field, value in expected.items():
        found = getattr(manifest, field)
        if isinstance(value, dict):  # the keys that differ are all that the message shows
            found = {key: found.get(key) for key in value if found.get(key) != value[key]}
            value = {key: value[key] for key in found}
        if found != value:
            raise StaleArtifactError(
                f"{store} was made with other {field}: found {_short(found)}, expected {_short(value)}. "
                f"Make it again with: {command(store)}"
            )


def require_source(table: Path, origin: Mapping[str, Any], store: Path, manifest: Manifest) -> None:
    """Refuse a fitted table that was not fitted to what the store holds now.

    Args:
        table: where it is, for the message.
        origin: what it says of itself, as `fit_table` wrote it.
        store: the teacher's store.
        manifest: what the store says of itself.

    Raises:
        StaleArtifactError: it is of another teacher, or of other content of its feature.
    """
    if origin.get("teacher") != manifest.teacher:
        raise StaleArtifactError(
            f"{table} was fitted to teacher '{origin.get('teacher')}', expected '{manifest.teacher}'. "
            "Make it again with: dvc repro"
        )
    feature = origin.get("table", {}).get("config", {}).get("feature")
    held = manifest.features.get(feature)
    if held is None or held.digest.get("last/train") != origin.get("digest"):
        raise StaleArtifactError(
            f"{table} was fitted to another '{feature}' than {store} holds. Make it again with: dvc repro"
        )


def command(store: Path) -> str:
    """Return the command that rebuilds the store at `store`."""
    return f"dvc repro {stage(store)}"


def stage(store: Path) -> str:
    """Return the name of the stage that makes the store at `store`.

    Codes lie in a folder of their teacher, the store of a self-taught copy in the copy's own.
    """
    if store.parent.parent.parent.name == "self_taught":
        return f"train_self_taught@{store.parent.name}"
    made_by = "encode_views" if store.parent.parent.name == "codes" else "extract_features"
    return f"{made_by}@{store.stem}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
