"""What a run will make and cost, before it runs: bytes, files, forward passes of the teacher, break-even.

Store sizes come from the very layout that the store will have, so they are what the disk will hold (without
compression; with it they are an upper bound).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.dataset import Meta
from pipeline.features.extract import stored_features
from pipeline.features.store import Layout
from pipeline.features.teacher import Teacher
from pipeline.machine import machine
from pipeline.network import Network, NetworkSpec, build
from pipeline.params.project import Sections
from pipeline.params.student import StudentParams
from pipeline.params.teacher import TeacherParams
from pipeline.views import num_slots, view_space

CHECKSUM_BYTES = 4
INDEX_BYTES = 16  # offset and length of a chunk in its shard
METADATA_BYTES = 2000  # of one zarr.json


@dataclass(frozen=True)
class Item:
    """Artifacts of one kind that a run will make.

    Attributes:
        kind: for instance "store" or "students".
        name: of the teacher, student or run.
        number: how many of them.
        bytes: of all of them.
        files: of all of them.
        forwards: samples that a teacher is run on to make them.
    """

    kind: str
    name: str
    number: int
    bytes: int
    files: int
    forwards: int = 0


@dataclass(frozen=True)
class BreakEven:
    """After how many students a teacher's cache has paid for itself.

    Attributes:
        teacher: its name.
        cached: samples that the teacher is run on to fill the store.
        online: samples that it would be run on for one student, on average over those that are planned.
        students: that are planned to read the store.
    """

    teacher: str
    cached: int
    online: int
    students: int

    @property
    def after(self) -> int | None:
        """Number of students from which on the cache is the cheaper way; None when no student is planned."""
        return math.ceil(self.cached / self.online) if self.online else None


def plan(params: Sections, metas: Mapping[str, Meta]) -> tuple[list[Item], list[BreakEven]]:
    """Plan all of params.yaml.

    Args:
        params: checked.
        metas: of the prepared data, by data set.

    Raises:
        UnknownNameError: a tap, encoding or network that does not exist.
    """
    where = machine("cpu")
    items, paid = [], []
    for name, teacher in params.teachers.items():
        meta = metas[teacher.dataset]
        network = build(_spec(teacher, meta), 0)
        weights = 3 + len(teacher.anchors)  # init, last, best
        items.append(Item("teacher", name, 1, weights * _weight_bytes(network), weights + 3))
        store = _store(params, name, teacher, meta, Teacher(network, where))
        items.append(store)
        paid.append(_break_even(params, name, store.forwards, metas))
    for name, student in params.students.items():
        size = 3 * _weight_bytes(build(_spec(student, metas[student.dataset]), 0))
        number = len(params.seeds)
        items.append(Item("student alone", name, number, number * size, 6 * number))
    for item in params.distill:
        pair, _, run = item.partition("/")
        student = params.students[params.pairs[pair].student]
        size = 3 * _weight_bytes(build(_spec(student, metas[student.dataset]), 0))
        number = len(params.seeds)
        online = params.runs[run].source == "online"
        forwards = student.recipe.epochs * metas[student.dataset].samples["train"] * number if online else 0
        items.append(Item("students", item, number, number * size, 7 * number, forwards))
    return items, paid


def store_bytes(layout: Layout) -> int:
    """Return the size of an array on disk without compression: chunks, checksums, indices, metadata."""
    slots, samples = layout.shape[:2]
    chunks = slots * math.ceil(samples / layout.chunk)
    sample_bytes = math.prod(layout.shape[2:]) * np.dtype(layout.dtype).itemsize
    shards = store_files(layout) - 1
    index = shards * (layout.shard[0] * layout.shard[1] // layout.chunk * INDEX_BYTES + CHECKSUM_BYTES)
    return chunks * (layout.chunk * sample_bytes + CHECKSUM_BYTES) + index + METADATA_BYTES


def store_files(layout: Layout) -> int:
    """Return the number of files of an array: its shards and its metadata."""
    slots, samples = layout.shape[:2]
    return math.ceil(slots / layout.shard[0]) * math.ceil(samples / layout.shard[1]) + 1


def _store(params: Sections, name: str, teacher: TeacherParams, meta: Meta, live: Teacher) -> Item:
    space = view_space(params.datasets[teacher.dataset].views)
    where = f"teachers.{name}.extract.features"
    requested = {
        feature: (num_slots(space, stored.slots, f"{where}.{feature}.slots"), stored.dtype)
        for feature, stored in teacher.extract.features.items()
    }
    most = max(slots for slots, _ in requested.values())
    layouts = [Layout.plan((1 + most, meta.samples["train"]), "int32")]  # the view ids
    for feature in stored_features(requested, live, meta.channels, meta.size).values():
        for split, samples in meta.samples.items():
            slots = 1 + (feature.slots if split == "train" else 0)
            layout = Layout.plan((slots, samples, *feature.shape), feature.dtype)
            layouts += [layout] * len(teacher.extract.checkpoints)
    forwards = (1 + most) * meta.samples["train"] + sum(
        samples for split, samples in meta.samples.items() if split != "train"
    )
    return Item(
        "store",
        name,
        1,
        sum(map(store_bytes, layouts)),
        sum(map(store_files, layouts)) + 2 + len(meta.samples) * len(teacher.extract.checkpoints),
        forwards * len(teacher.extract.checkpoints),
    )


def _break_even(params: Sections, name: str, cached: int, metas: Mapping[str, Meta]) -> BreakEven:
    online = []
    for item in params.distill:
        pair, _, run = item.partition("/")
        if params.pairs[pair].teacher == name and params.runs[run].source == "cached":
            student = params.students[params.pairs[pair].student]
            online.append(student.recipe.epochs * metas[student.dataset].samples["train"])
    mean = sum(online) // len(online) if online else 0
    return BreakEven(name, cached, mean, len(online) * len(params.seeds))


def _spec(network: TeacherParams | StudentParams, meta: Meta) -> NetworkSpec:
    return NetworkSpec(
        family=network.family,
        network=network.network,
        size=meta.size,
        channels=meta.channels,
        classes=len(meta.classes),
    )


def _weight_bytes(network: Network) -> int:
    return sum(x.numel() * x.element_size() for x in network.state_dict().values())
