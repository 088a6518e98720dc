"""Training a detector on boxes: the same loop, recipes, checkpoints and results as of classifiers.

Stages run it by its name (`pipeline/params/tasks.py`). Its steps are eager, in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipeline.artifacts import closure, hashing, publish
from pipeline.compute import distributed
from pipeline.compute.machine import Machine
from pipeline.data.normalize import Normalize
from pipeline.detection import average_precision, first_weights
from pipeline.detection.detector import Detector, build
from pipeline.detection.images import BoxImages
from pipeline.detection.inputs import DetectorInputs, check_data
from pipeline.detection.prepared import Prepared
from pipeline.detection.sampling import keyed
from pipeline.detection.spec import DetectorBlock, DetectorSpec, evaluated
from pipeline.detection.views import BoxSpace
from pipeline.errors import MachineError
from pipeline.evaluation.boxes import detections, precision
from pipeline.networks.network import Taps
from pipeline.params.anchors import check_anchors
from pipeline.params.base import load
from pipeline.params.detection import BoxViews as Views
from pipeline.params.recipe import Epoch, Phase, Recipe
from pipeline.params.teacher import anchor_name
from pipeline.params.weights import Weights
from pipeline.training import assembly, cohort
from pipeline.training.assembly import Assembly, Job, Subject
from pipeline.training.box_batches import BoxBatches, BoxViews
from pipeline.training.cohort import Member
from pipeline.training.step import Clock, Terms

MEASURE = "AP"  # picks the best epoch


class Losses:
    """Minimizes the sum of a detector's own losses.

    Args:
        network: the detector.
        machine: where it runs.
        seed: of the boxes that it draws to learn from.
    """

    def __init__(self, network: Detector, machine: Machine, seed: int) -> None:
        self.network, self.machine, self.seed = network, machine, seed
        self._epoch = self._step = 0

    def start(self, epoch: Epoch) -> Hashable:
        """Begin an epoch; all are alike."""
        self._epoch, self._step = epoch.number, 0
        return None

    def begin(self, slot: int, index: Tensor) -> Callable[[], Taps]:
        """Read nothing."""
        return dict

    def __call__(self, views: BoxViews, read: Taps, clock: Clock) -> tuple[Tensor, Terms]:
        """Return the loss and its terms, by torchvision's names."""
        terms, _ = self.computed(views)
        return torch.stack([*terms.values()]).sum(), terms

    def computed(self, views: BoxViews, record: Collection[str] = ()) -> tuple[Terms, Taps]:
        """Return the losses of the next step by torchvision's names, float32, and the taps of `record`."""
        with keyed(self.machine.device, self.seed, "boxes", self._epoch, self._step), self.machine.autocast():
            losses, taps = self.network.losses(views.images, views.targets, record)
        self._step += 1
        return {name: loss.float() for name, loss in losses.items()}, taps


@dataclass(frozen=True)
class BoxSetting:
    """Prepared data on a machine, seen through views.

    Attributes:
        prepared: the data.
        space: the views.
        normalize: what images go through.
        machine: where they are.
    """

    prepared: Prepared
    space: BoxSpace
    normalize: Normalize
    machine: Machine

    @classmethod
    def of(cls, prepared: Prepared, views: Views, machine: Machine) -> BoxSetting:
        """Return the setting of some data, views and machine."""
        meta = prepared.meta
        return cls(prepared, BoxSpace(views), Normalize(meta.mean, meta.std, machine.device), machine)

    def batches(self, recipe: Recipe, seed: int) -> BoxBatches:
        """Return the training batches of a run."""
        split = self.prepared.splits["train"]
        images = BoxImages(split, self.space, self.normalize, self.machine.device)
        return BoxBatches(images, seed, recipe.batch_size, recipe.drop_last)

    def evaluation(self, network: Detector) -> Callable[[], dict[str, float]]:
        """Return the function that gives the average precisions at an epoch's end, of the test split."""
        split, classes = self.prepared.splits["test"], len(self.prepared.meta.classes)

        def evaluate() -> dict[str, float]:
            found = detections(network, split, self.space, self.normalize, self.machine)
            return precision(split, found, classes)

        return evaluate


