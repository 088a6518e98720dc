"""What detectors will make and compute, before anything runs: bytes, files, steps, images that networks are run on.

Nothing is built with weights or read but lists, so it is as fast as the rest of the plan (`planning.py`). How long a
step takes only a machine can say: `pipeline/benchmark/detector_times.py` asks it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from pipeline.detection.spec import DetectorBlock, DetectorSpec, DetectorStudentBlock, evaluated
from pipeline.networks.architecture import undrawn
from pipeline.networks.network import Shape
from pipeline.params.recipe import cut
from pipeline.runs import detection, detector_runs
from pipeline.runs.composition import Composition
from pipeline.runs.detector_scenes import Scene
from pipeline.runs.detector_training import Lesson, Training
from pipeline.runs.planning import Item
from pipeline.runs.project import Project

_FOUND = 28  # bytes of a box that was found: corners, score, label
_MARKS = 2  # weights that are evaluated: the last and the best


@dataclass(frozen=True)
class Work:
    """What stages compute, each of them as much.

    Attributes:
        of: what they are of, as in `Item`.
        stages: DVC's names.
        training: key of the training whose network, and speed, it is; None where none runs.
        dataset: key of `datasets`.
        shown: images of the training steps.
        evaluated: images that the network looks for boxes in, one by one.
        paired: images that teacher and student are both run on, their backbones alone.
        listed: images that are read, decoded and listed.
    """

    of: str
    stages: tuple[str, ...]
    training: str | None
    dataset: str
    shown: int = 0
    evaluated: int = 0
    paired: int = 0
    listed: int = 0

    @property
    def kind(self) -> str:
        """What stands before the `@` of a stage's name."""
        return self.stages[0].partition("@")[0]

    @property
    def runs(self) -> bool:
        """Whether the network of the training is run."""
        return bool(self.shown or self.evaluated or self.paired)


@dataclass(frozen=True)
class BoxPlan:
    """What detectors make and compute.

    Attributes:
        items: artifacts.
        trainings: by their names: "teacher NAME", "student alone NAME", and "student PAIR/RUN".
        works: what their stages compute.
    """

    items: tuple[Item, ...]
    trainings: Mapping[str, Training]
    works: tuple[Work, ...]

    def missing(self, made: Collection[str]) -> dict[str, Training]:
        """Return the trainings whose networks run in stages that are still to be made, by name.

        Args:
            made: stages that are up to date.
        """
        used = {
            work.training
            for work in self.works
            if work.runs and not all(stage in made for stage in work.stages)
        }
        return {name: training for name, training in self.trainings.items() if name in used}


def plan(project: Project, known: Mapping[str, Scene]) -> BoxPlan:
    """Plan all detectors of params.yaml.

    Args:
        project: params.yaml, checked.
        known: the data sets that they learn from, by name.
    """
    planned = _Planned(project, known)
    made = [*planned.data(), *planned.teachers(), *planned.students(), *planned.pairs()]
    # Without seeds there are no students.
    kept = [(item, work) for item, work in made if work.stages]
    items, works = tuple(item for item, _ in kept), tuple(work for _, work in kept)
    used = {work.training for work in works}
    trainings = {name: training for name, training in planned.trainings.items() if name in used}
    return BoxPlan(items, trainings, works)


