"""Networks that learn from a teacher before any student does, and teach students: self-taught copies, and assistants.

A self-taught copy (SLKD*) is the teacher's network, untrained, that learns from the teacher's cached logits: the
sequential form of what `schedules/self_learning.py` does beside each student anew. An assistant (TAKD, DGKD) is another
network, and may learn from assistants that came before it. Each is trained once, and its logits of every view slot are
stored, so that students, seeds and methods share it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from pipeline import plugin
from pipeline.artifacts import publish
from pipeline.artifacts.hashing import content_hash, file_hash
from pipeline.data.prepared import Prepared
from pipeline.data.views import num_slots, view_space
from pipeline.distillation.method import Context
from pipeline.features import contents
from pipeline.features import manifest as manifests
from pipeline.features.extract import Extraction, fill, stored_features
from pipeline.features.manifest import Manifest
from pipeline.features.source import RESIDENT_BYTES, CachedSource
from pipeline.features.teacher import Teacher
from pipeline.features.verification import verify
from pipeline.networks import taught
from pipeline.networks.network import build, probe
from pipeline.networks.spec import NetworkSpec
from pipeline.networks.taught import Taught
from pipeline.networks.weights import load
from pipeline.params.copies import CopyBlock
from pipeline.params.recipe import Phase
from pipeline.params.teaching import TEACHER
from pipeline.training import assembly, result
from pipeline.training.assembly import Job, Subject
from pipeline.training.distill import Distillation
from pipeline.training.setting import Setting


@dataclass(frozen=True)
class Sources:
    """What a copy or an assistant learns from, checked to be of one teacher, and of the same data and views.

    Attributes:
        weights: hash of the teacher's last weights.
        teacher: what the teacher's store says of itself.
        stores: where the logits lie of each that teaches it, by name.
        logits: their hashes, by name.
        slots: augmented view slots that it sees.
    """

    weights: str
    teacher: Manifest
    stores: dict[str, Path]
    logits: dict[str, str]
    slots: int

    @classmethod
    def of(cls, block: CopyBlock, prepared: Prepared, weights: Path, store: Path, copies: Path) -> Sources:
        """Open what a copy or an assistant learns from.

        Args:
            block: the copy or assistant.
            prepared: the data.
            weights: the teacher's folder of weights.
            store: the teacher's store.
            copies: folder of the teacher's assistants.

        Raises:
            MissingArtifactError: something that it learns from is not there.
            StaleArtifactError: something was made from another teacher, other data or other views.
            ParamsError: a store has no logits, or of too few view slots.
        """
        own, hint = file_hash(weights / "last.safetensors"), f"dvc repro extract_features@{block.teacher}"
        slots = num_slots(view_space(block.views), block.slots, f"slots of {block.name}")
        # Also where it learns from assistants alone: the teacher says what the logits are stored as.
        teacher = _opened(store, hint, block, prepared, slots, {"last": own})

        stores, logits = {}, {}
        for name in block.learns_from:
            stores[name], manifest = store, teacher
            if name != TEACHER:
                taught.of_assistant(copies, name, own)
                stores[name] = copies / name / "store.zarr"
                manifest = _opened(stores[name], f"dvc repro train_assistant@{name}", block, prepared, slots)
            logits[name] = manifest.features["logits"].digest["last/train"]
        return cls(own, teacher, stores, logits, slots)


def train(
    block: CopyBlock,
    prepared: Prepared,
    sources: Sources,
    job: Job,
    *,
    batch_size: int | None = None,
    resident_bytes: int = RESIDENT_BYTES,
) -> Manifest:
    """Train a copy or an assistant from stored logits, and store its own.

    Args:
        block: the copy or assistant.
        prepared: the data.
        sources: what it learns from.
        job: where it runs; what an interrupted run of the same identity has left there is used.
        batch_size: samples of one forward pass when the logits are stored; None is what the device and the data
            call for.
        resident_bytes: largest stored array that is kept on the device.

    Returns:
        The manifest of its own store, `store.zarr` in the job's scratch folder, beside its copy.json.

    Raises:
        DivergedError: a term is not finite.
    """
    machine, meta, slots = job.machine, prepared.meta, sources.slots

    # A run that was interrupted while it stored the logits does not learn again.
    mark = job.scratch / "trained"
    trained = mark.exists() and mark.read_bytes() == job.identity.encode()
    if not trained or not result.whole(job.scratch):
        _learn(block, prepared, sources, job, resident_bytes)
        mark.write_text(job.identity)

    network, spec = load(job.scratch / "weights")
    machine.place(network)
    setting, copy = Setting.of(prepared, block.views, machine), Teacher(network, machine)
    # Stored as the teacher's own are.
    stored = sources.teacher.features["logits"]
    requested = {"logits": (slots, stored.dtype if stored.top is None else stored.top.dtype)}

    manifest = Manifest.of(
        meta,
        block.views,
        spec,
        {"last": file_hash(job.scratch / "weights" / "last.safetensors")},
        machine.precision,
        stored_features(requested, copy, meta.channels, meta.size, {"logits": stored.top}),
        teacher=block.teacher,
        made_by=job.made_by,
        # Students learn from these alone.
        splits=("train",),
    )

    extraction = Extraction(
        manifest,
        {"last": copy},
        {"train": prepared.split("train")},
        setting.space,
        setting.normalize,
        batch_size=batch_size,
        compression=block.compression,
    )
    filled = fill(job.scratch / "store.zarr", extraction, job.identity, f"logits of {block.name}")
    verify(job.scratch / "store.zarr", filled)
    publish.write_json(job.scratch / taught.FILE, _about(block, sources, job, filled).model_dump(mode="json"))
    publish.remove(mark)
    return filled


def _learn(block: CopyBlock, prepared: Prepared, sources: Sources, job: Job, resident_bytes: int) -> None:
    """Train the network by KD from the stored logits, as a student of those that teach it."""
    # Untrained, also where a teacher of the same network started from pretrained weights.
    machine, kind = job.machine, prepared.meta.kind
    spec = NetworkSpec(family=block.family, network=block.network, source=block.source, **kind)
    # Its name is part of the init: copies of one seed differ, and none starts as the teacher itself did.
    network = build(spec, "self_taught", block.name, block.seed)
    machine.place(network)

    setting = Setting.of(prepared, block.views, machine)
    batches = setting.batches(block.recipe, block.seed, sources.slots)

    context = Context(
        num_classes=spec.classes,
        labels=batches.labels.cpu(),
        student=network,
        student_shapes=probe(network, spec.size, spec.channels),
        teacher_shapes={"logits": sources.teacher.features["logits"].read_shape},
    )

    kd, assistants = plugin.load("methods", "kd"), plugin.load("schedules", "assistants")
    method = kd.Method(kd.Config(temperature=block.temperature, weights=block.weights), context)
    schedule = assistants.Schedule(assistants.Config(names=block.learns_from, drop=block.drop), context)

    def cached(stores: dict[str, Path]) -> CachedSource:
        return CachedSource(stores, ["last"], sources.slots, machine.device, resident_bytes)

    stores = dict(sources.stores)
    of_teacher = cached({"logits": stores.pop(TEACHER)} if TEACHER in stores else {})
    objective = Distillation(
        network,
        method,
        schedule,
        None,
        of_teacher,
        machine,
        block.seed,
        copies={name: cached({"logits": store}) for name, store in stores.items()},
        taps=method.needs(method.config).student,
        smoothing=block.recipe.label_smoothing,
        class_weights=setting.class_weights(block.recipe, job.title),
    )

    assembly.train(
        assembly.assemble(
            job,
            Subject(network, spec, {"method": method, "schedule": schedule}),
            objective.to(machine.device),
            setting,
            batches,
            (Phase("main", block.recipe),),
        )
    )


def _opened(
    store: Path,
    hint: str,
    block: CopyBlock,
    prepared: Prepared,
    slots: int,
    weights: dict[str, str] | None = None,
) -> Manifest:
    """Read what a store says of itself; it must hold logits, of the data and views that are seen."""
    meta, manifest = prepared.meta, manifests.read(store, hint)
    contents.require(store, manifest, data=meta.fingerprint, mean=meta.mean, std=meta.std, views=block.views)
    contents.require(store, manifest, weights=weights or {})
    contents.check_stored(store, manifest, "logits", ["last"], slots)
    return manifest


def _about(block: CopyBlock, sources: Sources, job: Job, manifest: Manifest) -> Taught:
    history = _history(job.scratch / "history.csv")
    return Taught(
        made_by=job.made_by,
        teacher=block.teacher,
        weights=sources.weights,
        data=manifest.data,
        settings=content_hash(block.model_dump(mode="json")),
        learned_from=sources.logits,
        logits=manifest.features["logits"].digest["last/train"],
        epochs=len(history),
        top1=float(history[-1]["top1"]) if history else None,
    )


def _history(path: Path) -> list[dict[str, str]]:
    """Return the rows of the epochs; there are none where no epoch ran."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
