"""Codes of a teacher's views that need a fitted table: a store of their own, made after the fit.

So a new K for K-means computes no logits again. The teacher runs over every view once more: its maps are not
stored for all views, which is why their codes are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from pipeline import plugin, progress
from pipeline.artifacts import closure, hashing, publish
from pipeline.compute.machine import Machine
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.data.ranges import open_ranges
from pipeline.data.views import view_space
from pipeline.errors import DamagedArtifactError, MissingArtifactError, ParamsError, StaleArtifactError
from pipeline.features import contents
from pipeline.features import manifest as manifests
from pipeline.features.check import Live, compare
from pipeline.features.difference import worst
from pipeline.features.encoding import Feature
from pipeline.features.extract import Extraction, fill, stored_features
from pipeline.features.manifest import Manifest
from pipeline.features.teacher import Teacher, on_device
from pipeline.features.verification import verify
from pipeline.networks.weights import load
from pipeline.params.tables import EncodeBlock

ROWS = 256  # recomputed after the run


def whole_mark(store: Path) -> Path:
    """Return the file beside a store of codes that says that it is whole: the identity of what was made."""
    return store.with_suffix(".whole")


class Encoder:
    """Encodes the training split's views.

    Args:
        block: what is encoded with the table.
        code: the code's full name, one of the block's.
        prepared: the data.
        weights: the teacher's folder of weights.
        store: the teacher's store; the codes must be of the same teacher, data and views.
        table: arrays of the fitted table.
        table_hash: hash of its file.
        fitted_to: the feature that the table was fitted to.
        machine: where the teacher runs.
        batch_size: samples of one forward pass; None is what the device and the data call for.
        made_by: the DVC stage that makes the codes.
        hint: the command that makes the teacher's store.

    Raises:
        ParamsError: the table was fitted to another feature than the one that is to be encoded.
        StaleArtifactError: the store was made from other data or another teacher.
    """

    def __init__(
        self,
        block: EncodeBlock,
        code: str,
        prepared: Prepared,
        weights: Path,
        store: Path,
        table: Mapping[str, NDArray[Any]],
        table_hash: str,
        fitted_to: str,
        machine: Machine,
        batch_size: int | None,
        *,
        made_by: str,
        hint: str,
    ) -> None:
        feature = Feature.parse(code)
        self.code, self.encoding = code, feature.encodings[-1]
        self.mapped = ":".join((feature.tap, *feature.encodings[:-1]))
        if self.mapped != fitted_to:
            raise ParamsError(
                f"Code '{code}' encodes '{self.mapped}', and table '{block.table}' was fitted to "
                f"'{fitted_to}'. Change one of them in params.yaml."
            )

        stored, meta = manifests.read(store, hint), prepared.meta
        expected = {"last": hashing.file_hash(weights / "last.safetensors")}
        contents.require(store, stored, data=meta.fingerprint, mean=meta.mean, std=meta.std, weights=expected)

        network, spec = load(weights)
        machine.place(network)
        self.title = f"codes {code} of {stored.teacher}"
        self.table = on_device({block.table: table}, machine)
        self.teacher = Teacher(network, machine, self.table)

        self.split, self.space = prepared.split("train"), view_space(block.views)
        self.normalize = Normalize(meta.mean, meta.std, machine.device)

        requested = {code: (block.codes[code], "float16")}
        manifest = Manifest.of(
            meta,
            block.views,
            spec,
            expected,
            machine.precision,
            stored_features(requested, self.teacher, meta.channels, meta.size),
            teacher=stored.teacher,
            made_by=made_by,
            splits=("train",),
            tables={block.table: table_hash},
        )

        self.extraction = Extraction(
            manifest,
            {"last": self.teacher},
            {"train": self.split},
            self.space,
            self.normalize,
            batch_size=batch_size,
            compression=block.compression,
        )

    def run(self, scratch: Path) -> Manifest:
        """Fill the store in `scratch`, or what is missing of it, check it, and return its manifest.

        A mark beside it, `whole_mark`, says that this has been done: a run of several codes that was interrupted does
        not make the first ones again. It is for the caller to remove when all are there.

        Raises:
            StaleArtifactError: rows that are encoded again differ.
        """
        manifest = self.extraction.manifest
        # What computes the codes besides its inputs: an edit of it drops a half-made store.
        code = closure.digest(
            [
                "pipeline.features.codes",
                plugin.module("networks", manifest.network.family),
                plugin.module("encodings", self.encoding),
            ]
        )
        identity = hashing.identity(manifest, self.extraction.compression, code)
        mark = whole_mark(scratch)
        if mark.exists() and mark.read_bytes() == identity.encode():
            try:
                made = manifests.read(scratch, manifest.hint)
                verify(scratch, made)
                return made
            except (DamagedArtifactError, MissingArtifactError, StaleArtifactError):
                progress.say(f"{self.title}: what the interrupted run has left is damaged; it is made again.")
                publish.remove(scratch)

        # Until the end of the check it is not whole.
        publish.remove(mark)
        filled = fill(scratch, self.extraction, identity, self.title)
        verify(scratch, filled)

        # What `check_features` does for a teacher's store is done here at once: it is one feature, and few rows.
        machine, splits = self.teacher.machine, {"train": self.split}
        live = Live.of(self.teacher.network, machine.precision, machine.device, self.normalize, self.table)
        largest = worst(compare(scratch, filled, live, "last", splits, self.space, rows=ROWS))
        if largest.share > 1:
            raise StaleArtifactError(f"{largest}. Run the same command again.")
        # Only now: the mark says that nothing is left to do.
        mark.write_text(identity)
        return filled

    def lost(self) -> float:
        """Return the mean KL(code || p_T) of all plain training pixels; 0 where the code loses nothing."""
        measure = getattr(plugin.load("encodings", self.encoding), "lost", None)
        if measure is None:
            return 0.0

        (table,), pixels = self.table.values(), 0
        device, size = self.teacher.machine.device, self.extraction.samples
        total = torch.zeros(
            (), dtype=torch.float64, device=device
        )  # read once: no batch waits for the one before
        images = open_ranges(self.split, self.space, device)
        labels = torch.from_numpy(self.split.labels).to(device)
        with progress.bar(f"{self.title}: what is lost", len(self.split)) as advance:
            for start in range(0, len(self.split), size):
                stop = min(start + size, len(self.split))
                image, label = self.normalize(images.take(0, start, stop)), labels[start:stop]
                kl = measure(self.teacher.features(image, [self.mapped], label)[self.mapped], table)
                total, pixels = total + kl.double().sum(), pixels + kl.numel()
                advance(stop - start)
        return float(total) / pixels
