"""What a run will make and cost, before it runs: bytes, files, forward passes of the teachers, break-even.

Store sizes come from the very layout that the store will have, so they are what the disk will hold (without
compression; with it they are an upper bound). A forward pass is one sample through a teacher; those of its own
training and evaluation, and the few that `check_features` recomputes, are needed either way and not counted.
Weights of students are without the layers that a method adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from pipeline import plugin
from pipeline.compute.machine import machine
from pipeline.data.layout import Meta
from pipeline.data.views import view_space
from pipeline.features.contents import StoredFeature
from pipeline.features.encoding import tables_of
from pipeline.features.extract import stored_features
from pipeline.features.layout import Layout
from pipeline.features.teacher import Teacher
from pipeline.networks.network import Network, build
from pipeline.networks.spec import NetworkSpec
from pipeline.params.pairs import RunBlock
from pipeline.params.recipe import cut
from pipeline.params.tables import EncodeBlock
from pipeline.params.teachers import TeacherParams
from pipeline.runs import blocks, detection, taught
from pipeline.runs.composition import Composition
from pipeline.runs.project import Kind, Project

CHECKSUM_BYTES = 4
INDEX_BYTES = 16  # offset and length of a chunk in its shard
ARRAY_BYTES = 496  # zarr.json of an array, without the hashes of its shards
HASH_BYTES = 35  # of a shard, in there
GROUP_BYTES = 66  # zarr.json of a group
MANIFEST_BYTES = 1000  # zarr.json of a store, without what it says of its features
FEATURE_BYTES = 130  # of one feature in it
DIGEST_BYTES = 60  # of one feature's hash in it


@dataclass(frozen=True)
class Item:
    """Artifacts of one kind: one for each of their stages.

    Attributes:
        kind: for instance "store".
        name: of the teacher, the student, or pair and run.
        stages: DVC's names of the stages that make them.
        bytes: of one.
        files: of one.
        forwards: samples that a teacher is run on to make one.
    """

    kind: str
    name: str
    stages: tuple[str, ...]
    bytes: int
    files: int
    forwards: int = 0


@dataclass(frozen=True)
class Cost:
    """What a feature costs in the store, and what it costs online.

    Attributes:
        teacher: its name.
        feature: its name.
        slots: augmented slots in the store; None when it is not stored.
        view_bytes: of a sample and view.
        bytes: of all that is stored of it.
        all_bytes: of the same with every view stored; None for an unbounded view space.
        online: forward passes for one student, on average over the students that read it; None when none does.
        students: that read it, cached or online.
    """

    teacher: str
    feature: str
    slots: int | None
    view_bytes: int
    bytes: int
    all_bytes: int | None
    online: int | None
    students: int


@dataclass(frozen=True)
class BreakEven:
    """After how many students a teacher's cache has paid for itself.

    Attributes:
        teacher: its name.
        cached: forward passes that fill the store.
        online: forward passes for one student without it, on average over the students that read the store.
        students: that read it.
        after: number of students from which on the cache is the cheaper way; None when none reads it.
    """

    teacher: str
    cached: int
    online: int
    students: int
    after: int | None


@dataclass(frozen=True)
class Plan:
    """All of params.yaml, whether it is made or not.

    Attributes:
        items: artifacts.
        costs: of the teachers' features.
        break_even: of the teachers' stores.
    """

    items: tuple[Item, ...]
    costs: tuple[Cost, ...]
    break_even: tuple[BreakEven, ...]


@dataclass(frozen=True)
class _Reader:
    """A run of a pair, as a reader of its teacher's features."""

    name: str
    teacher: str
    student: str
    online: bool
    features: tuple[str, ...]
    forwards: int  # of a student that learns online


