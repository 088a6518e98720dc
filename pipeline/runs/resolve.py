"""From blocks of params.yaml and artifacts to the json of inputs of a student or a run.

It needs no torch: what a run consists of, its pair's block says (`blocks.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import advice
from pipeline.artifacts.hashing import file_hash
from pipeline.artifacts.publish import read_json
from pipeline.data.prepared import Prepared
from pipeline.errors import MissingArtifactError, StaleArtifactError
from pipeline.features import contents
from pipeline.features import manifest as manifests
from pipeline.features.manifest import Manifest
from pipeline.matching.matching import Matching
from pipeline.networks import taught
from pipeline.networks.spec import NetworkSpec, read_spec
from pipeline.params.course import check_shares
from pipeline.params.names import OWN
from pipeline.params.pairs import PairBlock, RunBlock
from pipeline.params.recipe import cut
from pipeline.params.students import StudentBlock
from pipeline.runs.inputs import RunInputs, Stored
from pipeline.runs.student import StudentInputs
from pipeline.runs.teacher_record import TeacherRecord
from pipeline.tables import table


@dataclass(frozen=True)
class Places:
    """Where the artifacts of a pair's teacher lie; dvc.yaml decides.

    Attributes:
        data: folder of the prepared data.
        weights: the teacher's folder of weights.
        store: the teacher's store.
        tables: folder of its tables.
        codes: folder of its codes, one folder a table.
        copies: folder of its copies and assistants.
        matchings: folder of the pair's matchings.
        evaluation: the teacher's predictions.
        code: folder of the code's hashes.
    """

    data: Path
    weights: Path
    store: Path
    tables: Path
    codes: Path
    copies: Path
    matchings: Path
    evaluation: Path
    code: Path


def resolve_student(block: StudentBlock, data: Path, code: Path) -> StudentInputs:
    """Resolve a student.

    Args:
        block: the student.
        data: folder of the prepared data.
        code: folder of the code's hashes.
    """
    meta = Prepared.open(data).meta
    # Before a training, which would read it hours later.
    block.recipe.check_classes(meta.classes, f"student {block.student}")
    spec = NetworkSpec(
        family=block.family, network=block.network, source=block.source, weights=block.weights, **meta.kind
    )
    # Sizes come from the prepared images; params.yaml could only predict them.
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
        block: the pair.
        run: a key of its runs.
        places: where its teacher's artifacts lie.

    Raises:
        MissingArtifactError: something that is read has not been made.
        StaleArtifactError: something was made from another teacher, other data or other views.
        ParamsError: there are fewer epochs than checkpoints that teach in them.
    """
    settings, student = block.runs[run], resolve_student(block.student, places.data, places.code)
    online = settings.source == "online"
    # Again: params.yaml knows the epochs of a recipe in iterations only when the images are counted.
    samples, recipe = Prepared.open(places.data).meta.samples["train"], settings.recipe
    steps = len(cut(samples, recipe.batch_size, recipe.drop_last))
    recipe.check_classes(Prepared.open(places.data).meta.classes, f"{block.pair}/{run}")
    check_shares(recipe, len(settings.checkpoints), f"{block.pair}/{run}", steps)
    # The weights that the run itself loads: none where a store is all that is read.
    loaded = [*(settings.checkpoints if online else ()), *(["last"] if settings.network else [])]
    plugins = [f"networks/{block.teacher_family}", *settings.plugins]

    inputs = RunInputs(
        **student.model_dump(exclude={"code", "recipe", "views"}),
        views=settings.views or student.views,
        recipe=settings.recipe,
        code=student.code | _code(places.code, plugins),
        pair=block.pair,
        run=run,
        # Any seed: it is replaced below.
        seed=block.seeds[0],
        teacher=block.teacher,
        methods=settings.methods,
        transform=settings.transform,
        schedule=settings.schedule,
        source=settings.source,
        slots=settings.slots,
        features=settings.features,
        teacher_network=settings.network,
        weights_folder=str(places.weights),
        weights=_weights(places.weights, loaded),
        largest=settings.largest,
        stored={} if online else _stored(block, settings, student, places),
        copies={
            name: _copy(name, stage, settings, student, places) for name, stage in settings.copies.items()
        },
        tables={name: _table(block, name, places) for name in settings.tables},
        teacher_weights=_weights(places.weights, ["last"])["last"],
        teacher_evaluation=str(places.evaluation),
    )

    # A matching is of the very student that is distilled, so it differs by seed.
    return {
        seed: inputs.model_copy(
            update={"seed": seed, "matchings": _matchings(block, run, inputs, seed, places)}
        )
        for seed in block.seeds
    }


def resolve_teacher(block: PairBlock, weights: Path) -> TeacherRecord:
    """Return the record of a pair's teacher, whose inputs are resolved beside it.

    Args:
        block: the pair.
        weights: the teacher's folder of weights.
    """
    spec = read_spec(NetworkSpec, weights)
    return TeacherRecord.of(block.teacher, block.teacher_licence, spec, _weights(weights, ["last"])["last"])