def train_teacher(path: Path, data: Path, out: Path, machine: Machine) -> None:
    """Train the detector of a block and leave its result.

    Args:
        path: the teacher's train.json.
        data: folder of the prepared data.
        out: the folder to make.
        machine: where it runs.

    Raises:
        MachineError: pycocotools is not there.
        DivergedError: a loss is not finite.
    """
    block = load(DetectorBlock, path)
    average_precision.require()
    prepared = Prepared.open(data)
    code = closure.digest(["stages.train_teacher", __name__])
    identity = hashing.identity(block, prepared.meta, machine.precision, code)
    with distributed.building(out, machine.ranks) as scratch:
        inputs = hashing.content_hash(block.trained_from(prepared.meta.fingerprint))
        job = Job(scratch, machine, identity, f"teacher {block.teacher}", block.stage, inputs)
        anchors = {anchor_name(share): share for share in block.anchors}
        assembly.train(
            prepare(
                job, block.spec(prepared.meta), block.recipe, prepared, block.seed, anchors, block.weights
            )
        )


def pretrain_students(
    inputs: Sequence[Path],
    seeds: Sequence[int],
    out: Sequence[Path],
    machine: Machine,
    code: Mapping[str, str],
) -> None:
    """Train students alone and leave their results, one after another.

    Args:
        inputs: the json of each.
        seeds: of init, order, views and sampled boxes, one for each.
        out: the folders to make, one for each.
        machine: where they run.
        code: hash by file of what the stage runs for classifiers and detectors alike.

    Raises:
        MachineError: pycocotools is not there.
        StaleArtifactError: the prepared data are not those of the inputs.
        CohortError: several have no result.
    """
    students = [load(DetectorInputs, path, "dvc repro student_inputs") for path in inputs]
    average_precision.require()
    opened = {student.data: Prepared.open(Path(student.data)) for student in students}
    for student in students:
        check_data(student, opened[student.data])

    def ready(student: DetectorInputs, seed: int, scratch: Path) -> Assembly:
        identity = hashing.identity(student, seed, machine.precision, dict(code))
        title, made_by = (
            f"student {student.student} seed {seed}",
            f"pretrain_student@{student.student}-{seed}",
        )
        job = Job(scratch, machine, identity, title, made_by, hashing.content_hash(student.of_seed(seed)))
        return prepare(
            job, student.network, student.recipe, opened[student.data], seed, {}, student.first_weights
        )

    def finish(student: DetectorInputs, seed: int, scratch: Path) -> None:
        publish.write_json(scratch / "inputs.json", student.of_seed(seed))

    each = zip(students, seeds, out, strict=True)
    cohort.train(
        [
            Member(
                distributed.building(folder, machine.ranks),
                partial(ready, student, seed),
                partial(finish, student, seed),
            )
            for student, seed, folder in each
        ],
        machine,
    )


def prepare(
    job: Job,
    spec: DetectorSpec,
    recipe: Recipe,
    prepared: Prepared,
    seed: int,
    anchors: dict[str, float],
    weights: Weights = "none",
) -> Assembly:
    """Return the training of a detector, ready to run.

    Args:
        job: where it runs.
        spec: the detector.
        recipe: how it is trained.
        prepared: the data.
        seed: seed of init, order, views and sampled boxes.
        anchors: shares of the epochs after which weights are kept, by name.
        weights: where its first weights come from.

    Raises:
        ParamsError: a file's weights do not fit.
        MachineError: the library's weights cannot be fetched.
        StaleArtifactError: a file of weights has changed since params.yaml was checked.
    """
    network = build(spec.network, spec.classes, seed, spec.settings)
    first_weights.fill(network, weights)
    job.machine.place(network)
    setting = BoxSetting.of(prepared, spec.views, job.machine)
    batches = setting.batches(recipe, seed)

    steps = len(batches)
    if steps and recipe.iterations is not None:  # others are checked already
        check_anchors([*anchors.values()], recipe, f"anchors of {job.title}", steps)

    return assembly.assemble(
        job,
        Subject(network, spec),
        Losses(network, job.machine, seed),
        setting,
        batches,
        (Phase("main", recipe),),
        anchors={name: recipe.epochs_of(share, steps) for name, share in anchors.items()} if steps else {},
        measure=MEASURE,
        evaluated=evaluated(recipe.num_epochs(steps)),
    )


def check_options(processes: int, *, compiled: bool) -> None:
    """Refuse options of the machine that are for classifiers.

    Args:
        processes: that are to share the work.
        compiled: whether networks are to run through torch.compile.

    Raises:
        MachineError: there are several, or they are.
    """
    if processes > 1:
        raise MachineError(
            f"Detectors are trained by one process, and {processes} are asked for. Unset STILLHOUSE_PROCESSES."
        )
    if compiled:
        raise MachineError(
            "Detectors are not compiled: their images differ in size. Unset STILLHOUSE_COMPILE."
        )
