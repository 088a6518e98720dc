"""The comparison of a whole store with the hashes that it was written with.

Apart from the gate, which also judges what rounding explains: a copy of a teacher is verified and not judged, so that
no edit of the gate trains it again.
"""

from __future__ import annotations

from pathlib import Path

from pipeline import progress
from pipeline.features.manifest import Manifest
from pipeline.features.store import StoredArray, array_path


def verify(path: Path, manifest: Manifest) -> None:
    """Compare every shard of a store with the hash that it was written with.

    Args:
        path: the store.
        manifest: what the store says of itself.

    Raises:
        DamagedArtifactError: a shard or an array is not what the manifest says.
    """
    arrays = [StoredArray(array_path(path, "view", "", "train"), manifest.view_digest)]
    for name, feature in manifest.features.items():
        for part, digest in feature.digest.items():
            checkpoint, _, split = part.partition("/")
            arrays.append(StoredArray(array_path(path, checkpoint, split, name), digest))

    shards = sum(array.layout.num_shards for array in arrays)
    with progress.bar(f"shards of {path}", shards) as advance:
        for array in arrays:
            array.verify(advance)
