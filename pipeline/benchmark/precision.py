"""What a precision costs: students trained by KD on real data in each of them, paired by seed, and their speed.

Seeds share first weights, order and views between precisions, so the mean of their differences is known much better
than the difference of means. `auto` should be the fastest precision whose interval does not lie below zero.
Students are evaluated in the precision that they were trained in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from pipeline import plugin
from pipeline.benchmark.gpu import COHORT
from pipeline.benchmark.material import VIEWS, Bench, extraction
from pipeline.benchmark.record import Record, missing, record
from pipeline.benchmark.step import Learner, cached_logits, learner, side_by_side, training_batches
from pipeline.benchmark.timing import Run, interleaved
from pipeline.compute import precision as precisions
from pipeline.compute.machine import Machine
from pipeline.compute.precision import Precision
from pipeline.data.preparation import prepare
from pipeline.data.prepared import Prepared
from pipeline.data.views import view_space
from pipeline.errors import StillhouseError
from pipeline.features.source import CachedSource
from pipeline.features.teacher import Teacher
from pipeline.networks.network import Network, build
from pipeline.networks.spec import NetworkSpec
from pipeline.params.recipe import Phase, Recipe
from pipeline.params.views import CropFlip, ViewParams
from pipeline.report.statistics import Estimate, gain
from pipeline.training import loop
from pipeline.training.alone import CrossEntropy
from pipeline.training.batches import Batches
from pipeline.training.loop import Training
from pipeline.training.setting import Setting

EXACT: Precision = "float32"
DIGITS = CropFlip(space="crop_flip", padding=1, flip=False)  # a mirrored digit is another sign
SLOTS = 20  # of the teacher's views at most: an extraction must not take longer than the trainings
TEST_SHARE = 0.5  # of scikit-learn's digits, 1,797 in all
FOLDER_SIZE, FOLDER_SEEDS, FOLDER_EPOCHS = 32, 5, 30  # of an image folder, as large as CIFAR mostly


@dataclass(frozen=True)
class Course:
    """What students are trained on.

    Attributes:
        name: of the data.
        prepared: the data.
        views: what students see.
        seeds: number of trainings a precision.
        epochs: of each.
    """

    name: str
    prepared: Prepared
    views: ViewParams
    seeds: int
    epochs: int

    def spec(self, name: str) -> NetworkSpec:
        """Return the network "family.name" for these data."""
        family, network = name.split(".", 1)
        meta = self.prepared.meta
        return NetworkSpec(
            family=family, network=network, size=meta.size, channels=meta.channels, classes=len(meta.classes)
        )

    @property
    def slots(self) -> int:
        """Number of augmented views that are cached."""
        return min(SLOTS, view_space(self.views).count or SLOTS)

    @property
    def recipe(self) -> Recipe:
        """How teachers and students are trained."""
        milestones = tuple(max(1, round(share * self.epochs)) for share in (0.6, 0.8, 0.9))
        return Recipe(epochs=self.epochs, milestones=milestones)


def precision(bench: Bench) -> list[Record]:
    """Train students in every precision on digits, and on the image folder if one is given; say what auto should be."""
    rates = speeds(bench)
    records = [
        record(f"precision/speed/{name}", rate, "images/s", note=f"KD, {bench.scale.compared_pair[1]}")
        for name, rate in rates.items()
    ]

    scale = bench.scale
    courses = [Course("digits", digits(bench.folder), DIGITS, scale.seeds, scale.epochs)]
    if bench.data is not None:
        seeds, epochs = min(FOLDER_SEEDS, scale.seeds), min(FOLDER_EPOCHS, scale.epochs)
        courses.append(Course(bench.data.name, image_folder(bench.folder, bench.data), VIEWS, seeds, epochs))
    for course in courses:
        records += judged(course.name, accuracies(bench, course), rates)
    if bench.data is None:
        records.append(missing("precision/folder", "top-1", "no image folder; give --data"))
    return records


def judged(
    name: str, accuracy: Mapping[Precision, Sequence[float]], rates: Mapping[Precision, float]
) -> list[Record]:
    """Return the records of one data set: means, differences, and the verdict.

    Args:
        name: of the data.
        accuracy: top-1 in per cent by precision, one a seed.
        rates: images a second by precision.
    """
    records = []
    differences: dict[Precision, Estimate] = {}
    for key, values in accuracy.items():
        records.append(record(f"precision/{name}/{key}", fmean(values), "top-1", note=f"{len(values)} seeds"))
        differences[key] = difference = gain(values, accuracy[EXACT])
        if key != EXACT:
            what = f"precision/{name}/{key}_difference"
            records.append(record(what, difference.mean, "points", note=_interval(difference)))

    best = fastest(differences, rates)
    # No loss that is seen is not yet no loss: how large one may still be says how much the verdict is worth.
    half = differences[best].half
    hidden = (
        "" if not half else f", and it excludes losses above {max(0.0, half - differences[best].mean):.2f}"
    )
    note = f"auto should be {best}: the fastest whose interval does not show a loss{hidden}"
    records.append(
        record(f"precision/{name}/auto", rates[best] / rates[EXACT], "of float32's speed", note=note)
    )
    return records


def fastest(differences: Mapping[Precision, Estimate], rates: Mapping[Precision, float]) -> Precision:
    """Return the fastest precision whose interval does not lie below zero; float32 is one."""
    lossless = [key for key, difference in differences.items() if difference.verdict >= 0]
    return max(lossless, key=lambda key: rates[key])


def _interval(difference: Estimate) -> str:
    if difference.half is None:
        return "one seed has no interval"
    low, high = difference.mean - difference.half, difference.mean + difference.half
    return f"95 % interval {low:+.2f} to {high:+.2f}"


def machines(machine: Machine) -> dict[Precision, Machine]:
    """Return a device's machine in each precision that it has."""
    cuda = machine.device.type == "cuda"
    # As the options choose where nobody has: a GPU's matrix units want the channels innermost.
    return {
        name: replace(machine, precision=name, channels_last=cuda and name != EXACT)
        for name in precisions.NAMES
        if cuda or name != "tf32"
    }


