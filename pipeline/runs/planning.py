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
import torch
from torch import Tensor

from pipeline import plugin
from pipeline.compute.machine import machine
from pipeline.data.layout import Meta
from pipeline.data.views import ViewSpace, num_slots, view_space
from pipeline.distillation.method import Known
from pipeline.features import codebook
from pipeline.features.encoding import tables_of
from pipeline.features.extract import stored_features
from pipeline.features.manifest import StoredFeature
from pipeline.features.store import Layout
from pipeline.features.teacher import Teacher
from pipeline.networks.architecture import architecture
from pipeline.networks.network import Network, build
from pipeline.networks.spec import NetworkSpec
from pipeline.params.base import validate
from pipeline.params.codes import CodeParams
from pipeline.params.copies import SelfTaughtParams
from pipeline.params.extract import TeacherParams
from pipeline.params.pairs import PairBlock
from pipeline.params.project import Sections, blocks, merged
from pipeline.params.recipe import Recipe, cut
from pipeline.params.students import StudentParams

CHECKSUM_BYTES = 4
INDEX_BYTES = 16  # offset and length of a chunk in its shard
ARRAY_BYTES = 470  # zarr.json of an array
GROUP_BYTES = 66  # zarr.json of a group
MANIFEST_BYTES = 900  # zarr.json of a store, without what it says of its features
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
        all_bytes: of the same with every view stored; None for an endless view space.
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
class _Run:
    """A run of a pair, overrides merged."""

    name: str
    teacher: str
    student: str
    online: bool
    features: tuple[str, ...]
    forwards: int  # of a student that learns online


def plan(params: Sections, metas: Mapping[str, Meta]) -> Plan:
    """Plan all of params.yaml.

    Args:
        params: checked, plug-ins included.
        metas: of the prepared data, by data set.

    Raises:
        ParamsError: more slots than there are views.
        UnknownNameError: a tap or encoding that does not exist.
    """
    runs = list(_runs(params, metas))
    items: list[Item] = []
    costs: list[Cost] = []
    paid: list[BreakEven] = []
    for name, teacher in params.teachers.items():
        meta = metas[teacher.dataset]
        space = view_space(params.datasets[teacher.dataset].views)
        network = build(_spec(teacher, meta), 0)
        taught = [run for run in runs if run.teacher == name]
        stored, unstored = _features(name, teacher, meta, space, network, taught)
        items += _teacher(name, teacher, network)
        items.append(_store(name, teacher, meta, stored))
        costs += _costs(name, teacher, meta, space, stored, unstored, taught, len(params.seeds))
        paid.append(_break_even(name, items[-1].forwards, taught, len(params.seeds)))
    for stage, asked in (("fit_table", params.fits), ("derive_table", params.derived)):
        for name, fit in asked.items():
            items.append(Item("table", f"{fit.teacher}/{fit.table}", (f"{stage}@{name}",), 0, 1))
    for name, match in params.matches.items():
        made = (f"match_channels@{name}",)
        items.append(Item("matching", f"{match.pair}/{match.matching}", made, 0, 2 * len(params.seeds)))
    for name, code in params.codes.items():
        items.append(_codes(name, code, params, metas))
    for name, copy in params.self_taught.items():
        items.append(_self_taught(name, copy, params, metas))
    sizes = {
        name: 3 * _weight_bytes(build(_spec(student, metas[student.dataset]), 0))  # init, last, best
        for name, student in params.students.items()
    }
    for name, size in sizes.items():
        stages = tuple(f"pretrain_student@{name}-{seed}" for seed in params.seeds)
        items.append(Item("student alone", name, stages, size, 7))
    for run in runs:
        stages = tuple(f"distill@{run.name}-{seed}" for seed in params.seeds)
        forwards = run.forwards if run.online else 0
        items.append(Item("student", run.name, stages, sizes[run.student], 8, forwards))
    return Plan(tuple(items), tuple(costs), tuple(paid))


