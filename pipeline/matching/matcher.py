"""Matching the channels of a teacher to those of a student that was trained alone (KCD, Algorithm 1, lines 4 and 5).

The teacher's plain features come from its store, the student runs on the same plain images beside it, in evaluation
mode. One pass gives M; learned networks are trained after it, and passed over once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import seeding
from pipeline.artifacts.hashing import file_hash
from pipeline.compute import batch_size
from pipeline.compute.machine import Machine
from pipeline.data.images import stream_images, views
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.data.ranges import open_ranges
from pipeline.data.views import PlainSpace
from pipeline.errors import ParamsError, ShapeError
from pipeline.features import contents
from pipeline.features import manifest as manifests
from pipeline.features.contents import Contents
from pipeline.features.ranges import StoredRanges
from pipeline.features.store import StoredArray
from pipeline.matching.assignment import assign
from pipeline.matching.consistency import pooled
from pipeline.matching.learned import SubNet, trace
from pipeline.matching.matching import Matching, Origin
from pipeline.matching.rearrangement import PREFIX, Rearrangement
from pipeline.matching.sums import Sums
from pipeline.networks.network import Network, Shape, probe
from pipeline.networks.weights import load, state_digest
from pipeline.params.matchings import LEARNED, Match
from pipeline.params.size import area
from pipeline.progress import Advance

BATCH, GPU_BATCH = 250, 2048  # on a CPU, where sums must not change, and on a GPU at most
LEARNING_RATE = 1e-3
LEARNED_BATCH = 64
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Matcher:
    """One student against one teacher.

    Attributes:
        block: the matching's settings.
        seed: the student's.
        folder: the student that was trained alone.
        weights: the teacher's folder of weights.
        store: the teacher's store.
        prepared: the data.
        machine: where the student runs.
        made_by: the DVC stage that makes the matching.
        hint: the command that makes the store.
    """

    block: Match
    seed: int
    folder: Path
    weights: Path
    store: Path
    prepared: Prepared
    machine: Machine
    made_by: str
    hint: str

    def run(self, advance: Advance) -> tuple[Matching, Sums]:
        """Match, and return the matching with what was seen of both networks.

        Raises:
            ParamsError: the store lacks the feature or the checkpoint, or the recipe asks for what is not there.
            ShapeError: the two features cannot be paired.
            StaleArtifactError: the store was made from other weights or data.
        """
        recipe = self.block.recipe
        origin = self._origin()
        student = self.student(recipe.student_weights)
        width = self._check(student, origin)

        device, classes, shape = self.machine.device, origin.classes, self._shape
        sums = Sums.empty(origin.channels, width, shape, recipe.ranges, classes, recipe.measure, device)
        for a, b, label in self.features(student, "train"):
            sums.add(a, b, label, recipe.pictured)
            advance(len(label))

        if recipe.strategy in LEARNED:
            arrays = self._learn(student, origin, width, advance)
            matching = Matching(origin, arrays)
            learned = Rearrangement(matching).to(self.machine.device).eval()
            # M of a learned network is another one, so it is passed over as well.
            seen = Sums.empty(width, width, shape, 1, classes, "correlation", device)
            with torch.no_grad():
                for a, b, label in self.features(student, "train"):
                    seen.add(learned(a, label), b, label, recipe.pictured)
                    advance(len(label))
            return matching, sums.joined(seen)

        # A generator for each range: else `random` would draw the same permutation in all.
        permutations = [
            assign(matrix, recipe.strategy, seeding.generator(recipe.seed, self.seed, "match", number))
            for number, matrix in enumerate(sums.matrices())
        ]
        return Matching(origin, {"permutation": np.stack(permutations)}), sums

    def num_samples(self) -> int:
        """Return how many samples `run` reports to its progress."""
        passes = 1 if self.block.recipe.strategy not in LEARNED else 2 + self.block.recipe.epochs
        return passes * len(self.prepared.split("train"))

    def student(self, weights: str) -> Network:
        """Return the student with its "init" or "last" weights."""
        network = load(self.folder / "weights", weights)[0]
        return network.to(self.machine.device).eval()

    def features(self, student: Network, split: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give the two features of the plain images of a split, in their order, float32: (B, ...), (B, ...), labels."""
        recipe, array = self.block.recipe, self._array(split)
        labels = torch.from_numpy(np.array(self.prepared.split(split).labels)).to(self.machine.device)
        stored = StoredRanges(array, 0, self.machine.device)
        for start, stop, tap in self.passed(student, split, recipe.student_tap):
            yield stored.take(start, stop).float(), tap, labels[start:stop]

    def passed(self, student: Network, split: str, tap: str) -> Iterator[tuple[int, int, Tensor]]:
        """Give ranges [start, stop) of plain images in their order, and the student's tap of them, float32 (n, ...)."""
        data, meta, device = self.prepared.split(split), self.prepared.meta, self.machine.device
        size = batch_size.bounded(device, meta.channels * area(meta.size), BATCH, GPU_BATCH)
        normalize, images = Normalize(meta.mean, meta.std, device), open_ranges(data, PlainSpace(), device)
        for start in range(0, len(data), size):
            stop = min(start + size, len(data))
            with torch.no_grad(), self.machine.autocast():
                x = student.record(normalize(images.take(0, start, stop)), (tap,))[tap]
            yield start, stop, x.float()

    def record(
        self, student: Network, split: str, batches: Iterable[Tensor], tap: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give sample indices int64 (B,) as they were given, and the student's tap float32 (B, ...) of plain images."""
        meta, device = self.prepared.meta, self.machine.device
        normalize = Normalize(meta.mean, meta.std, device)
        images = stream_images(self.prepared.split(split), PlainSpace(), device)
        for index, image in views(images, 0, batches):
            with torch.no_grad(), self.machine.autocast():
                x = student.record(normalize(image), (tap,))[tap]
            yield index, x.float()

    @property
    def stored(self) -> Contents:
        """What the store holds."""
        return contents.read(self.store, self.hint)

    @property
    def _shape(self) -> Shape:
        return self.stored.features[self.block.recipe.teacher_feature].shape

    def _array(self, split: str) -> StoredArray:
        recipe = self.block.recipe
        return StoredArray.of(self.store, recipe.teacher_checkpoint, split, recipe.teacher_feature, self.hint)

    def _origin(self) -> Origin:
        recipe, meta = self.block.recipe, self.prepared.meta
        checkpoint, feature = recipe.teacher_checkpoint, recipe.teacher_feature

        # The features must be those of the very weights and images that the student is compared on.
        manifest = manifests.read(self.store, self.hint)
        contents.require(self.store, manifest, data=meta.fingerprint, mean=meta.mean, std=meta.std)
        contents.check_stored(self.store, manifest, feature, [checkpoint], 0)
        teacher = file_hash(self.weights / f"{checkpoint}.safetensors")
        contents.require(self.store, manifest, weights={checkpoint: teacher})

        # Of theta0 too: a run refuses a matching whose seed has come to start elsewhere.
        theta0, spec = load(self.folder / "weights", "init")
        return Origin(
            made_by=self.made_by,
            teacher=self.block.teacher,
            student=self.block.student,
            seed=self.seed,
            recipe=recipe.model_copy(update={"pictured": 0}),  # which changes no student
            theta0=state_digest(theta0.state_dict()),
            student_weights=file_hash(self.folder / "weights" / f"{recipe.student_weights}.safetensors"),
            teacher_weights=teacher,
            digest=manifest.features[feature].digest[f"{checkpoint}/train"],
            data=meta.fingerprint["train"],
            classes=spec.classes,
            channels=manifest.features[feature].shape[0],
        )

    def _check(self, student: Network, origin: Origin) -> int:
        """Check that the features can be paired, and return the student's number of channels."""
        recipe, meta = self.block.recipe, self.prepared.meta
        where = f"matchings.{self.block.matching}"
        shapes = probe(student, meta.size, meta.channels)

        if recipe.student_tap not in shapes:
            raise ParamsError(
                f"{where} reads student tap '{recipe.student_tap}'. '{self.block.student}' has {', '.join(shapes)}. "
                "Change student_tap in params.yaml."
            )

        ours, theirs = shapes[recipe.student_tap], self._shape
        if len(theirs) not in (1, 3):
            raise ShapeError(
                f"{where} matches channels, and teacher feature '{recipe.teacher_feature}' has shape {theirs}. Choose "
                "a map or a vector in params.yaml."
            )

        if len(ours) == len(theirs) == 3 and ours[1:] != theirs[1:]:
            raise ShapeError(
                f"{where} pairs student tap '{recipe.student_tap}' of {ours[1]}x{ours[2]} with teacher feature "
                f"'{recipe.teacher_feature}' of {theirs[1]}x{theirs[2]}; maps must have one size to be mimicked. "
                "Choose other taps in params.yaml, or ':pooled' for the feature, then: dvc repro"
            )

        # `pictured` counts from 0, so one more than it is compared.
        for name, value in (("ranges", recipe.ranges), ("pictured", recipe.pictured + 1)):
            if value > origin.classes:
                raise ParamsError(
                    f"{where}.{name} is {getattr(recipe, name)}, and '{self.block.dataset}' has {origin.classes} "
                    "classes. Lower it in params.yaml."
                )
        return ours[0]

    def _learn(self, student: Network, origin: Origin, width: int, advance: Advance) -> Arrays:
        """Train a learned network on the frozen two: its loss is minus the trace of the batch's M."""
        recipe, data, device = self.block.recipe, self.prepared.split("train"), self.machine.device
        with seeding.scope(recipe.seed, self.seed, "subnet"):
            network = SubNet(recipe.strategy, origin.channels, width).to(device).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        array = self._array("train")

        for epoch in range(recipe.epochs):
            order = torch.randperm(
                len(data), generator=seeding.generator(recipe.seed, self.seed, "subnet", epoch)
            )
            # One sample has no coefficient.
            batches = [index for index in torch.split(order, LEARNED_BATCH) if len(index) > 1]
            for index, b in self.record(student, "train", batches, recipe.student_tap):
                a = torch.from_numpy(array.read(0, index.numpy())).to(device).float()
                loss = -trace(pooled(network(a)), pooled(b))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimizer.step()
                advance(len(index))

        return {f"{PREFIX}{name}": x.detach().cpu().numpy() for name, x in network.state_dict().items()}
