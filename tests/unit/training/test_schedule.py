"""Which phases a run has, at what learning rate, and how it goes from epoch to epoch."""

from math import inf, nan
from typing import Any

import pytest

from mask_ray.config import TrainSettings
from mask_ray.training.schedule import (
    Phase,
    Position,
    Schedule,
    last_epoch,
    phases_of,
    schedule_of,
)


def settings(**given: Any) -> TrainSettings:
    return TrainSettings(data="photos", **given)


class TestPhases:
    def test_the_head_comes_first_and_fine_tuning_takes_a_tenth_of_its_rate(self) -> None:
        assert phases_of(settings(head_epochs=7, finetune_epochs=2, learning_rate=0.01)) == [
            Phase("head", 7, 0.01),
            Phase("finetune", 2, 0.001),
        ]

    def test_fine_tuning_may_have_a_rate_of_its_own(self) -> None:
        _, finetune = phases_of(settings(learning_rate=0.01, finetune_learning_rate=0.02))
        assert finetune.learning_rate == 0.02

    @pytest.mark.parametrize(
        ("head_epochs", "finetune_epochs", "names"), [(2, 0, ["head"]), (0, 3, ["finetune"])]
    )
    def test_a_phase_without_epochs_is_left_out(
        self, head_epochs: int, finetune_epochs: int, names: list[str]
    ) -> None:
        given = settings(head_epochs=head_epochs, finetune_epochs=finetune_epochs)
        assert [phase.name for phase in phases_of(given)] == names

    def test_without_backbone_weights_everything_is_trained_at_the_full_rate(self) -> None:
        given = settings(backbone_weights="none", finetune_epochs=9, learning_rate=0.004)
        assert phases_of(given) == [Phase("scratch", 9, 0.004)]


def schedule(epochs: int = 10, steps: int = 20, num_workers: int = 4, **given: Any) -> Schedule:
    phase = Phase("head", epochs, 0.01)
    return schedule_of(phase, settings(**given), steps_per_epoch=steps, num_workers=num_workers)


class TestSchedule:
    def test_falls_from_the_phase_s_rate_over_all_its_steps(self) -> None:
        assert schedule() == Schedule(start=0, peak=0.01, warmup_steps=0, decay_steps=200)

    def test_rises_from_nothing_over_the_warm_up(self) -> None:
        assert schedule(warmup_epochs=2.5) == Schedule(
            start=0, peak=0.01, warmup_steps=50, decay_steps=150
        )

    def test_rises_from_one_worker_s_rate_to_that_of_all(self) -> None:
        """Goyal et al. 2017, section 2.2."""
        assert schedule(scale_learning_rate=True, warmup_epochs=1) == Schedule(
            start=0.01, peak=0.04, warmup_steps=20, decay_steps=180
        )

    def test_of_one_worker_is_not_changed_by_scaling(self) -> None:
        assert schedule(scale_learning_rate=True, num_workers=1).peak == 0.01

    @pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (3, 1), (2, 5)])
    @pytest.mark.parametrize("warmup_epochs", [0, 0.5, 1, 2, 100])
    def test_always_has_a_step_to_decay_in_and_as_many_as_the_phase(
        self, epochs: int, steps: int, warmup_epochs: float
    ) -> None:
        made = schedule(epochs, steps, warmup_epochs=warmup_epochs)
        assert made.decay_steps >= 1
        assert made.warmup_steps >= 0
        assert made.warmup_steps + made.decay_steps == epochs * steps


def after(losses: list[float], *, num_epochs: int = 100, patience: int = 3) -> Position:
    position = Position()
    for loss in losses:
        position = position.after(loss, num_epochs, patience)
    return position


class TestPosition:
    def test_starts_before_everything(self) -> None:
        assert Position() == Position(
            epoch=0, phase=0, phase_epoch=0, best_loss=inf, stale_epochs=0
        )

    def test_counts_epochs_and_keeps_the_lowest_loss(self) -> None:
        assert after([0.5, 0.3, 0.4]) == Position(
            epoch=3, phase=0, phase_epoch=3, best_loss=0.3, stale_epochs=1
        )

    def test_an_equal_loss_is_not_a_better_one(self) -> None:
        assert after([0.5, 0.5]).stale_epochs == 1

    def test_a_better_loss_starts_patience_anew(self) -> None:
        assert after([0.5, 0.6, 0.6, 0.4, 0.6, 0.6]) == Position(
            epoch=6, phase=0, phase_epoch=6, best_loss=0.4, stale_epochs=2
        )

    def test_a_phase_ends_with_its_last_epoch(self) -> None:
        assert after([0.5, 0.4], num_epochs=2) == Position(
            epoch=2, phase=1, phase_epoch=0, best_loss=0.4, stale_epochs=0
        )

    def test_a_phase_ends_when_patience_does(self) -> None:
        assert after([0.5, 0.6, 0.7, 0.5]) == Position(
            epoch=4, phase=1, phase_epoch=0, best_loss=0.5, stale_epochs=0
        )

    def test_the_next_phase_has_to_beat_the_best_of_the_one_before(self) -> None:
        position = after([0.2], num_epochs=1)
        assert position.after(0.3, 5, 3) == Position(
            epoch=2, phase=1, phase_epoch=1, best_loss=0.2, stale_epochs=1
        )

    def test_a_loss_that_is_no_number_is_never_the_best(self) -> None:
        assert after([nan, 0.5, nan]) == Position(
            epoch=3, phase=0, phase_epoch=3, best_loss=0.5, stale_epochs=1
        )

    def test_losses_that_are_no_numbers_end_the_phase(self) -> None:
        assert after([nan, nan, nan]) == Position(
            epoch=3, phase=1, phase_epoch=0, best_loss=inf, stale_epochs=0
        )

    def test_remembers_the_title_of_the_best_epoch(self) -> None:
        position = Position()
        for number, loss in enumerate([0.5, 0.3, 0.4], start=1):
            position = position.after(loss, 3, 3, f"head {number}/3")
        assert position.best_epoch == "head 2/3"
        assert position.after(0.6, 2, 3, "finetune 1/2").best_epoch == "head 2/3"


def test_the_epoch_to_resume_after_is_named_as_it_was_printed() -> None:
    phases = [Phase("head", 30, 0.1), Phase("finetune", 3, 0.1)]
    assert last_epoch(phases, 1, Position(epoch=31, phase=1, phase_epoch=1)) == "finetune 1/3"
    assert last_epoch(phases, 0, Position(epoch=30, phase=1, phase_epoch=0)) == "the end of head"
    assert last_epoch(phases, 1, Position(epoch=33, phase=2)) == "the end of finetune"