def store_bytes(layout: Layout) -> int:
    """Return the size of an array on disk without compression: chunks, checksums, indices, metadata."""
    slots, samples = layout.shape[:2]
    chunks = slots * math.ceil(samples / layout.chunk)
    shards = store_files(layout) - 1
    index = shards * (layout.shard[0] * layout.shard[1] // layout.chunk * INDEX_BYTES + CHECKSUM_BYTES)
    chunk_bytes = layout.chunk * math.prod(layout.shape[2:]) * np.dtype(layout.dtype).itemsize
    return chunks * (chunk_bytes + CHECKSUM_BYTES) + index + ARRAY_BYTES


def store_files(layout: Layout) -> int:
    """Return the number of files of an array: its shards and its metadata."""
    slots, samples = layout.shape[:2]
    return math.ceil(slots / layout.shard[0]) * math.ceil(samples / layout.shard[1]) + 1


def _runs(params: Sections, metas: Mapping[str, Meta]) -> Iterator[_Run]:
    found = blocks(params)
    for item in params.distill:
        name, _, key = item.partition("/")
        pair = found[f"pairs/{name}"]
        assert isinstance(pair, PairBlock)
        run, student = pair.runs[key], pair.student
        method, schedule = plugin.load("methods", run.method), plugin.load("schedules", run.schedule)
        meta = metas[student.dataset]
        fitted = {name: str(table.config.get("feature", "")) for name, table in params.tables.items()}
        known = Known(
            architecture(_spec(params.students[student.student], meta)),
            architecture(_spec(params.teachers[pair.teacher], meta)),
            fitted,
        )
        needs = method.Method.needs(validate(method.Config, run.config, f"runs.{key}.config").resolved(known))
        config = validate(schedule.Config, run.schedule_config, f"runs.{key}.schedule_config").resolved(known)
        needs |= schedule.Schedule.needs(config)
        if run.transform is not None:
            transform = plugin.load("transforms", run.transform)
            where = f"runs.{key}.transform_config"
            settings = validate(transform.Config, run.transform_config, where)
            needs |= transform.Transform.needs(settings.resolved(known))
        features = needs.teacher
        recipe = validate(
            Recipe, merged(student.recipe.model_dump(mode="json"), run.recipe), f"runs.{key}.recipe"
        )
        shown = sum(cut(metas[student.dataset].samples["train"], recipe.batch_size, recipe.drop_last))
        forwards = recipe.epochs * shown if features else 0
        yield _Run(item, pair.teacher, student.student, run.source == "online", features, forwards)


def _features(
    name: str, teacher: TeacherParams, meta: Meta, space: ViewSpace, network: Network, taught: list[_Run]
) -> tuple[dict[str, StoredFeature], dict[str, StoredFeature]]:
    """Return the features that the store will hold, and the others that runs read."""
    where = f"teachers.{name}.extract.features"
    requested = {
        feature: (num_slots(space, stored.slots, f"{where}.{feature}.slots"), stored.dtype)
        for feature, stored in teacher.extract.features.items()
    }
    # A code has a store of its own, or is made online of the tap.
    read = {feature for run in taught for feature in run.features if not tables_of([feature])}
    others = dict.fromkeys(sorted(read), (0, "float16"))
    live = Teacher(network, machine("cpu"))
    found = stored_features(others | requested, live, meta.channels, meta.size)
    stored = {feature: found[feature] for feature in requested}
    return stored, {feature: found[feature] for feature in others if feature not in requested}


def _teacher(name: str, teacher: TeacherParams, network: Network) -> list[Item]:
    weights = 3 + len(teacher.anchors)  # init, last, best
    # Beside them: network.json, history.csv, training.json; a teacher that is not trained has no history.
    files = weights + 2 + (teacher.recipe.epochs > 0)
    return [Item("teacher", name, (f"train_teacher@{name}",), weights * _weight_bytes(network), files)]


def _layouts(feature: StoredFeature, meta: Meta) -> Iterator[Layout]:
    for split, samples in meta.samples.items():
        slots = 1 + (feature.slots if split == "train" else 0)
        yield Layout.plan((slots, samples, *feature.shape), feature.dtype)


def _array_bytes(feature: StoredFeature, meta: Meta, checkpoints: int) -> int:
    return checkpoints * sum(map(store_bytes, _layouts(feature, meta)))


def _store(name: str, teacher: TeacherParams, meta: Meta, stored: Mapping[str, StoredFeature]) -> Item:
    checkpoints, splits, train = len(teacher.extract.checkpoints), len(meta.samples), meta.samples["train"]
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


def _codes(name: str, code: CodeParams, params: Sections, metas: Mapping[str, Meta]) -> Item:
    """Return the store of a code; the teacher sees every view, and the plain ones again for what is lost."""
    teacher = params.teachers[code.teacher]
    dataset, meta = params.datasets[teacher.dataset], metas[teacher.dataset]
    slots = num_slots(view_space(dataset.views), code.slots, f"codes.{name}.slots")
    network, where = build(_spec(teacher, meta), 0), machine("cpu")
    mapped = code.feature.rpartition(":")[0]
    plain = stored_features({mapped: (0, "float16")}, Teacher(network, where), meta.channels, meta.size)
    live = Teacher(network, where, {code.table: _stand_in(plain[mapped].shape[0], len(meta.classes))})
    stored = stored_features({code.code: (slots, "float16")}, live, meta.channels, meta.size)
    train = meta.samples["train"]
    one = stored[code.code]
    layouts = [
        Layout.plan((1 + slots, train, *one.shape), one.dtype),
        Layout.plan((1 + slots, train), "int32"),
    ]
    manifest = MANIFEST_BYTES + FEATURE_BYTES + DIGEST_BYTES
    return Item(
        "codes",
        f"{code.teacher}/{name}",
        (f"encode_views@{name}",),
        sum(map(store_bytes, layouts)) + 4 * GROUP_BYTES + manifest,
        sum(map(store_files, layouts)) + 5 + 1,  # the groups, the summary
        (2 + slots) * train,
    )


def _self_taught(name: str, copy: SelfTaughtParams, params: Sections, metas: Mapping[str, Meta]) -> Item:
    """Return a self-taught copy: its weights, and the store of its logits of every view."""
    teacher = params.teachers[copy.teacher]
    dataset, meta = params.datasets[teacher.dataset], metas[teacher.dataset]
    slots = num_slots(view_space(dataset.views), copy.slots, f"self_taught.{name}.slots")
    stored = teacher.extract.features.get("logits")
    train = meta.samples["train"]
    layouts = [
        Layout.plan((1 + slots, train, len(meta.classes)), stored.dtype if stored else "float16"),
        Layout.plan((1 + slots, train), "int32"),
    ]
    manifest = MANIFEST_BYTES + FEATURE_BYTES + DIGEST_BYTES
    weights = 3 * _weight_bytes(build(_spec(teacher, meta), 0))  # init, last, best
    return Item(
        "self-taught",
        f"{copy.teacher}/{name}",
        (f"train_self_taught@{name}",),
        weights + sum(map(store_bytes, layouts)) + 4 * GROUP_BYTES + manifest,
        sum(map(store_files, layouts)) + 4 + 7,  # the groups; weights, network.json, history, summaries
        (1 + slots) * train,
    )


def _stand_in(channels: int, classes: int) -> dict[str, Tensor]:
    """Return a table of the least size that any encoding reads: a code's shape does not depend on its values."""
    return {
        "centers": torch.zeros(max(codebook.TOP, classes), channels),
        "temperature": torch.tensor(1.0),
        "mean": torch.zeros(channels),
        "scalings": torch.zeros(channels, channels),
        "per_class": torch.tensor(1),
    }


def _costs(
    name: str,
    teacher: TeacherParams,
    meta: Meta,
    space: ViewSpace,
    stored: Mapping[str, StoredFeature],
    unstored: Mapping[str, StoredFeature],
    taught: list[_Run],
    seeds: int,
) -> Iterator[Cost]:
    for feature, one in {**stored, **unstored}.items():
        size = math.prod(one.shape) * np.dtype(one.dtype).itemsize
        checkpoints = len(teacher.extract.checkpoints)
        whole = None if space.count is None else one.model_copy(update={"slots": space.count})
        readers = [run.forwards for run in taught if feature in run.features]
        yield Cost(
            name,
            feature,
            one.slots if feature in stored else None,
            size,
            _array_bytes(one, meta, checkpoints) if feature in stored else 0,
            None if whole is None else _array_bytes(whole, meta, checkpoints),
            round(Fraction(sum(readers), len(readers))) if readers else None,
            len(readers) * seeds,
        )


def _break_even(name: str, cached: int, taught: list[_Run], seeds: int) -> BreakEven:
    online = [run.forwards for run in taught if run.forwards and not run.online]
    if not online:
        return BreakEven(name, cached, 0, 0, None)
    mean = Fraction(sum(online), len(online))
    return BreakEven(name, cached, round(mean), len(online) * seeds, math.ceil(cached / mean))


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
