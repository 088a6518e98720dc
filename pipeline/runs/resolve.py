"""From blocks of params.yaml and artifacts to the json of inputs of a student or a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline import plugin
from pipeline.artifacts.hashing import file_hash
from pipeline.artifacts.publish import read_json
from pipeline.data.prepared import Prepared
from pipeline.data.views import num_slots, view_space
from pipeline.errors import MissingArtifactError, ParamsError, StaleArtifactError, unknown_name
from pipeline.features import contents
from pipeline.features import manifest as manifests
from pipeline.features.encoding import Feature, encodings_of, tables_of
from pipeline.features.manifest import Manifest
from pipeline.matching.matching import Matching, Wanted
from pipeline.networks.spec import NetworkSpec
from pipeline.params.base import Block, load, validate
from pipeline.params.matching import MatchesBlock
from pipeline.params.pairs import PairBlock
from pipeline.params.project import merged
from pipeline.params.recipe import Recipe
from pipeline.params.runs import RunParams
from pipeline.params.students import StudentBlock
from pipeline.runs.inputs import RunInputs, Stored, StudentInputs
from pipeline.tables.table import load as load_table


@dataclass(frozen=True)
class Places:
    """Where the artifacts of a pair's teacher lie; dvc.yaml decides.

    Attributes:
        data: folder of the prepared data.
        weights: the teacher's folder of weights.
        store: its store.
        codes: folder of the stores of its codes.
        tables: folder of its tables, and of what is said of its codes.
        matchings: folder of the pair's matchings.
        evaluation: its predictions.
        code: folder of the code's hashes.
        self_taught: folder of its self-taught copies, where there are any.
    """

    data: Path
    weights: Path
    store: Path
    codes: Path
    tables: Path
    matchings: Path
    evaluation: Path
    code: Path
    self_taught: Path | None = None


def resolve_student(block: StudentBlock, data: Path, code: Path) -> StudentInputs:
    """Resolve a student.

    Args:
        block: the student, of params.yaml.
        data: folder of the prepared data.
        code: folder of the code's hashes.

    Raises:
        UnknownNameError: no such family or network.
    """
    meta = Prepared.open(data).meta
    family = plugin.load("networks", block.family)
    if block.network not in family.NETWORKS and not getattr(family, "OPEN", False):
        hint = f"Change students.{block.student}.network in params.yaml."
        raise unknown_name("network", block.network, family.NETWORKS, hint)
    spec = NetworkSpec(
        family=block.family,
        network=block.network,
        size=meta.size,
        channels=meta.channels,
        classes=len(meta.classes),
    )
    return StudentInputs(
        student=block.student,
        dataset=block.dataset,
        network=spec,
        recipe=block.recipe,
        views=block.views,
        data=str(data),
        fingerprint=meta.fingerprint,
        mean=meta.mean,
        std=meta.std,
        code=_code(code, [f"networks/{block.family}"]),
    )


def resolve_run(block: PairBlock, run: str, places: Places) -> dict[int, RunInputs]:
    """Resolve a run of a pair, and return its inputs by seed.

    Args:
        block: the pair, of params.yaml.
        run: a key of its runs.
        places: where its teacher's artifacts lie.

    Raises:
        ParamsError: settings are wrong, or a run needs what is not there; the message says what to add.
        UnknownNameError: something that is named does not exist.
        StaleArtifactError: the store was made from another teacher, other data or other views.
    """
    settings = block.runs[run]
    student = resolve_student(block.student, places.data, places.code)
    recipe = validate(
        Recipe, merged(student.recipe.model_dump(mode="json"), settings.recipe), f"runs.{run}.recipe"
    )
    method = plugin.load("methods", settings.method)
    config = validate(method.Config, settings.config, f"runs.{run}.config")
    needs = method.Method.needs(config)
    schedule = plugin.load("schedules", settings.schedule)
    schedule_config = validate(schedule.Config, settings.schedule_config, f"runs.{run}.schedule_config")
    checkpoints = schedule.Schedule.checkpoints(schedule_config)
    schedule.Schedule.check(schedule_config, method.Method, config)
    needs |= schedule.Schedule.needs(schedule_config)
    transform_config, changed = Block(), tuple[str, ...]()
    if settings.transform is not None:
        transform = plugin.load("transforms", settings.transform)
        where = f"runs.{run}.transform_config"
        transform_config = validate(transform.Config, settings.transform_config, where)
        needs |= transform.Transform.needs(transform_config)
        changed = transform.Transform.changes(transform_config)
    for layer in config.insert.values():
        plugin.load("layers", layer.layer)  # its name is the user's; it has no hash if it has no file
    plugins = [
        f"methods/{settings.method}",
        f"schedules/{settings.schedule}",
        f"networks/{block.teacher_family}",
        *([] if settings.transform is None else [f"transforms/{settings.transform}"]),
        *(f"encodings/{encoding}" for encoding in encodings_of(needs.teacher)),
        *(f"layers/{layer}" for layer in getattr(method, "LAYERS", ())),
        *(f"layers/{layer.layer}" for layer in config.insert.values()),
    ]
    slots = _slots(student, settings, f"runs.{run}.slots")
    online = settings.source == "online"
    # The codes in a store are made already; the teacher that makes them beside the student needs their tables.
    tables = dict.fromkeys((*needs.tables, *(tables_of(needs.teacher) if online else ())))
    copies = schedule.Schedule.self_taught(schedule_config)
    read = [*(checkpoints if online else ()), *(["last"] if needs.network else [])]
    fitted = {name: _table(places, name, run, changed) for name in tables}
    last = _weights(places.weights, ["last"])
    found = RunInputs(
        **student.model_dump(exclude={"code", "recipe"}),
        recipe=recipe,
        code=student.code | _code(places.code, plugins),
        pair=block.pair,
        run=run,
        seed=block.seeds[0],
        teacher=block.teacher,
        method=settings.method,
        config=config.model_dump(mode="json"),
        transform=settings.transform,
        transform_config=transform_config.model_dump(mode="json"),
        schedule=settings.schedule,
        schedule_config=schedule_config.model_dump(mode="json"),
        source=settings.source,
        slots=slots,
        features=needs.teacher,
        teacher_network=needs.network,
        weights_folder=str(places.weights),
        weights=_weights(places.weights, read),
        stored={} if online else _stored(places, student, needs.teacher, checkpoints, slots),
        self_taught={name: _copy(places, student, name, slots) for name in copies},
        tables=fitted,
        teacher_weights=last["last"],
        teacher_evaluation=str(places.evaluation),
    )
    by_seed = {}
    for seed in block.seeds:
        matched = {wanted.key: _matching(places, block, found, wanted, seed) for wanted in needs.matchings}
        by_seed[seed] = found.model_copy(update={"seed": seed, "matchings": matched})
    return by_seed


def _slots(student: StudentInputs, settings: RunParams, what: str) -> int | None:
    space = view_space(student.views)
    if settings.source == "online" and settings.slots == "all" and space.count is None:
        return None
    return num_slots(space, settings.slots, what)


def _weights(folder: Path, checkpoints: Iterable[str]) -> dict[str, str]:
    found = {}
    for checkpoint in checkpoints:
        path = folder / f"{checkpoint}.safetensors"
        if not path.exists():
            held = ", ".join(sorted(path.stem for path in folder.glob("*.safetensors"))) or "none"
            raise MissingArtifactError(
                f"{path} does not exist; checkpoints there: {held}. "
                f"Add the share to teachers.{folder.parent.name}.anchors in params.yaml, then: dvc repro"
            )
        found[checkpoint] = file_hash(path)
    return found


def _stored(
    places: Places,
    student: StudentInputs,
    features: tuple[str, ...],
    checkpoints: tuple[str, ...],
    slots: int | None,
) -> dict[str, Stored]:
    found = {}
    for feature in features:
        store, tables = _place(places, feature)
        manifest = _manifest(store, student)
        contents.check_stored(store, manifest, feature, checkpoints, slots or 0)
        contents.require(store, manifest, weights=_weights(places.weights, checkpoints), tables=tables)
        digest = manifest.features[feature].digest
        keys = [f"{checkpoint}/train" for checkpoint in checkpoints]
        found[feature] = Stored(store=str(store), digest={key: digest[key] for key in keys})
    return found


def _manifest(store: Path, student: StudentInputs) -> Manifest:
    """Return what a store says of itself; it must hold the data and the views that the student sees."""
    found = manifests.read(store, "dvc repro")
    data, mean, std, views = student.fingerprint, student.mean, student.std, student.views
    contents.require(store, found, data=data, mean=mean, std=std, views=views)
    return found


def _copy(places: Places, student: StudentInputs, name: str, slots: int | None) -> Stored:
    """Return where the logits of a self-taught copy lie: it must have learned from the teacher as it is now."""
    teacher, said = places.tables.name, places.tables / f"{name}.json"
    if places.self_taught is None or not said.exists():
        raise MissingArtifactError(
            f"Teacher '{teacher}' has no self-taught copy '{name}'. Add {name}: {{teacher: {teacher}, student: "
            f"{student.student}}} to 'self_taught' in params.yaml, then: dvc repro"
        )
    if slots is None:
        raise ParamsError(
            f"The logits of self-taught copy '{name}' are stored, and an online run of endless views reads more than "
            "a store can hold. Set 'slots' of the run to a number, in params.yaml."
        )
    store, hint = places.self_taught / name / "store.zarr", f"dvc repro train_self_taught@{name}"
    if read_json(said, hint).get("teacher") != _weights(places.weights, ["last"])["last"]:
        raise StaleArtifactError(f"{store} is of a copy of another teacher. Make it again with: {hint}")
    manifest = _manifest(store, student)
    if manifest.features["logits"].slots < slots:
        raise ParamsError(
            f"{store} holds {manifest.features['logits'].slots} view slots, expected {slots}. Raise "
            f"self_taught.{name}.slots, or set 'slots' of the run, in params.yaml, then: {hint}"
        )
    return Stored(store=str(store), digest={"last/train": manifest.features["logits"].digest["last/train"]})


def _place(places: Places, feature: str) -> tuple[Path, dict[str, str]]:
    """Return the store that holds a feature, and the hash of the table that it must have been encoded with."""
    table = Feature.parse(feature).table
    if table is None:
        return places.store, {}
    said = [
        path.stem
        for path in sorted(places.tables.glob("*.json"))
        if read_json(path, "dvc repro").get("code") == feature
    ]
    if not said:
        teacher = places.tables.name
        raise MissingArtifactError(
            f"Teacher '{teacher}' has no code '{feature}'. Add {teacher}-{table}-codes: {{teacher: {teacher}, "
            f"table: {table}, feature: {feature.partition('@')[0]}}} to 'codes' in params.yaml, or set "
            f"'source: online' of the run, then: dvc repro"
        )
    return places.codes / f"{said[0]}.zarr", {table: file_hash(places.tables / f"{table}.npz")}


def _table(places: Places, name: str, run: str, changed: tuple[str, ...]) -> tuple[str, str]:
    """Return path and hash of a table, which must be fitted to the teacher's store.

    `changed` are the features that the run's transform changes, which no table of them may be read for.
    """
    path = places.tables / f"{name}.npz"
    if not path.exists():
        teacher = places.tables.name
        raise MissingArtifactError(
            f"Run '{run}' needs the table '{name}' of teacher '{teacher}', and {path} does not exist. Add "
            f"{teacher}-{name}: {{teacher: {teacher}, table: {name}}} to 'fits' in params.yaml, then: dvc repro"
        )
    _, origin = load_table(path, "dvc repro")
    contents.require_source(path, origin, places.store, manifests.read(places.store, "dvc repro"))
    if (feature := origin.get("table", {}).get("config", {}).get("feature")) in changed:
        raise ParamsError(
            f"Run '{run}' reads table '{name}', which was fitted to '{feature}', and its transform changes that "
            "feature. Drop the transform, or take the feature out of its transform_config, in params.yaml."
        )
    return str(path), file_hash(path)


def _matching(places: Places, block: PairBlock, run: RunInputs, wanted: Wanted, seed: int) -> tuple[str, str]:
    """Return path and hash of a matching, checked to be of these networks and data."""
    hint = f"dvc repro list_matches@{block.pair}"
    index = load(MatchesBlock, places.matchings / "index.json", hint)
    teacher, seed = wanted.teacher or block.teacher, seed if wanted.seed is None else wanted.seed
    asked = (teacher, wanted.matching)
    name = next(
        (key for key, match in index.matches.items() if (match.teacher, match.matching) == asked), None
    )
    if name is None:
        raise MissingArtifactError(
            f"Run '{run.run}' needs the matching '{wanted.matching}' of pair '{block.pair}' with teacher '{teacher}'. "
            f"Add {block.pair}-{wanted.matching}: {{pair: {block.pair}, teacher: {teacher}, student: "
            f"{block.student.student}, matching: {wanted.matching}}} to 'matches' in params.yaml, then: dvc repro"
        )
    if seed not in block.seeds:
        listed = ", ".join(map(str, block.seeds))
        raise MissingArtifactError(
            f"Run '{run.run}' needs the matching '{wanted.matching}' of seed {seed}, and there are those of {listed}. "
            "Name one of these in its transform_config, or add the seed to 'seeds' in params.yaml, then: dvc repro"
        )
    path = places.matchings / name / f"{seed}.npz"
    origin = Matching.load(path, f"dvc repro match_channels@{name}").origin
    expected = {
        "student": block.student.student,
        "seed": seed,
        "teacher": teacher,
        "data": run.fingerprint["train"],
    }
    if wanted.teacher is None:  # another teacher's weights are not among what is read here
        expected["teacher_weights"] = _weights(places.weights, [origin.recipe.teacher_checkpoint]).popitem()[
            1
        ]
    for field, value in expected.items():
        if getattr(origin, field) != value:
            raise StaleArtifactError(
                f"{path} was made with other {field}: found {getattr(origin, field)}, expected {value}. Make it again "
                f"with: dvc repro match_channels@{name}"
            )
    return str(path), file_hash(path)


def _code(folder: Path, plugins: Iterable[str]) -> dict[str, str]:
    """Return the hashes that `stages.code` wrote for `plugins`, merged."""
    found: dict[str, str] = {}
    for plug in plugins:
        found |= read_json(folder / f"{plug}.json", "dvc repro params")
    return found
