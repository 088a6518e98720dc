"""A trained student, opened to be made into something that ships: whole, and of the data that it was trained on."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.artifacts import advice
from pipeline.artifacts.publish import read_json
from pipeline.data.layout import Meta
from pipeline.data.prepared import Prepared
from pipeline.errors import DamagedArtifactError, ParamsError, unknown_name
from pipeline.export.preprocessing import Preprocessing
from pipeline.networks.network import Network
from pipeline.networks.spec import NetworkSpec
from pipeline.networks.trained import Trained
from pipeline.networks.weights import load
from pipeline.params.base import load as load_block
from pipeline.params.base import validate
from pipeline.params.datasets import PrepareBlock
from pipeline.params.exports import ExportParams
from pipeline.params.sections import Sections
from pipeline.runs.inputs import RunInputs
from pipeline.runs.student import StudentInputs, check_data

HINT = "dvc repro"


@dataclass(frozen=True)
class Student:
    """A trained student.

    Attributes:
        folder: what its training left.
        weights: "last" or "best".
        trained: what its training says of itself.
        inputs: what it was trained from; `RunInputs` of a distilled one.
        prepared: the data, opened.
        network: with these weights, in evaluation mode, on the CPU.
        spec: what the network is.
        preprocessing: what it must be shown.
    """

    folder: Path
    weights: str
    trained: Trained
    inputs: StudentInputs
    prepared: Prepared
    network: Network
    spec: NetworkSpec
    preprocessing: Preprocessing

    @property
    def title(self) -> str:
        """Pair, run and seed, as its folder has them; what lies above is of one machine."""
        return "/".join(self.folder.parts[-3:])

    @property
    def architecture(self) -> dict[str, Any]:
        """What the network is, without the file that its first weights came from: its path is of one machine."""
        return self.spec.model_copy(update={"weights": "none"}).model_dump(mode="json")

    @classmethod
    def open(cls, folder: Path, weights: str, params: Path) -> Self:
        """Open what a training left.

        Args:
            folder: `weights/`, `training.json` and `inputs.json`.
            weights: "last" or "best".
            params: folder of the blocks of params.yaml, for data that do not say how their files were read.

        Raises:
            MissingArtifactError: a file is not there.
            DamagedArtifactError: one is not what was written.
            StaleArtifactError: the data are others, or the inputs.
        """
        trained = Trained.of(folder, HINT)
        inputs = _inputs(folder, trained)
        prepared = Prepared.open(Path(inputs.data))
        check_data(inputs, prepared)
        preprocessing = _preprocessing(prepared.meta, params / "datasets" / f"{inputs.dataset}.json")

        trained.check_weights(weights)
        network, spec = load(folder / "weights", weights)
        return cls(folder, weights, trained, inputs, prepared, network, spec, preprocessing)


def chosen_seed(run: str, folder: Path, settings: ExportParams, params: Path) -> int:
    """Return the seed that the settings name, or the best one of those of params.yaml.

    Args:
        run: "pair/run".
        folder: of the run's students, one folder a seed.
        settings: how it is exported.
        params: folder of the blocks of params.yaml.

    Raises:
        UnknownNameError: params.yaml does not ask for the run, or not for the seed.
    """
    sections = load_block(Sections, params / "project.json")
    if run not in sections.distill:
        raise unknown_name("run", run, sections.distill, "They are those of distill in params.yaml.")
    if settings.seed == "best":
        return best_seed(folder, sections.seeds, settings.weights)
    if settings.seed not in sections.seeds:
        raise unknown_name(f"seed of {run}:", str(settings.seed), map(str, sections.seeds))
    return settings.seed


def seeds_of(params: Path) -> tuple[int, ...]:
    """Return the seeds of params.yaml, of its blocks in a folder."""
    return load_block(Sections, params / "project.json").seeds


def best_seed(folder: Path, seeds: Iterable[int], weights: str) -> int:
    """Return the seed with the highest top-1 on the split that chooses epochs; of equals the lowest.

    Args:
        folder: of the run's students, one folder a seed.
        seeds: those to choose from.
        weights: "last" goes by the last epoch, "best" by the best one.

    Raises:
        ParamsError: a student has no history.
        DamagedArtifactError: a history is not what was written.
    """
    scores = {seed: _score(folder / str(seed), weights) for seed in seeds}
    return max(scores, key=lambda seed: (scores[seed], -seed))


def _score(folder: Path, weights: str) -> float:
    trained = Trained.of(folder, HINT)
    if trained.history is None:
        raise ParamsError(
            f"{folder} has no history, since no epoch ran, so no seed is the best. Name a seed."
        )
    trained.check_history()
    path = folder / "history.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            top1 = [float(row["top1"]) for row in csv.DictReader(file)]
    except (ValueError, KeyError, TypeError, csv.Error):
        raise DamagedArtifactError(f"{path} cannot be read. {advice.again(trained.hint)}") from None
    return max(top1) if weights == "best" else top1[-1]


def _preprocessing(meta: Meta, block: Path) -> Preprocessing:
    """Return what a student of prepared data must be shown; what they do not say, the block of their source does."""
    if meta.files or meta.reading:
        return Preprocessing.of(meta)
    return Preprocessing.of(meta, load_block(PrepareBlock, block).settings)


def _inputs(folder: Path, trained: Trained) -> StudentInputs:
    """Return what a student was trained from, distilled or alone."""
    path = folder / "inputs.json"
    content: Any = read_json(path, HINT)
    trained.check_inputs(content, path)
    try:
        if not isinstance(content, dict):
            raise ParamsError(f"{path} holds {type(content).__name__}, expected a mapping.")
        if "run" in content:
            return validate(RunInputs, content, "", str(path))
        # Those of a student alone are of all its seeds.
        return validate(StudentInputs, {key: x for key, x in content.items() if key != "seed"}, "", str(path))
    except ParamsError as error:
        raise DamagedArtifactError(f"{error} Delete {folder}, then: {HINT}") from None
