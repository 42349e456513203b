"""A search for settings: what it draws, what becomes of its trials, and how it goes on."""

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from mask_ray import cli, tracking
from mask_ray.config import SEARCH_CHOICES, SEARCH_RANGES, TrainSettings, TuneSettings
from mask_ray.tuning import trials
from mask_ray.tuning.search import _scheduler, _Search, _Trials, num_concurrent


def parse(*arguments: str) -> TuneSettings:
    return cli.parse(TuneSettings, ["--data", "photos", *arguments])


@pytest.mark.parametrize(
    ("flags", "searched"),
    [
        (
            "",
            "learning_rate finetune_learning_rate batch_size finetune_from augmented_views "
            "augmentation",
        ),
        ("--backbone-weights none", "learning_rate batch_size augmentation warmup_epochs"),
        (
            "--batch-size 32 --augmentation 0.5 --finetune-from top",
            "learning_rate finetune_learning_rate augmented_views",
        ),
        ("--finetune-epochs 0 --augmented-views 0", "learning_rate batch_size"),
        ("--head-epochs 0 --batch-size 8", "finetune_learning_rate finetune_from augmentation"),
        ("--search learning-rate,batch_size --batch-size 32", "learning_rate batch_size"),
    ],
    ids=["all", "scratch", "given", "head only", "no head", "named"],
)
def test_what_has_an_effect_and_is_not_given_is_searched(flags: str, searched: str) -> None:
    assert parse(*flags.split()).searched == searched.split()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--search finetune_from --backbone-weights none",
            "search must name settings that have an effect here: learning_rate, batch_size, "
            "augmentation, warmup_epochs; got finetune_from",
        ),
        ("--search alpha", "got alpha"),
        (
            "--finetune-epochs 0 --learning-rate 0.1 --batch-size 8 --augmented-views 0",
            "search must name settings, since all that a search tries have values: "
            "learning_rate, batch_size, augmented_views",
        ),
        (
            "--grace-epochs 34",
            "--grace-epochs must be at most --head-epochs + --finetune-epochs (33)",
        ),
    ],
    ids=["no effect", "unknown", "nothing left", "grace"],
)
def test_a_search_of_nothing_is_refused(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*flags.split())
    assert message in capsys.readouterr().err


def test_the_first_trial_is_what_training_would_do() -> None:
    settings = parse("--num-workers", "2", "--learning-rate", "0.005", "--patience", "4")
    first = trials.draw(settings)[0]
    same = TrainSettings(data="photos", num_workers=2, learning_rate=0.005, patience=4)
    assert first == same.model_copy(update={"finetune_learning_rate": 0.0005})


def test_draws_stay_within_the_search_and_change_nothing_else() -> None:
    settings = parse("--num-trials", "200", "--patience", "4", "--alpha", "0.5")
    drawn = trials.draw(settings)
    assert len(drawn) == len(set(drawn)) == 200
    for name, (low, high) in SEARCH_RANGES.items():
        values = [getattr(trial, name) for trial in drawn]
        assert low <= min(values) < 3 * low and high / 3 < max(values) <= high
        assert sum(value < math.sqrt(low * high) for value in values) == pytest.approx(100, abs=25)
    assert {trial.batch_size for trial in drawn} == {32, 64, 128}
    for name in ("finetune_from", "augmented_views", "augmentation"):
        assert {getattr(trial, name) for trial in drawn} == set(SEARCH_CHOICES[name])
    plain = TrainSettings(data="photos", patience=4, alpha=0.5).model_dump()
    kept = plain.keys() - set(settings.searched)
    assert all(trial.model_dump(include=kept) == {k: plain[k] for k in kept} for trial in drawn)


def test_draws_depend_on_the_seed_alone() -> None:
    def chosen(*flags: str) -> list[dict[str, Any]]:
        settings = parse(*flags)
        return [trials.chosen(trial, settings.searched) for trial in trials.draw(settings)]

    assert chosen("--seed", "1") == chosen("--seed", "1", "--patience", "3")
    assert chosen("--seed", "1")[:8] == chosen("--seed", "1", "--num-trials", "8")
    assert chosen("--seed", "1")[1:] != chosen("--seed", "2")[1:]


def test_no_two_trials_are_alike() -> None:
    drawn = trials.draw(parse("--search", "augmentation", "--num-trials", "50"))
    assert sorted(trial.augmentation for trial in drawn) == [0.5, 1.0, 1.5]


def test_a_batch_has_an_image_for_every_worker() -> None:
    drawn = trials.draw(parse("--num-workers", "60", "--search", "batch_size"))
    assert sorted(trial.batch_size for trial in drawn) == [60, 64, 128]


@pytest.mark.parametrize(
    ("flags", "cpus", "gpus", "expected"),
    [
        ("", 2, 0, 1),
        ("--num-workers 2", 2, 0, 1),
        ("", 16, 0, 8),
        ("--num-workers 3", 16, 0, 2),
        ("--num-trials 5", 64, 0, 5),
        ("--max-concurrent 3", 2, 0, 3),
        ("--cpus-per-worker 4", 16, 0, 3),
        ("--use-gpu", 16, 4, 4),
        ("--use-gpu --num-workers 2 --cpus-per-worker 1", 16, 4, 2),
    ],
)
def test_as_many_trials_run_at_a_time_as_fit(
    flags: str, cpus: float, gpus: float, expected: int
) -> None:
    assert num_concurrent(parse(*flags.split()), cpus, gpus) == expected


