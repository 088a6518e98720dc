"""Recipes in epochs and in iterations: which of them a text gives, and what changes of it come to."""

from __future__ import annotations

from typing import Any

import pytest
from params_fixtures import line_of, refused
from training_fixtures import PARAMS, changed

from pipeline.params.anchors import check_anchors
from pipeline.params.base import validate
from pipeline.params.course import check_course, check_shares
from pipeline.params.recipe import LATER, Epoch, Phase, Recipe
from pipeline.runs.check import check, project

KCD = Recipe(iterations=64_000, batch_size=128, learning_rate=0.1, milestones=(32_000, 48_000))
LONG = {"iterations": 64_000, "milestones": [32_000, 48_000], "warmup": 10}


def of_run(student: Any, run: Any, override: Any = None) -> Recipe:
    """Return the recipe of a run that changes its student's."""
    params = changed(PARAMS, "recipes.long", LONG)
    params = changed(params, "students.small.recipe", student)
    params = changed(params, "runs.kd.recipe", run)
    if override is not None:
        params = changed(params, "pairs.pair.overrides", {"kd": {"recipe": override}})
    return project(params).run("pair", "kd").recipe


def test_the_rate_of_every_step_of_kcds_recipe() -> None:
    steps = 391  # of 50,000 images
    assert KCD.num_epochs(steps) == 164
    rates = [rate for epoch in range(164) for rate in KCD.rates(epoch, steps)]
    expected = [0.1] * 32_000 + [0.01] * 16_000 + [0.001] * 16_000
    assert rates == pytest.approx(expected, rel=1e-12)
    assert len(KCD.rates(163, steps)) == 64_000 - 163 * steps


def test_a_recipe_has_one_length_and_its_json_reads_back() -> None:
    assert (KCD.epochs, KCD.trains) == (None, True)
    assert validate(Recipe, KCD.model_dump(mode="json"), "") == KCD
    assert validate(Recipe, Recipe().model_dump(mode="json"), "") == Recipe()
    assert Recipe().iterations is None


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            {"epochs": 3, "iterations": 100, "milestones": []},
            "It has epochs and iterations: give one of them",
        ),
        ({"epochs": 240, "iterations": 100, "milestones": []}, "It has epochs and iterations"),
        ({"epochs": None}, "It has no epochs and no iterations"),
        ({"iterations": 100}, "milestones count steps: give them, or milestones: []"),
        ({"iterations": 0, "milestones": []}, "greater than or equal to 1"),
    ],
)
def test_a_text_that_gives_both_or_neither_is_refused(recipe: Any, words: str) -> None:
    line = refused(changed(PARAMS, "recipes.quick", recipe))
    assert line.startswith("params.yaml: 'recipes.quick")
    assert words in line
    line = refused(changed(PARAMS, "runs.kd.recipe", recipe))
    assert "runs.kd.recipe" in line
    assert words in line


@pytest.mark.parametrize(
    ("student", "run", "override", "expected"),
    [
        ("quick", {"iterations": 50, "milestones": [20]}, None, (None, 50, (20,), 0)),
        ("long", {"epochs": 3, "milestones": [1]}, None, (3, None, (1,), 0)),
        ("long", {"epochs": 3}, None, (3, None, (150, 180, 210), 0)),  # its own count steps
        ("long", {"iterations": 50}, None, (None, 50, (32_000, 48_000), 10)),
        ("long", {"milestones": [7]}, None, (None, 64_000, (7,), 10)),
        ({"long": {"epochs": 5, "milestones": []}}, {}, None, (5, None, (), 0)),
        ({"quick": {"iterations": 9, "milestones": [4]}}, {}, None, (None, 9, (4,), 0)),
        ({"quick": {"epochs": None, "iterations": 9, "milestones": [4]}}, {}, None, (None, 9, (4,), 0)),
        ("quick", {"iterations": 50, "milestones": [20]}, {"epochs": 4}, (4, None, (1,), 0)),  # the student's again
        ("quick", {"epochs": 4, "milestones": [3]}, {"iterations": 50, "milestones": []}, (None, 50, (), 0)),
        ("quick", {"iterations": 50, "milestones": [20]}, {"iterations": 60}, (None, 60, (20,), 0)),
        # A run that leaves the length to its student has milestones of the student's unit.
        ("quick", {"milestones": [1]}, {"iterations": 50, "milestones": [20]}, (None, 50, (20,), 0)),
        ("long", {"milestones": [7]}, {"iterations": 50}, (None, 50, (7,), 10)),
        ("long", {"milestones": [7]}, {"epochs": 4}, (4, None, (150, 180, 210), 0)),
        ("quick", {"milestones": [2]}, {"epochs": 4}, (4, None, (2,), 0)),
    ],
)  # fmt: skip
def test_a_change_may_count_in_the_other_unit(student: Any, run: Any, override: Any, expected: Any) -> None:
    found = of_run(student, run, override)
    assert (found.epochs, found.iterations, found.milestones, found.warmup) == expected