def _weights(folder: Path, checkpoints: Iterable[str]) -> dict[str, str]:
    return {checkpoint: file_hash(folder / f"{checkpoint}.safetensors") for checkpoint in checkpoints}


def _stored(block: PairBlock, run: RunBlock, student: StudentInputs, places: Places) -> dict[str, Stored]:
    """Return where the features of a cached run lie, checked to be of this teacher and of these tables."""
    stored = {}
    for feature in run.features:
        store, tables, hint = _place(block, feature, places)
        manifest = _manifest(store, run, student, hint)
        # First what is stored at all, whose error names the setting to change; then what it was made from.
        contents.check_stored(store, manifest, feature, run.checkpoints, run.slots or 0)
        contents.require(store, manifest, weights=_weights(places.weights, run.checkpoints), tables=tables)
        digest = manifest.features[feature].digest
        keys = [f"{checkpoint}/train" for checkpoint in run.checkpoints]
        stored[feature] = Stored(store=str(store), digest={key: digest[key] for key in keys})
    return stored


def _manifest(store: Path, run: RunBlock, student: StudentInputs, hint: str) -> Manifest:
    """Return what a store says of itself; it must hold the data and the views that the student sees."""
    manifest = manifests.read(store, hint)
    data, mean, std, views = student.fingerprint, student.mean, student.std, run.views or student.views
    contents.require(store, manifest, data=data, mean=mean, std=std, views=views)
    return manifest


def _place(block: PairBlock, feature: str, places: Places) -> tuple[Path, dict[str, str], str]:
    """Return the store that holds a feature, the hash of the table that encoded it, and the command that makes it."""
    _, at, name = feature.partition("@")
    if not at:
        return places.store, {}, f"dvc repro extract_features@{block.teacher}"
    tables = {name: file_hash(places.tables / f"{name}.npz")}
    store = contents.code_store(places.codes / name, feature)
    return store, tables, f"dvc repro encode_views@{block.teacher}-{name}"


def _copy(name: str, stage: str, run: RunBlock, student: StudentInputs, places: Places) -> Stored:
    """Return where the logits of a copy or an assistant lie: it must have learned from what there is now."""
    taught.checked(places.copies, name, stage, _weights(places.weights, ["last"])["last"])
    store = places.copies / name / "store.zarr"
    manifest = _manifest(store, run, student, f"dvc repro {stage}")
    contents.check_stored(store, manifest, "logits", ["last"], run.slots or 0)
    return Stored(store=str(store), digest={"last/train": manifest.features["logits"].digest["last/train"]})


def _table(block: PairBlock, name: str, places: Places) -> tuple[str, str]:
    """Return path and hash of a table, which must be fitted to what the teacher's store holds now."""
    path, hint = places.tables / f"{name}.npz", f"dvc repro fit_table@{block.teacher}-{name}"
    # An empty file stands where nobody asked for the table at the time.
    if not path.exists() or not path.stat().st_size:
        raise MissingArtifactError(f"{path} does not exist. Make it with: {hint}")
    extracted = f"dvc repro extract_features@{block.teacher}"
    origin = table.read_origin(path, hint)
    contents.require_source(path, origin, places.store, contents.read(places.store, extracted))
    return str(path), file_hash(path)


def _matchings(
    block: PairBlock, run: str, inputs: RunInputs, seed: int, places: Places
) -> dict[str, tuple[str, str]]:
    """Return path and hash of the matchings that a student reads, checked to be of its networks and data."""
    paths = {}
    for wanted in block.runs[run].matchings:
        teacher, own_seed = wanted.teacher or block.teacher, seed if wanted.seed is None else wanted.seed
        folder = OWN if wanted.teacher is None else block.borrowed[f"{wanted.teacher}/{wanted.matching}"]
        stage = f"match_channels@{block.pair}" if folder == OWN else f"match_borrowed@{folder}"

        path = places.matchings / folder / wanted.matching / f"{own_seed}.npz"

        origin = Matching.load(path, f"dvc repro {stage}").origin
        expected = {
            "student": block.student.student,
            "seed": own_seed,
            "teacher": teacher,
            "data": inputs.fingerprint["train"],
        }
        if wanted.teacher is None:  # another teacher's weights are not among what is read here
            checkpoint = origin.recipe.teacher_checkpoint
            expected["teacher_weights"] = _weights(places.weights, [checkpoint])[checkpoint]

        for field, value in expected.items():
            if getattr(origin, field) != value:
                raise StaleArtifactError(
                    f"{path} was made with other {field}: found {getattr(origin, field)}, expected {value}. "
                    f"{advice.again(f'dvc repro {stage}')}"
                )
        paths[wanted.key] = str(path), file_hash(path)
    return paths


def _code(folder: Path, plugins: Iterable[str]) -> dict[str, str]:
    """Return the hashes that `stages.code` wrote for `plugins`, merged."""
    hashes: dict[str, str] = {}
    for plug in plugins:
        hashes |= read_json(folder / f"{plug}.json", "dvc repro params")
    return hashes
