"""Opening what a run reads: tables, matchings, the teacher or its store, each checked to be what the inputs name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import advice
from pipeline.compute.machine import Machine
from pipeline.distillation.method import Matchings, Tables
from pipeline.errors import StaleArtifactError
from pipeline.features import contents
from pipeline.features.extract import stored_features
from pipeline.features.source import RESIDENT_BYTES, CachedSource, OnlineSource, TeacherSource
from pipeline.features.teacher import Teacher, on_device
from pipeline.matching.matching import Matching
from pipeline.networks.network import Shape, build
from pipeline.networks.weights import load, state_digest
from pipeline.runs.inputs import RunInputs, Stored, check_file
from pipeline.tables import table

RESOLVED = "dvc repro"  # what is read was there when the inputs were resolved, so its own stage is up to date


@dataclass(frozen=True)
class Sources:
    """What a run reads, opened.

    Attributes:
        tables: arrays of the fitted tables, by table and array name.
        matchings: the matchings, by their keys.
        features: where the teacher's features of a batch come from.
        copies: where the logits of copies and assistants of the teacher come from, by their names.
        teachers: the networks that are loaded, by checkpoint; none where a store is all that is read.
        shapes: shapes of the teacher's features, without the batch axis.
    """

    tables: Tables
    matchings: Matchings
    features: TeacherSource
    copies: Mapping[str, TeacherSource]
    teachers: Mapping[str, Teacher]
    shapes: Mapping[str, Shape]

    @classmethod
    def of(cls, inputs: RunInputs, machine: Machine, resident_bytes: int = RESIDENT_BYTES) -> Sources:
        """Open what `inputs` names.

        Args:
            inputs: the inputs of a student.
            machine: where the teacher runs and features go.
            resident_bytes: largest stored array that is kept on the device.

        Raises:
            MissingArtifactError: something is not there.
            StaleArtifactError: something is not what the inputs name.
        """
        tables = _tables(inputs)
        teachers = _teachers(inputs, tables, machine)
        # None where views are unbounded, and then nothing is read from a store.
        slots = inputs.slots if inputs.slots is not None else 0

        features: TeacherSource
        if inputs.source == "online":
            features = OnlineSource(teachers, inputs.features)
        else:
            for name, stored in inputs.stored.items():
                _check_stored(stored, name)
            stores = {name: Path(stored.store) for name, stored in inputs.stored.items()}
            checkpoints = {key.split("/")[0] for stored in inputs.stored.values() for key in stored.digest}
            features = CachedSource(stores, sorted(checkpoints), slots, machine.device, resident_bytes)

        copies: dict[str, TeacherSource] = {}
        for name, stored in inputs.copies.items():
            _check_stored(stored, "logits")
            store = {"logits": Path(stored.store)}
            copies[name] = CachedSource(store, ["last"], slots, machine.device, resident_bytes)
        return cls(tables, matchings(inputs), features, copies, teachers, _shapes(inputs, teachers))


def matchings(inputs: RunInputs) -> dict[str, Matching]:
    """Read the matchings of a run; each must be of the very theta0 that its student starts from.

    Raises:
        MissingArtifactError: a matching is not there.
        StaleArtifactError: it is not the one that the inputs name, or it is of another student.
    """
    known = {}
    for key, (name, expected) in inputs.matchings.items():
        path = Path(name)
        check_file(path, expected)

        matching = known[key] = Matching.load(path, RESOLVED)
        # Of the plain network: what methods insert is no part of theta0.
        theta0 = state_digest(build(inputs.network, matching.origin.seed).state_dict())
        if theta0 != matching.origin.theta0:
            raise StaleArtifactError(
                f"{path} is of another student: {inputs.network.network} of seed {matching.origin.seed} does not "
                f"start from the weights that it was made with. "
                f"{advice.again(f'dvc repro {matching.origin.made_by}')}"
            )
    return known


def _tables(inputs: RunInputs) -> Tables:
    for path, expected in inputs.tables.values():
        check_file(Path(path), expected)
    return {name: table.load(Path(path), RESOLVED)[0] for name, (path, _) in inputs.tables.items()}


def _teachers(inputs: RunInputs, tables: Tables, machine: Machine) -> dict[str, Teacher]:
    """Load the teachers that run or whose modules are read."""
    teachers = {}
    for checkpoint, expected in inputs.weights.items():
        folder = Path(inputs.weights_folder)
        check_file(folder / f"{checkpoint}.safetensors", expected)
        teachers[checkpoint] = Teacher(
            load(folder, checkpoint)[0], machine, on_device(tables, machine), inputs.largest
        )
    return teachers


def _check_stored(stored: Stored, name: str) -> None:
    kept = contents.read(Path(stored.store), RESOLVED).features.get(name)
    if kept is None or any(kept.digest.get(key) != value for key, value in stored.digest.items()):
        raise StaleArtifactError(
            f"{stored.store} does not hold the '{name}' that this run was resolved with. Run: dvc repro"
        )


def _shapes(inputs: RunInputs, teachers: Mapping[str, Teacher]) -> dict[str, Shape]:
    if inputs.source == "cached":
        return {
            name: contents.read(Path(stored.store), RESOLVED).features[name].read_shape
            for name, stored in inputs.stored.items()
        }
    if not inputs.features:
        return {}
    # Any checkpoint will do: they are of one network.
    teacher, spec = next(iter(teachers.values())), inputs.network
    requested = dict.fromkeys(inputs.features, (0, "float32"))
    probed = stored_features(requested, teacher, spec.channels, spec.size)
    return {name: feature.shape for name, feature in probed.items()}