def test_a_change_to_iterations_names_milestones() -> None:
    assert "milestones count steps" in line_of(lambda: of_run("quick", {"iterations": 50}))
    line = line_of(lambda: of_run("quick", {"milestones": [1]}, {"iterations": 50}))
    assert "milestones count steps" in line
    # Those of a run that leaves the length to its student count epochs.
    line = line_of(lambda: of_run("quick", {"milestones": [1], "warmup": 1}, {"iterations": 50}))
    assert "milestones count steps" in line


def test_the_course_of_a_recipe_in_iterations() -> None:
    check_course(KCD, "x")
    line = line_of(lambda: check_course(KCD.model_copy(update={"warmup": 64_001}), "recipes.kcd"))
    assert "warmup is 64001 of 64000 iterations" in line


def test_anchors_are_shares_of_the_steps() -> None:
    assert [KCD.epochs_of(share, 391) for share in (0.25, 0.5, 0.999)] == [41, 82, 164]
    check_anchors((0.25, 0.999), KCD, "x")  # only the images say
    check_anchors((0.25, 0.5), KCD, "x", 391)
    assert "0.999 after epoch 164 of 164" in line_of(lambda: check_anchors((0.25, 0.999), KCD, "x", 391))


def test_checkpoints_that_would_never_teach_are_found_when_the_images_are_counted() -> None:
    short = KCD.model_copy(update={"iterations": 10})
    check_shares(short, 10, "runs.rco")
    check_shares(short, 3, "runs.rco", 4)
    check_shares(Recipe(epochs=0), 3, "runs.rco")
    assert "11 checkpoints in 10 epochs" in line_of(lambda: check_shares(short, 11, "runs.rco"))
    assert "4 checkpoints in 3 epochs" in line_of(lambda: check_shares(short, 4, "runs.rco", 4))


@pytest.mark.parametrize("run", ["rco", "kd"])
def test_the_check_of_params_takes_iterations_for_every_kind(run: str) -> None:
    params = changed(PARAMS, "recipes.quick", {"iterations": 40, "milestones": [30]})
    params = changed(params, f"runs.{run}.recipe", {"iterations": 20})
    check(params)
    if run == "rco":
        assert "2 checkpoints in 1 epochs" in refused(changed(params, "runs.rco.recipe", {"iterations": 1}))


def test_a_share_of_a_recipe_in_iterations_has_its_milestones_in_proportion() -> None:
    short = KCD.model_copy(update={"warmup": 9}).shortened(0.5)
    assert (short.epochs, short.iterations, short.milestones) == (None, 32_000, (16_000, 24_000))
    assert short.warmup == 4
    assert Recipe(epochs=0).shortened(0.5) == Recipe(epochs=0)


def test_an_epoch_knows_its_place_among_phases_of_both_kinds() -> None:
    phases = (Phase("first", KCD.over(2)), Phase("main", KCD), Phase("labels", KCD, taught=False))
    assert Epoch.of(phases, 1, 163, 391) == Epoch("main", 163, 164, before=2, after=0)
    assert Epoch.of(phases, 1, 163, 391).turn == (165, 166)


def test_a_first_phase_in_epochs_stays_one() -> None:
    alone = KCD.over(30)
    assert (alone.epochs, alone.iterations, alone.milestones, alone.batch_size) == (30, None, (), 128)
    warm = Recipe(warmup=5).over(30)
    assert (warm.epochs, warm.warmup, warm.milestones) == (30, 5, ())
    assert KCD.model_copy(update={"warmup": 9}).over(30).warmup == 0  # steps


