"""The teacher as it is at the end of its training: what every method does unless it says otherwise."""

from __future__ import annotations

from pipeline.distillation.schedule import ScheduleConfig, TeacherSchedule


class Config(ScheduleConfig):
    """No settings."""


class Schedule(TeacherSchedule[Config]):
    """One lesson a batch, from the last checkpoint."""

    strong = True
