"""A self-taught copy of a teacher (SLKD*): untrained, it learns from the teacher's cached logits, and is kept.

It is trained once, before any student, and its logits of every view slot are stored, so that students, seeds and
methods share it: the sequential form of what `schedules/self_learning.py` does beside each student anew.
"""

from __future__ import annotations

from pathlib import Path

from pipeline import plugin
from pipeline.artifacts import publish
from pipeline.artifacts.hashing import file_hash
from pipeline.compute.machine import Machine
from pipeline.data.prepared import Prepared
from pipeline.data.views import num_slots, view_space
from pipeline.distillation.method import Context
from pipeline.features import contents
from pipeline.features import manifest as manifests
from pipeline.features.extract import Extraction, fill, stored_features
from pipeline.features.manifest import Manifest
from pipeline.features.source import RESIDENT_BYTES, CachedSource
from pipeline.features.teacher import Teacher
from pipeline.networks.network import build, probe
from pipeline.networks.weights import load
from pipeline.params.copies import SelfTaughtBlock
from pipeline.params.recipe import Phase
from pipeline.training import result
from pipeline.training.distill import Distillation
from pipeline.training.loop import Training
from pipeline.training.setting import Setting


def train(
    scratch: Path,
    asked: SelfTaughtBlock,
    prepared: Prepared,
    weights: Path,
    store: Path,
    machine: Machine,
    *,
    identity: str,
    batch_size: int = 256,
    resident_bytes: int = RESIDENT_BYTES,
) -> Manifest:
    """Train a copy of a teacher from its store, and store the copy's logits.

    Args:
        scratch: an existing folder; what a run of the same identity has left there is gone on from.
        asked: the copy.
        prepared: the data.
        weights: the teacher's folder of weights; of them only what network it is is read.
        store: the teacher's store.
        machine: where it runs.
        identity: of everything that the result depends on.
        batch_size: samples of one forward pass when the logits are stored.
        resident_bytes: largest stored array that is kept on the device.

    Returns:
        The manifest of the copy's own store, `store.zarr` in `scratch`.

    Raises:
        StaleArtifactError: the store was made from other weights, data or views.
        ParamsError: it has no logits, or of too few view slots.
        DivergedError: a term is not finite.
    """
    made, meta = manifests.read(store, "dvc repro"), prepared.meta
    expected = {"last": file_hash(weights / "last.safetensors")}
    contents.require(store, made, data=meta.fingerprint, mean=meta.mean, std=meta.std, views=asked.views)
    contents.require(store, made, weights=expected)

    slots = num_slots(view_space(asked.views), asked.slots, f"self_taught.{asked.name}.slots")
    contents.check_stored(store, made, "logits", ["last"], slots)

    # A run that was cut off while it stored the logits does not learn again.
    mark = scratch / "trained"
    if not mark.exists() or mark.read_text() != identity:
        _learn(scratch, asked, prepared, made, store, slots, machine, identity, resident_bytes)
        mark.write_text(identity)

    network, spec = load(scratch / "weights")
    setting, teacher = Setting.of(prepared, asked.views, machine), Teacher(network, machine)

    manifest = Manifest.of(
        meta,
        asked.views,
        spec,
        {"last": file_hash(scratch / "weights" / "last.safetensors")},
        machine.precision,
        stored_features(
            {"logits": (slots, made.features["logits"].dtype)}, teacher, meta.channels, meta.size
        ),
        teacher=made.teacher,
        made_by=f"train_self_taught@{asked.name}",
        splits=("train",),
    )

    extraction = Extraction(
        manifest,
        {"last": teacher},
        {"train": prepared.split("train")},
        setting.space,
        setting.normalize,
        batch_size=batch_size,
        compression=asked.compression,
    )

    found = fill(scratch / "store.zarr", extraction, identity, f"logits of {asked.name}")
    publish.remove(mark)
    return found


def _learn(
    scratch: Path,
    asked: SelfTaughtBlock,
    prepared: Prepared,
    made: Manifest,
    store: Path,
    slots: int,
    machine: Machine,
    identity: str,
    resident_bytes: int,
) -> None:
    """Train the copy by KD from the stored logits, as a student of the teacher's own architecture."""
    spec = made.network.model_copy(update={"weights": "none"})
    folder = result.begin(scratch, identity, spec)
    # Its name is part of the init: copies of one seed differ, and none starts as the teacher itself did.
    network = build(spec, "self_taught", asked.name, asked.seed).to(machine.device)
    save = result.saver(network, folder)
    save("init")
    setting = Setting.of(prepared, asked.views, machine)
    batches = setting.batches(asked.recipe, asked.seed, slots)
    shapes = probe(network, spec.size, spec.channels)
    context = Context(
        spec.classes, batches.labels.cpu(), network, shapes, {"logits": made.features["logits"].shape}
    )
    kd, final = plugin.load("methods", "kd"), plugin.load("schedules", "final")
    method = kd.Method(kd.Config(temperature=asked.temperature, weights=asked.weights), context)
    schedule = final.Schedule(final.Config(), context)
    source = CachedSource({"logits": store}, ["last"], slots, machine.device, resident_bytes)
    objective = Distillation(network, method, schedule, None, source, machine, asked.seed)
    training = Training(
        modules={"student": network, "method": method, "schedule": schedule},
        objective=objective.to(machine.device),
        batches=batches,
        phases=(Phase("main", asked.recipe),),
        evaluate=setting.evaluation(network),
        save=save,
        scratch=scratch,
        identity=identity,
        title=f"self-taught {asked.name}",
    )
    result.finish(scratch, training.run(), save, machine)