def plan(project: Project, metas: Mapping[str, Meta]) -> Plan:
    """Plan all of params.yaml.

    Args:
        project: params.yaml, checked. Its detectors are planned by `detector_planning.py`.
        metas: what the prepared data say of themselves, by data set.

    Raises:
        ParamsError: more slots than there are views.
        UnknownNameError: a tap or encoding that does not exist.
    """
    params = project.params
    readers = [_reader(pair, run, block, project, metas) for pair, run, block in project.distilled()]
    items: list[Item] = []
    costs: list[Cost] = []
    paid: list[BreakEven] = []
    for name, teacher in params.teachers.items():
        if detection.is_detector(project, name):
            continue
        meta = metas[teacher.dataset]
        network = build(_spec(project, "teachers", name, meta), 0)
        own = [reader for reader in readers if reader.teacher == name]
        stored, unstored = _features(project, name, meta, network, own)
        items += _teacher(project, name, network)
        items.append(_store(name, teacher, meta, stored))
        costs += _costs(project, name, meta, stored, unstored, own)
        # The last item is the store: its forward passes are what the cache costs.
        paid.append(_break_even(name, items[-1].forwards, own, len(params.seeds)))
        items += _fitted(project, name, meta)

    for name, pair in params.pairs.items():
        if detection.learns_boxes(project, pair.student):
            continue
        recipes = {
            wanted.matching for run in params.runs_of(name) for wanted in project.run(name, run).matchings
        }
        if recipes:
            # For each seed the matching, and what was measured of it.
            files = 2 * len(params.seeds) * len(recipes)
            items.append(Item("matchings", name, (f"match_channels@{name}",), 0, files))
    items += [_taught(project, name, metas) for name in params.taught]

    sizes = {
        name: 3 * _weight_bytes(build(_spec(project, "students", name, metas[student.dataset]), 0))
        for name, student in params.students.items()  # init, last, best
        if not detection.learns_boxes(project, name)
    }
    # Seven files: three weights, network.json, history.csv, training.json, inputs.json.
    for name, size in sizes.items():
        stages = tuple(f"pretrain_student@{name}-{seed}" for seed in params.seeds)
        items.append(Item("student alone", name, stages, size, 7))
    for reader in readers:
        stages = tuple(f"distill@{reader.name}-{seed}" for seed in params.seeds)
        forwards = reader.forwards if reader.online else 0
        items.append(Item("student", reader.name, stages, sizes[reader.student], 7, forwards))
    return Plan(tuple(items), tuple(costs), tuple(paid))