def speeds(bench: Bench) -> dict[Precision, float]:
    """Return the images a second of KD's steps in each precision, from generated data."""
    teacher, student = bench.scale.compared_pair
    samples = bench.scale.compared
    cached = cached_logits(bench, bench.spec(teacher), bench.teacher(teacher), samples)
    batches = training_batches(bench, samples)

    runs: dict[str, Run] = {}
    names = machines(bench.machine)
    for name, machine in names.items():
        here = replace(bench, machine=machine)
        run = side_by_side(here, [learner(here, bench.spec(student), cached, batches)], batches)
        runs[name] = _within(name, run)
    rates = interleaved("steps in each precision", runs, bench.scale.rounds)
    return {name: rates.median(name) for name in names}


def _within(name: Precision, run: Run) -> Run:
    def inside() -> float:
        with precisions.using(name):
            return run()

    return inside


def accuracies(bench: Bench, course: Course) -> dict[Precision, list[float]]:
    """Train a teacher, and students of it in every precision; return their last top-1, one a seed."""
    source = _taught(bench, course)
    student = course.spec(bench.scale.compared_pair[1])

    reached: dict[Precision, list[float]] = {}
    for name, machine in machines(bench.machine).items():
        here = replace(bench, machine=machine)
        setting = Setting.of(course.prepared, course.views, machine)
        trainings = []
        for seed in range(course.seeds):
            batches = setting.batches(course.recipe, seed, course.slots)
            pupil = learner(here, student, source, batches, seed=seed)
            trainings.append(_training(here, course, pupil, batches, setting, f"{name} seed {seed}"))
        with precisions.using(name):
            reached[name] = [
                top1
                for first in range(0, len(trainings), COHORT)
                for top1 in _run(trainings[first : first + COHORT])
            ]
    return reached


def _taught(bench: Bench, course: Course) -> CachedSource:
    """Train the teacher as the machine does, and cache its logits."""
    spec, machine = course.spec(bench.scale.compared_pair[0]), bench.machine
    network = build(spec, 0)
    machine.place(network)
    setting = Setting.of(course.prepared, course.views, machine)
    batches = setting.batches(course.recipe, 0, course.slots)
    pupil = Learner({"student": network}, CrossEntropy(network, machine))
    _run([_training(bench, course, pupil, batches, setting, "teacher")])

    store = bench.folder / f"{course.name}.zarr"
    requested = {"logits": (course.slots, "float32")}
    work = extraction(course.prepared, Teacher(network, machine), spec, requested, course.views)
    work.run(store, lambda units=1, note="": None)
    return CachedSource({"logits": store}, ["last"], course.slots, machine.device)


def _training(
    bench: Bench, course: Course, pupil: Learner, batches: Batches, setting: Setting, title: str
) -> Training:
    scratch = bench.folder / "trainings" / title
    scratch.mkdir(parents=True, exist_ok=True)
    student = pupil.modules["student"]
    assert isinstance(student, Network)  # beside it stand modules of any kind
    return Training(
        modules=pupil.modules,
        objective=pupil.objective,
        batches=batches,
        phases=(Phase("main", course.recipe),),
        evaluate=setting.evaluation(student),
        save=lambda name: None,
        scratch=scratch,
        identity=f"{course.name} {title}",
        title=title,
        captured=bench.machine.captured,
        fused=bench.machine.fused,
    )


def _run(trainings: Sequence[Training]) -> list[float]:
    """Run trainings side by side, and return the last top-1 of each."""
    reached = []
    for outcome in loop.run(trainings):
        if isinstance(outcome, StillhouseError):
            raise outcome
        reached.append(float(outcome[-1]["top1"]))
    return reached


def digits(folder: Path) -> Prepared:
    """Prepare scikit-learn's digits, half of them to test on."""
    module = plugin.load("datasets", "digits")
    config = module.Config(test_share=TEST_SHARE)
    prepare(module.open_source(config), "digits", config, folder / "digits")
    return Prepared.open(folder / "digits")


def image_folder(folder: Path, data: Path) -> Prepared:
    """Prepare an image folder; its test images lie in `val/` or `test/`."""
    module = plugin.load("datasets", "image_folder")
    if not (data / "val").is_dir():
        # The plug-in knows one name; a folder of links has it.
        linked = folder / "linked"
        linked.mkdir()
        for name, split in (("train", "train"), ("val", "test")):
            (linked / name).symlink_to((data / split).resolve())
        data = linked
    config = module.Config(path=data, size=FOLDER_SIZE, links="anywhere")
    prepare(module.open_source(config), "image_folder", config, folder / "image_folder")
    return Prepared.open(folder / "image_folder")
