"""The blocks of params.yaml that `stages.params` has written: what is reported, and what it must be made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts.publish import read_json
from pipeline.detection.blocks import DetectorMatchBlock, DetectorPairBlock
from pipeline.detection.spec import DetectorBlock
from pipeline.errors import StaleArtifactError
from pipeline.params import checks, document
from pipeline.params.base import load
from pipeline.params.copies import CopyBlock
from pipeline.params.datasets import PrepareBlock
from pipeline.params.matchings import MatchBlock
from pipeline.params.names import OWN
from pipeline.params.pairs import PairBlock
from pipeline.params.sections import Sections
from pipeline.params.tables import AskedBlock
from pipeline.params.tasks import DETECTION, Task
from pipeline.params.teacher import TrainBlock
from pipeline.params.teachers import CheckBlock

HINT = "dvc repro params"


@dataclass(frozen=True)
class Blocks:
    """A folder of blocks.

    Attributes:
        folder: the folder.
        sections: all of params.yaml.
    """

    folder: Path
    sections: Sections

    @classmethod
    def of(cls, folder: Path) -> Blocks:
        """Open a folder of blocks.

        Raises:
            ParamsError: it holds no params, or they are wrong.
        """
        return cls(folder, checks.check(read_json(folder / "project.json", HINT)))

    def require(self, path: Path) -> None:
        """Refuse a params.yaml that has changed since the blocks were made: `dvc repro -s report` makes none anew.

        Args:
            path: of the params.yaml.

        Raises:
            ParamsError: it is wrong.
            StaleArtifactError: it has other settings than the blocks.
        """
        # As json has them: a block does not keep the order of what is written by name.
        now, made = (
            sections.model_dump(mode="json")
            for sections in (checks.check(document.read(path)), self.sections)
        )
        if now != made:
            raise StaleArtifactError(
                f"{self.folder} was made from other settings than {path} has now. Run: {HINT}"
            )

    def task(self, dataset: str) -> Task:
        """Return what networks learn of a data set."""
        return load(PrepareBlock, self.folder / "datasets" / f"{dataset}.json", HINT).task

    def training(self, teacher: str) -> TrainBlock:
        """Return how a teacher is trained."""
        return load(TrainBlock, self.folder / "teachers" / teacher / "train.json", HINT)

    def detector(self, teacher: str) -> DetectorBlock:
        """Return how a teacher that finds boxes is trained."""
        return load(DetectorBlock, self.folder / "teachers" / teacher / "train.json", HINT)

    def detectors(self, pair: str) -> DetectorPairBlock:
        """Return a pair of detectors with its runs."""
        return load(DetectorPairBlock, self.folder / "pairs" / f"{pair}.json", HINT)

    def checking(self, teacher: str) -> CheckBlock:
        """Return what the check of a teacher's store depends on."""
        return load(CheckBlock, self.folder / "teachers" / teacher / "check.json", HINT)

    def asked(self, teacher: str) -> AskedBlock:
        """Return which tables and codes runs ask of a teacher."""
        return load(AskedBlock, self.folder / "teachers" / teacher / "asked.json", HINT)

    def pair(self, name: str) -> PairBlock:
        """Return a pair with its runs."""
        return load(PairBlock, self.folder / "pairs" / f"{name}.json", HINT)

    def taught(self, name: str) -> CopyBlock:
        """Return how a copy or an assistant of a teacher is made."""
        section = "copies" if name in self.sections.copies else "assistants"
        return load(CopyBlock, self.folder / section / f"{name}.json", HINT)

    def matchings(self, pair: str) -> list[tuple[str, MatchBlock]]:
        """Return the matchings of a pair by their folder: those with its own teacher, and borrowed ones."""
        of_boxes = self.task(self.sections.students[self.sections.pairs[pair].student].dataset) == DETECTION
        kind = DetectorMatchBlock if of_boxes else MatchBlock
        own = load(kind, self.folder / "matchings" / f"{pair}.json", HINT)
        borrowed = [
            (name, load(MatchBlock, self.folder / "borrowed" / f"{name}.json", HINT))
            for name, entry in self.sections.borrowed.items()
            if entry.pair == pair
        ]
        return [(OWN, own), *borrowed]