def store_bytes(layout: Layout) -> int:
    """Return the size of an array on disk without compression: chunks, checksums, indices, metadata."""
    slots, samples = layout.shape[:2]
    chunks = slots * math.ceil(samples / layout.chunk)
    shards = store_files(layout) - 1
    index = shards * (layout.shard[0] * layout.shard[1] // layout.chunk * INDEX_BYTES + CHECKSUM_BYTES)
    chunk_bytes = layout.chunk * math.prod(layout.shape[2:]) * np.dtype(layout.dtype).itemsize
    return chunks * (chunk_bytes + CHECKSUM_BYTES) + index + ARRAY_BYTES + shards * HASH_BYTES


def store_files(layout: Layout) -> int:
    """Return the number of files of an array: its shards and its metadata."""
    slots, samples = layout.shape[:2]
    return math.ceil(slots / layout.shard[0]) * math.ceil(samples / layout.shard[1]) + 1


def _reader(pair: str, run: str, block: RunBlock, project: Project, metas: Mapping[str, Meta]) -> _Reader:
    names, recipe = project.params.pairs[pair], block.recipe
    dataset = project.params.students[names.student].dataset
    sizes = cut(metas[dataset].samples["train"], recipe.batch_size, recipe.drop_last)
    # Of a recipe in iterations the last epoch may be cut short.
    whole, left = divmod(recipe.num_steps(len(sizes)), max(1, len(sizes)))
    shown = whole * sum(sizes) + sum(sizes[:left])
    views = 2 if Composition.of(block, f"runs.{run}").needs.strong else 1  # of each sample that is shown
    forwards = views * shown if block.features else 0
    online = block.source == "online"
    return _Reader(f"{pair}/{run}", names.teacher, names.student, online, block.features, forwards)


def _features(
    project: Project, name: str, meta: Meta, network: Network, readers: list[_Reader]
) -> tuple[dict[str, StoredFeature], dict[str, StoredFeature]]:
    """Return the features that the store will hold, and the others that runs read."""
    requested = {
        feature: (
            project.slots(name, stored.slots, f"teachers.{name}.features.{feature}.slots"),
            stored.dtype,
        )
        for feature, stored in project.features(name).items()
    }
    # A code has a store of its own, or is made online of the tap.
    read = {feature for reader in readers for feature in reader.features if not tables_of([feature])}
    others = dict.fromkeys(sorted(read), (0, "float16"))
    live = Teacher(network, machine("cpu"))
    largest = {feature: stored.kept for feature, stored in project.features(name).items()}
    probed = stored_features(others | requested, live, meta.channels, meta.size, largest, f"teachers.{name}")
    stored = {feature: probed[feature] for feature in requested}
    return stored, {feature: probed[feature] for feature in others if feature not in requested}


def _teacher(project: Project, name: str, network: Network) -> list[Item]:
    weights = 3 + len(project.params.teachers[name].anchors)  # init, last, best
    # Beside them: network.json, history.csv, training.json; a teacher that is not trained has no history.
    files = weights + 2 + project.recipe("teachers", name).trains
    return [Item("teacher", name, (f"train_teacher@{name}",), weights * _weight_bytes(network), files)]


def _fitted(project: Project, name: str, meta: Meta) -> Iterator[Item]:
    """Give the tables and codes that runs ask to be made of a teacher's store."""
    asked = blocks.asked(project, name)
    for table, fit in asked.tables.items():
        if fit is not None:
            yield Item("table", f"{name}/{table}", (fit.stage,), 0, 1)
    for block in asked.codes.values():
        for code in block.codes if block is not None else ():
            assert block is not None
            yield _code(project, name, block, code, meta)


def _layouts(feature: StoredFeature, meta: Meta) -> Iterator[Layout]:
    for split, samples in meta.samples.items():
        slots = 1 + (feature.slots if split == "train" else 0)
        yield Layout.plan((slots, samples, *feature.shape), feature.dtype)


def _array_bytes(feature: StoredFeature, meta: Meta, checkpoints: int) -> int:
    return checkpoints * sum(map(store_bytes, _layouts(feature, meta)))


def _store(name: str, teacher: TeacherParams, meta: Meta, stored: Mapping[str, StoredFeature]) -> Item:
    checkpoints, splits, train = len(teacher.checkpoints), len(meta.samples), meta.samples["train"]
    slots = 1 + max(feature.slots for feature in stored.values())
    layouts = [layout for feature in stored.values() for layout in _layouts(feature, meta)] * checkpoints
    layouts.append(Layout.plan((slots, train), "int32"))  # the view ids

    groups = 1 + checkpoints * (
        1 + splits
    )  # the view ids', the checkpoints', the splits'; the root has the manifest
    manifest = MANIFEST_BYTES + len(stored) * (FEATURE_BYTES + checkpoints * splits * DIGEST_BYTES)
    return Item(
        "store",
        name,
        (f"extract_features@{name}",),
        sum(map(store_bytes, layouts)) + groups * GROUP_BYTES + manifest,
        sum(map(store_files, layouts)) + groups + 1,
        checkpoints * (slots * train + sum(meta.samples.values()) - train),
    )


def _code(project: Project, name: str, block: EncodeBlock, code: str, meta: Meta) -> Item:
    """Return the store of a code; the teacher sees every view, and the plain ones again for what is lost."""
    network, cpu = build(_spec(project, "teachers", name, meta), 0), machine("cpu")
    mapped, _, encoding = code.partition("@")[0].rpartition(":")
    plain = stored_features({mapped: (0, "float16")}, Teacher(network, cpu), meta.channels, meta.size)
    # No table is fitted yet: the least one that the encoding reads.
    table = plugin.load("encodings", encoding).stand_in(plain[mapped].shape[0], len(meta.classes))
    live, slots = Teacher(network, cpu, {block.table: table}), block.codes[code]
    stored = stored_features({code: (slots, "float16")}, live, meta.channels, meta.size)[code]

    train = meta.samples["train"]
    layouts = [
        Layout.plan((1 + slots, train, *stored.shape), stored.dtype),
        Layout.plan((1 + slots, train), "int32"),
    ]

    manifest = MANIFEST_BYTES + FEATURE_BYTES + DIGEST_BYTES
    return Item(
        "codes",
        f"{name}/{code}",
        (block.stage,),
        sum(map(store_bytes, layouts)) + 4 * GROUP_BYTES + manifest,
        sum(map(store_files, layouts)) + 5,  # the groups
        (2 + slots) * train,
    )


def _taught(project: Project, name: str, metas: Mapping[str, Meta]) -> Item:
    """Return a copy or an assistant: its weights, and the store of its logits of every view."""
    params, copied = project.params.taught[name], name in project.params.copies
    meta = metas[project.params.teachers[params.teacher].dataset]
    slots, _ = taught.slots_of(project, name)
    stored = project.features(params.teacher).get("logits")
    kept = None if stored is None else stored.kept
    dtype, width = stored.dtype if stored else "float16", len(meta.classes)
    train = meta.samples["train"]
    layouts = [
        Layout.plan((1 + slots, train, kept.width if kept else width), "uint16" if kept else dtype),
        Layout.plan((1 + slots, train), "int32"),
    ]

    manifest = MANIFEST_BYTES + FEATURE_BYTES + DIGEST_BYTES
    kind: tuple[Kind, str] = ("teachers", params.teacher) if copied else ("assistants", name)
    network = build(_spec(project, *kind, meta), 0)
    return Item(
        "copy" if copied else "assistant",
        f"{params.teacher}/{name}",
        (taught.stage_of(project, name),),
        3 * _weight_bytes(network) + sum(map(store_bytes, layouts)) + 4 * GROUP_BYTES + manifest,
        sum(map(store_files, layouts)) + 4 + 7,  # the groups; weights, network.json, history, summaries
        (1 + slots) * train,
    )


def _costs(
    project: Project,
    name: str,
    meta: Meta,
    stored: Mapping[str, StoredFeature],
    unstored: Mapping[str, StoredFeature],
    readers: list[_Reader],
) -> Iterator[Cost]:
    teacher = project.params.teachers[name]
    space, checkpoints = view_space(project.views[teacher.dataset]), len(teacher.checkpoints)
    for feature, layout in {**stored, **unstored}.items():
        size = math.prod(layout.shape) * np.dtype(layout.dtype).itemsize
        whole = None if space.count is None else layout.model_copy(update={"slots": space.count})
        forwards = [reader.forwards for reader in readers if feature in reader.features]
        yield Cost(
            name,
            feature,
            layout.slots if feature in stored else None,
            size,
            _array_bytes(layout, meta, checkpoints) if feature in stored else 0,
            None if whole is None else _array_bytes(whole, meta, checkpoints),
            round(Fraction(sum(forwards), len(forwards))) if forwards else None,
            len(forwards) * len(project.params.seeds),
        )


def _break_even(name: str, cached: int, readers: list[_Reader], seeds: int) -> BreakEven:
    # Only who reads the store saves anything by it: not who learns online, nor who reads no feature.
    online = [reader.forwards for reader in readers if reader.forwards and not reader.online]
    if not online:
        return BreakEven(name, cached, 0, 0, None)
    mean = Fraction(sum(online), len(online))
    return BreakEven(name, cached, round(mean), len(online) * seeds, math.ceil(cached / mean))


def _spec(project: Project, kind: Kind, name: str, meta: Meta) -> NetworkSpec:
    """Return what a network is for the images that were prepared, without pretrained weights."""
    images = {"size": meta.size, "channels": meta.channels, "classes": len(meta.classes), "weights": "none"}
    return project.spec(kind, name).model_copy(update=images)


def _weight_bytes(network: Network) -> int:
    return sum(x.numel() * x.element_size() for x in network.state_dict().values())