# ------------------------------------------------------------------ other optimizers and schedules


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"ema": 1.5}, "'recipes.quick.ema' is 1.5. Input should be less than 1."),
        ({"ema": 0}, "ema' is 0. Input should be greater than 0."),
        ({"clip": 0}, "'recipes.quick.clip' is 0. Input should be greater than 0."),
        ({"label_smoothing": 1}, "label_smoothing' is 1. Input should be less than 1."),
        ({"optimizer": "adam", "learning_rate": 0.1}, "Input should be 'sgd' or 'adamw'."),
        ({"optimizer": "adamw"}, "SGD's learning rate is too high: give learning_rate"),
        ({"optimizer": "adamw", "learning_rate": 0.1, "betas": [0.9, 1]}, "betas.1' is 1. Input should be less than 1"),
        ({"schedule": "linear"}, "Input should be 'steps' or 'cosine'."),
        ({"schedule": "cosine", "final": 1}, "final' is 1. Input should be less than 1."),
        ({"undecayed": ["bias", "bias"]}, "It has 'bias' twice: name each once."),
        ({"undecayed": ["bn"]}, "undecayed.0' is 'bn'. Input should be 'bias' or 'norm'."),
    ],
)  # fmt: skip
def test_a_setting_out_of_its_bounds_is_one_line(recipe: Any, words: str) -> None:
    line = refused(changed(PARAMS, "recipes.quick", recipe))
    assert line.startswith("params.yaml: 'recipes.quick")
    assert words in line


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"schedule": "cosine", "milestones": [3]}, "schedule is cosine and milestones are 3, expected one of"),
        ({"schedule": "cosine", "decay": 0.2}, "decay is 0.2, which schedule: cosine does not read."),
        ({"final": 0.5}, "final is 0.5, which schedule: steps does not read. Drop it, or change the schedule."),
        ({"optimizer": "adamw", "learning_rate": 0.1, "momentum": 0.8}, "momentum is 0.8, which optimizer: adamw does"),
        ({"optimizer": "adamw", "learning_rate": 0.1, "nesterov": True}, "nesterov is True, which optimizer: adamw"),
        ({"betas": [0.5, 0.5]}, "betas is (0.5, 0.5), which optimizer: sgd does not read."),
        ({"eps": 0.1}, "eps is 0.1, which optimizer: sgd does not read."),
    ],
)  # fmt: skip
def test_what_nothing_would_read_is_refused(recipe: Any, words: str) -> None:
    line = refused(changed(PARAMS, "recipes.quick", recipe))
    assert line.startswith("params.yaml: 'teachers.big.recipe': ")
    assert words in line


def test_settings_that_are_not_used_are_not_in_a_recipes_json() -> None:
    """What the json held before there were such settings: identities of what is trained are made from it."""
    before = ["epochs", "iterations", "batch_size", "learning_rate", "momentum", "nesterov", "weight_decay",
              "milestones", "decay", "warmup", "drop_last"]  # fmt: skip
    assert list(Recipe().model_dump(mode="json")) == before
    assert list(Recipe(ema=None, undecayed=(), schedule="steps").model_dump(mode="json")) == before

    used = Recipe(
        optimizer="adamw",
        learning_rate=0.001,
        betas=(0.8, 0.9),
        eps=1e-6,
        undecayed=("norm",),
        schedule="cosine",
        final=0.1,
        label_smoothing=0.1,
        clip=2.0,
        ema=0.99,
        class_weights={"a": 2.0},
        sampling="balanced",
    )
    assert list(used.model_dump(mode="json")) == [*before, *LATER]
    assert validate(Recipe, used.model_dump(mode="json"), "") == used


@pytest.mark.parametrize(
    ("quick", "student", "run", "expected"),
    [
        # What was of SGD, or of steps, is left behind with it.
        ({"momentum": 0.8, "nesterov": True}, {"optimizer": "adamw", "learning_rate": 0.001}, {},
         {"optimizer": "adamw", "learning_rate": 0.001, "momentum": 0.9, "nesterov": False}),
        ({"milestones": [1], "decay": 0.5}, {"schedule": "cosine"}, {},
         {"schedule": "cosine", "milestones": (), "decay": 0.1}),
        ({"schedule": "cosine", "final": 0.5}, {"schedule": "steps", "milestones": [1]}, {},
         {"schedule": "steps", "milestones": (1,), "final": 0.0}),
        ({"schedule": "cosine"}, {}, {"schedule": "steps"}, {"milestones": (150, 180, 210)}),
        ({"optimizer": "adamw", "learning_rate": 0.001, "eps": 0.1}, {}, {"optimizer": "sgd", "learning_rate": 0.1},
         {"optimizer": "sgd", "learning_rate": 0.1, "eps": 1e-8}),
        # And kept where it stays.
        ({"optimizer": "adamw", "learning_rate": 0.001, "eps": 0.1}, {"optimizer": "adamw"}, {"ema": 0.5},
         {"optimizer": "adamw", "learning_rate": 0.001, "eps": 0.1, "ema": 0.5}),
        ({"ema": 0.5, "clip": 1.0}, {"ema": None}, {}, {"ema": None, "clip": 1.0}),
    ],
)  # fmt: skip
def test_a_change_of_optimizer_or_schedule(quick: Any, student: Any, run: Any, expected: Any) -> None:
    params = changed(PARAMS, "recipes.other", quick)
    params = changed(params, "students.small.recipe", {"other": student})
    params = changed(params, "runs.kd.recipe", run)
    found = project(params).run("pair", "kd").recipe
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_change_to_adamw_names_its_rate() -> None:
    assert "give learning_rate" in line_of(lambda: of_run("quick", {"optimizer": "adamw"}))
    assert "give learning_rate" in line_of(lambda: of_run({"quick": {"optimizer": "adamw"}}, {}))