@dataclass(frozen=True)
class _Planned:
    """Goes through params.yaml; each part gives artifacts and what the stages that make them compute."""

    project: Project
    known: Mapping[str, Scene]

    @cached_property
    def trainings(self) -> dict[str, Training]:
        """All trainings, by name."""
        project, params = self.project, self.project.params
        trainings = {
            f"teacher {name}": self._alone(detection.train_block(project, name))
            for name in detection.detectors(project)
        }
        trainings |= {
            f"student alone {name}": self._alone(detection.student_block(project, name))
            for name in detection.learners(project)
        }
        for pair, run in self._runs():
            names, block = params.pairs[pair], detector_runs.run_block(project, pair, run)
            alone = trainings[f"student alone {names.student}"]
            trainings[f"student {pair}/{run}"] = Training(
                dataset=alone.dataset,
                network=alone.network,
                recipe=block.recipe,
                teacher=trainings[f"teacher {names.teacher}"].network,
                lesson=self._lesson(pair, run),
            )
        return trainings

    def data(self) -> Iterator[tuple[Item, Work]]:
        """Give the prepared data sets."""
        for name, scene in self.known.items():
            stages, listed = (f"prepare_data@{name}",), sum(scene.expected.samples.values())
            item = Item("data", name, stages, scene.bytes, scene.files)
            yield item, Work(name, stages, None, name, listed=listed)

    def teachers(self) -> Iterator[tuple[Item, Work]]:
        """Give the teachers, and what is found by them."""
        for name in detection.detectors(self.project):
            anchors, seen = len(self.project.params.teachers[name].anchors), f"teacher {name}"
            yield self._trained("teacher", name, (f"train_teacher@{name}",), seen, anchors)
            yield self._found(seen, (f"evaluate_teacher@{name}",))

    def students(self) -> Iterator[tuple[Item, Work]]:
        """Give the students alone, and what is found by them."""
        for name in detection.learners(self.project):
            seen, ids = f"student alone {name}", [f"{name}-{seed}" for seed in self.project.params.seeds]
            stages = tuple(f"pretrain_student@{one}" for one in ids)
            yield self._trained("student alone", name, stages, seen)
            yield self._found(seen, tuple(f"evaluate_pretrained@{one}" for one in ids))

    def pairs(self) -> Iterator[tuple[Item, Work]]:
        """Give the matchings, the distilled students, and what is found by these."""
        params = self.project.params
        for pair, names in params.pairs.items():
            if not detection.learns_boxes(self.project, names.student):
                continue
            runs = [run for of, run in self._runs() if of == pair]
            recipes = detector_runs.match_block(self.project, pair).recipes if runs else {}
            if recipes:
                number = len(params.seeds) * len(recipes)
                images = number * self._samples(f"student {pair}/{runs[0]}", "train")
                stages = (f"match_channels@{pair}",)
                # For each seed the matching, and what was measured of it.
                sizes = (
                    self._matrix(pair, recipe.student_tap, recipe.teacher_feature)
                    for recipe in recipes.values()
                )
                item = Item("matchings", pair, stages, len(params.seeds) * sum(sizes), 2 * number, images)
                seen = f"student {pair}/{runs[0]}"
                yield item, Work(pair, stages, seen, self.trainings[seen].dataset, paired=images)
            for run in runs:
                seen, ids = f"student {pair}/{run}", [f"{pair}/{run}-{seed}" for seed in params.seeds]
                item, work = self._trained(
                    "student", f"{pair}/{run}", tuple(f"distill@{one}" for one in ids), seen
                )
                yield item, work
                yield self._found(seen, tuple(f"evaluate@{one}" for one in ids))

    def _runs(self) -> list[tuple[str, str]]:
        params = self.project.params
        return [
            (pair, run)
            for pair, names in params.pairs.items()
            if detection.learns_boxes(self.project, names.student)
            for run in params.runs_of(pair)
        ]

    def _alone(self, block: DetectorBlock | DetectorStudentBlock) -> Training:
        scene = self.known[block.dataset]
        network = DetectorSpec(
            network=block.network,
            classes=scene.expected.classes,
            settings=block.settings.resolved(block.weights != "none"),
            views=block.views,
            mean=scene.mean,
            std=scene.std,
        )
        return Training(dataset=block.dataset, network=network, recipe=block.recipe)

    def _lesson(self, pair: str, run: str) -> Lesson:
        block = detector_runs.run_block(self.project, pair, run)
        both = detector_runs.known(self.project, pair)
        composition = Composition.of(self.project.params.run(pair, run), f"runs.{run}", both)
        seen: Mapping[str, Shape] = detector_runs.shapes_seen(self.project, pair, composition, both)
        taps = tuple(name for name in composition.needs.student if name in both.student.taps)
        return Lesson(methods=block.methods, taps=taps, features=block.features, seen=dict(seen))

    def _samples(self, training: str, split: str) -> int:
        return self.known[self.trainings[training].dataset].expected.samples[split]

    def _trained(
        self, kind: str, name: str, stages: tuple[str, ...], seen: str, anchors: int = 0
    ) -> tuple[Item, Work]:
        training = self.trainings[seen]
        recipe, weights = training.recipe, 3 + anchors  # init, last, best
        sizes = cut(self._samples(seen, "train"), recipe.batch_size, recipe.drop_last)
        shown, epochs = _shown(sizes, recipe.num_steps(len(sizes))), recipe.num_epochs(len(sizes))

        # Beside the weights: network.json, history.csv, training.json, and a student's inputs.json.
        files = weights + 3 + (kind != "teacher")
        forwards = shown if training.teacher is not None else 0
        item = Item(kind, name, stages, weights * weight_bytes(training.network), files, forwards)
        images = sum(map(evaluated(epochs), range(1, epochs + 1))) * self._samples(seen, "test")
        return item, Work(name, stages, seen, training.dataset, shown=shown, evaluated=images)

    def _found(self, seen: str, stages: tuple[str, ...]) -> tuple[Item, Work]:
        """Return what an evaluation writes, at most: as many boxes of each image as a detector may find."""
        training, images = self.trainings[seen], self._samples(seen, "test")
        most = _MARKS * images * training.network.settings.detections * _FOUND
        # Of a distilled student the distance of its maps to the teacher's, too.
        paired = images if training.teacher is not None else 0
        name = seen.rpartition(" ")[2]
        work = Work(name, stages, seen, training.dataset, evaluated=_MARKS * images, paired=paired)
        return Item("detections, at most", name, stages, most, 2, paired), work

    def _matrix(self, pair: str, tap: str, feature: str) -> int:
        """Return the bytes of what is measured for a matching: a float32 for each two channels."""
        both = detector_runs.known(self.project, pair)
        return 4 * both.student.taps[tap][0] * both.teacher.taps[feature][0]


def weight_bytes(spec: DetectorSpec) -> int:
    """Return the bytes of a detector's weights, of which none is drawn."""
    from pipeline.detection.detector import build

    with torch.device("meta"), undrawn():
        detector = build(spec.network, spec.classes, 0, spec.settings)
    return sum(x.numel() * x.element_size() for x in detector.state_dict().values())


def _shown(sizes: list[int], steps: int) -> int:
    """Return the images of so many steps, where an epoch has batches of these sizes."""
    whole, left = divmod(steps, max(1, len(sizes)))
    return whole * sum(sizes) + sum(sizes[:left])
