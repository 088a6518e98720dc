"""Checkpoints of the teacher's own training, one after another (RCO, Jin et al. 2019, arXiv:1904.09149).

The student's epochs, of all phases together, are split evenly over the anchors, and it keeps its own weights from one
to the next. The original moves to the next anchor after a fixed number of epochs and leaves their choice open; the even
split over the learning-rate schedule of one normal run is a choice. A method may leave a phase to the labels (Pro-KD):
the anchors are split over the others, and the last one stays.

A single anchor is a teacher whose training was stopped early (ESKD, Cho and Hariharan 2019, arXiv:1910.01348):
`methods: kd` with `anchors: [anchor_025]`. An anchor has the learning rates of the whole training; a teacher whose rate
has dropped by then is an entry of `teachers` with a shorter recipe. That the student leaves its teacher early, which is
called ESKD as well, is the example of a schedule in `.github/docs/extending.md`.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.distillation.method import Needs
from pipeline.distillation.schedule import ScheduleConfig, TeacherSchedule
from pipeline.errors import ParamsError
from pipeline.params.numbers import Names
from pipeline.params.recipe import Epoch


class Config(ScheduleConfig):
    """Settings of the schedule.

    Attributes:
        anchors: checkpoints in their order, each once, for instance anchor_025, anchor_050, anchor_075, last.
    """

    anchors: Names = Field(min_length=1)


class Schedule(TeacherSchedule[Config]):
    """One lesson a batch, from the anchor of the epoch."""

    strong = True

    @classmethod
    def checkpoints(cls, config: Config) -> tuple[str, ...]:
        """Return the anchors."""
        return config.anchors

    @classmethod
    def check(cls, config: Config, needs: Needs) -> None:
        """Refuse methods that read the teacher's own modules: an anchor has others than the last checkpoint."""
        others = [anchor for anchor in config.anchors if anchor != "last"]
        if needs.network and others:
            raise ParamsError(
                "A method of the run reads modules of the teacher (its classifier, its BN), which are those of the "
                f"last checkpoint, and the anchors are {', '.join(config.anchors)}. Drop {others[0]} from the run's "
                "schedule, or the method, in params.yaml."
            )

    def checkpoint(self, epoch: Epoch) -> str:
        """Return the anchor of an epoch."""
        anchors, (number, whole) = self.config.anchors, epoch.turn
        # Rounded down: the shares of an uneven split differ by one epoch at most.
        return anchors[number * len(anchors) // whole]