@pytest.mark.parametrize(
    "flags",
    [
        "--use-gpu --no-feature-cache --cpus-per-worker 1.5 --min-workers 1 --num-workers 2",
        "--backbone-weights none",
        "--backbone-weights /a\\ b/c.h5 --seed 3 --register-as other",
    ],
)
def test_the_best_can_be_trained_by_command_and_by_file(flags: str, tmp_path: Path) -> None:
    for trial in trials.draw(parse(*shlex.split(flags), "--num-trials", "4")):
        python, dash_m, module, *arguments = shlex.split(trials.command(trial))
        assert (python, dash_m, module) == ("python", "-m", "jobs.train")
        assert cli.parse(TrainSettings, arguments) == trial
        path = tmp_path / "best.yaml"
        path.write_text(trials.as_yaml(trial))
        assert cli.parse(TrainSettings, ["--config", str(path)]) == trial


def outcome(number: int, status: str, val_loss: float) -> trials.Outcome:
    return trials.Outcome(number, "0" * 32, status, 3, val_loss, 0.9, {"batch_size": 64})


def test_the_lowest_loss_is_best_unless_its_trial_failed() -> None:
    found = [
        outcome(0, "failed", 0.1),
        outcome(1, "finished", math.nan),
        outcome(2, "finished", 0.3),
        outcome(3, "stopped early", 0.2),
    ]
    ranked = sorted(found, key=lambda one: one.rank)
    assert [one.number for one in ranked] == [3, 2, 1, 0]
    head, *rows = trials.table(ranked).splitlines()
    assert head.split() == ["trial", "val_loss", "val_accuracy", "epochs", "batch_size"]
    assert rows[0].split() == ["3", "0.2000", "0.9000", "3", "stopped", "early", "64"]
    assert len({len(row) for row in (head, *rows)}) == 1


@pytest.fixture
def search(home: Path, store: None) -> Iterator[_Search]:
    """A search of nine epochs that has an MLflow run, and no images."""
    settings = parse(
        *("--backbone-weights", "none", "--finetune-epochs", "9"),
        *("--num-trials", "3", "--grace-epochs", "1"),
    )
    with tracking.start_run("without images", {}) as tracked:
        job: Any = SimpleNamespace(tracked=tracked)
        yield _Search(settings, trials.draw(settings), job, 1, home)


def statuses(search: _Search) -> list[str]:
    return [run.status() for run in search.job.tracked.nested()]


def test_the_run_of_a_trial_tells_how_it_ended(search: _Search) -> None:
    handed_out = _Trials(search, _scheduler(search.settings))
    runs = [tracking.Run(handed_out.suggest(name)["run_id"]) for name in "abc"]
    assert handed_out.suggest("d") == Searcher.FINISHED
    assert statuses(search) == ["RUNNING"] * 3

    handed_out.on_trial_complete("a", {"finished": True})
    handed_out.on_trial_complete("b", {"epoch": 3, "val_loss": 0.5})
    handed_out.on_trial_complete("c", error=True)

    assert [run.status() for run in runs] == ["FINISHED", "FINISHED", "FAILED"]
    assert [run.tags()["stopped_early"] for run in runs] == ["false", "true", "false"]
    found = trials.outcomes(search.job.tracked, search.drawn, ["batch_size"])
    assert [one.status for one in found] == ["finished", "stopped early", "failed"]


def test_a_search_that_goes_on_knows_its_trials_and_what_they_came_to(
    search: _Search, tmp_path: Path
) -> None:
    scheduler = _scheduler(search.settings)
    before = _Trials(search, scheduler)
    before.suggest("a"), before.suggest("b")
    assert report(scheduler, "a", val_loss=0.1) == "CONTINUE"
    before.on_trial_complete("a", {"finished": True})
    before.save(str(tmp_path / "state"))
    third = before.suggest("c")
    for run in search.job.tracked.nested():
        run.set_status("KILLED")

    scheduler = _scheduler(search.settings)
    after = _Trials(search, scheduler)
    after.restore(str(tmp_path / "state"))

    assert statuses(search) == ["KILLED", "RUNNING", "KILLED"]
    assert report(scheduler, "b", val_loss=0.2) == "STOP"
    assert after.suggest("e") == third, "begun after the state was kept, in the same run"
    assert statuses(search) == ["KILLED", "RUNNING", "RUNNING"]


def report(scheduler: ASHAScheduler, trial_id: str, val_loss: float) -> str:
    trial: Any = SimpleNamespace(trial_id=trial_id)
    controller: Any = None
    scheduler.on_trial_add(controller, trial)
    return scheduler.on_trial_result(controller, trial, {"epoch": 1, "val_loss": val_loss})
