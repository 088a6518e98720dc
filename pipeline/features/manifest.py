"""The manifest of a feature store: what it was made from, and what it holds.

It is the root group's attributes, so it can be read without zarr, and its digests stand for the arrays' content.
What a reader of features needs of it, and the checks, are in `pipeline.features.contents`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Self

from pydantic import Field

from pipeline.compute.precision import Precision
from pipeline.data.layout import Meta
from pipeline.features import contents
from pipeline.features.contents import Contents, StoredFeature
from pipeline.networks.spec import NetworkSpec
from pipeline.params.views import ViewParams

LIBRARIES = ("torch", "zarr", "tensorstore")  # those that compute and write features


class Manifest(Contents):
    """Attributes of a store's root group.

    Attributes:
        network: what the teacher is.
        samples: number of samples, by split.
        mean: channel means by which the teacher's images were normalized.
        std: channel deviations, as `mean`.
        views: the view space of the augmented slots.
        precision: what the teacher was run in.
        tables: hash of the fitted tables that features are encoded with, by table name.
        versions: the libraries that made it; they are not compared.
        view_digest: hash of `view/train`, which names the view of each slot.
    """

    network: NetworkSpec
    samples: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: ViewParams
    precision: Precision
    tables: dict[str, str] = {}
    versions: dict[str, str] = Field(default_factory=dict)
    view_digest: str = ""

    @classmethod
    def of(
        cls,
        meta: Meta,
        views: ViewParams,
        network: NetworkSpec,
        weights: Mapping[str, str],
        precision: Precision,
        features: Mapping[str, StoredFeature],
        *,
        teacher: str,
        made_by: str,
        splits: Iterable[str] | None = None,
        tables: Mapping[str, str] | None = None,
    ) -> Self:
        """Return the manifest of a store that is to be made; its digests are empty.

        Args:
            meta: the prepared data's.
            views: the view space of the augmented slots.
            network: what the teacher is.
            weights: hash of its weights file, by checkpoint.
            precision: what it is run in.
            features: what is to be stored, by feature name.
            teacher: key of `teachers`.
            made_by: the DVC stage that makes it.
            splits: those that are stored; None is all of them.
            tables: hash of the fitted tables that features are encoded with, by table name.
        """
        stored = list(meta.samples if splits is None else splits)
        return cls(
            made_by=made_by,
            teacher=teacher,
            network=network,
            weights=dict(weights),
            data=meta.fingerprint,
            samples={split: meta.samples[split] for split in stored},
            mean=meta.mean,
            std=meta.std,
            views=views,
            precision=precision,
            features=dict(features),
            tables=dict(tables or {}),
            versions={library: version(library) for library in LIBRARIES},
        )


def read(store: Path, hint: str) -> Manifest:
    """Read the manifest of the store at `store`.

    Args:
        store: its folder.
        hint: the command that makes it, for the error where it cannot say so itself.

    Raises:
        MissingArtifactError: there is no store.
        StaleArtifactError: it was written in another layout.
        DamagedArtifactError: its attributes are not a manifest.
    """
    return contents.read_all(Manifest, store, hint)
