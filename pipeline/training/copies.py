"""A self-taught copy of a teacher (SLKD*): untrained, it learns from the teacher's cached logits, and is kept.

It is trained once, before any student, and its logits of every view slot are stored, so that students, seeds and
methods share it: the sequential form of what `schedules/self_learning.py` does beside each student anew.
"""

from __future__ import annotations

from pathlib import Path

from pipeline import plugin
from pipeline.artifacts import publish
from pipeline.artifacts.hashing import file_hash
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
from pipeline.networks.network import build, probe
from pipeline.networks.weights import load
from pipeline.params.copies import CopyBlock
from pipeline.params.recipe import Phase
from pipeline.training import assembly, result
from pipeline.training.assembly import Job, Subject
from pipeline.training.distill import Distillation
from pipeline.training.setting import Setting


def train(
    block: CopyBlock,
    prepared: Prepared,
    weights: Path,
    store: Path,
    job: Job,
    *,
    batch_size: int | None = None,
    resident_bytes: int = RESIDENT_BYTES,
) -> Manifest:
    """Train a copy of a teacher from its store, and store the copy's logits.

    Args:
        block: the copy.
        prepared: the data.
        weights: the teacher's folder of weights; of them only what network it is is read.
        store: the teacher's store.
        job: where it runs; what an interrupted run of the same identity has left there is used.
        batch_size: samples of one forward pass when the logits are stored; None is what the device and the data
            call for.
        resident_bytes: largest stored array that is kept on the device.

    Returns:
        The manifest of the copy's own store, `store.zarr` in the job's scratch folder.

    Raises:
        StaleArtifactError: the store was made from other weights, data or views.
        ParamsError: it has no logits, or of too few view slots.
        DivergedError: a term is not finite.
    """
    machine, meta = job.machine, prepared.meta
    taught = manifests.read(store, f"dvc repro extract_features@{block.teacher}")
    contents.require(store, taught, data=meta.fingerprint, mean=meta.mean, std=meta.std, views=block.views)
    contents.require(store, taught, weights={"last": file_hash(weights / "last.safetensors")})
    slots = num_slots(view_space(block.views), block.slots, f"copies.{block.name}.slots")
    contents.check_stored(store, taught, "logits", ["last"], slots)

    # A run that was interrupted while it stored the logits does not learn again.
    mark = job.scratch / "trained"
    trained = mark.exists() and mark.read_bytes() == job.identity.encode()
    if not trained or not result.whole(job.scratch):
        _learn(block, prepared, taught, store, slots, job, resident_bytes)
        mark.write_text(job.identity)

    network, spec = load(job.scratch / "weights")
    machine.place(network)
    setting, copy = Setting.of(prepared, block.views, machine), Teacher(network, machine)
    requested = {"logits": (slots, taught.features["logits"].dtype)}

    manifest = Manifest.of(
        meta,
        block.views,
        spec,
        {"last": file_hash(job.scratch / "weights" / "last.safetensors")},
        machine.precision,
        stored_features(requested, copy, meta.channels, meta.size),
        teacher=taught.teacher,
        made_by=job.made_by,
        # Students learn from these alone; a copy is not evaluated.
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
    publish.remove(mark)
    return filled


def _learn(
    block: CopyBlock,
    prepared: Prepared,
    taught: Manifest,
    store: Path,
    slots: int,
    job: Job,
    resident_bytes: int,
) -> None:
    """Train the copy by KD from the stored logits, as a student of the teacher's own architecture."""
    # Untrained, also where the teacher started from pretrained weights.
    machine, spec = job.machine, taught.network.model_copy(update={"weights": "none"})
    # Its name is part of the init: copies of one seed differ, and none starts as the teacher itself did.
    network = build(spec, "self_taught", block.name, block.seed)
    machine.place(network)

    setting = Setting.of(prepared, block.views, machine)
    batches = setting.batches(block.recipe, block.seed, slots)

    context = Context(
        num_classes=spec.classes,
        labels=batches.labels.cpu(),
        student=network,
        student_shapes=probe(network, spec.size, spec.channels),
        teacher_shapes={"logits": taught.features["logits"].shape},
    )

    kd, final = plugin.load("methods", "kd"), plugin.load("schedules", "final")
    method = kd.Method(kd.Config(temperature=block.temperature, weights=block.weights), context)
    schedule = final.Schedule(final.Config(), context)

    source = CachedSource({"logits": store}, ["last"], slots, machine.device, resident_bytes)
    objective = Distillation(
        network, method, schedule, None, source, machine, block.seed, taps=method.needs(method.config).student
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
