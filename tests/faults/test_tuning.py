"""A search whose driver is killed, and which is resumed."""

import subprocess
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow import MlflowClient

from mask_ray.config import TrainSettings
from mask_ray.tuning import trials
from tests.support.ray_jobs import SMALL, Job, kill_one, run_job
from tests.support.tracked_runs import trial_runs


@pytest.fixture
def home(module_home: Path) -> Path:
    """One store for all tests of this module."""
    return module_home


def kill_driver(process: subprocess.Popen[str]) -> None:
    process.kill()


@pytest.fixture(scope="module")
def interrupted(cluster: dict[str, str]) -> Job:
    """A search whose first trial fails, and that is killed in its third."""
    flags = "--data synthetic:120 --finetune-epochs 2 --grace-epochs 2 --num-trials 3"
    return run_job(
        "jobs.tune",
        *(*flags.split(), "--max-failures", "0", *SMALL),
        env=cluster,
        events={
            "training on 1 workers": lambda _: kill_one("RayTrainWorker"),
            "trial 2 epoch ": kill_driver,
        },
    )


@pytest.fixture(scope="module")
def resumed(interrupted: Job, cluster: dict[str, str]) -> Job:
    return run_job("jobs.tune", "--resume", interrupted.run_id, env=cluster)


@pytest.fixture
def nested(resumed: Job) -> dict[int, mlflow.entities.Run]:
    """The runs of the trials, by their numbers."""
    runs = trial_runs(resumed.run_id)
    assert len(runs) == 3
    return runs


def test_a_killed_search_goes_on_with_what_is_unfinished(
    interrupted: Job, resumed: Job, nested: dict[int, mlflow.entities.Run]
) -> None:
    assert interrupted.returncode == -9
    assert resumed.result["run_id"] == interrupted.run_id
    assert [f"trial {number}: " in resumed.log for number in range(3)] == [False, False, True]
    epochs = MlflowClient().get_metric_history(nested[1].info.run_id, "val_loss")
    assert [point.step for point in epochs] == [0, 1]
    epochs = MlflowClient().get_metric_history(nested[2].info.run_id, "val_loss")
    assert {point.step for point in epochs} == {0, 1}


def test_a_failed_trial_does_not_end_the_search(
    resumed: Job, nested: dict[int, mlflow.entities.Run]
) -> None:
    statuses = {number: run.info.status for number, run in nested.items()}
    assert statuses == {0: "FAILED", 1: "FINISHED", 2: "FINISHED"}
    assert mlflow.get_run(resumed.run_id).info.status == "FINISHED"
    assert resumed.result["num_failed"] == 1


def test_the_result_is_the_best_trial(resumed: Job, nested: dict[int, mlflow.entities.Run]) -> None:
    result = resumed.result
    assert result.keys() == {
        *("run_id", "best", "num_trials", "num_stopped_early", "num_failed", "seconds")
    }
    assert (result["num_trials"], result["num_stopped_early"]) == (3, 0)
    losses = [
        point.value
        for run in (nested[1], nested[2])
        for point in MlflowClient().get_metric_history(run.info.run_id, "val_loss")
    ]
    best = result["best"]
    assert best["val_loss"] == pytest.approx(min(losses), abs=1e-6)
    params = mlflow.get_run(best["run_id"]).data.params
    assert best["settings"].keys() == {"learning_rate", "augmentation", "warmup_epochs"}
    assert all(params[name] == str(value) for name, value in best["settings"].items())


def test_the_best_settings_are_kept_and_nothing_is_registered(
    resumed: Job, nested: dict[int, mlflow.entities.Run], home: Path
) -> None:
    best = yaml.safe_load(mlflow.artifacts.load_text(f"runs:/{resumed.run_id}/best.yaml"))
    trial = TrainSettings(**best)
    assert trial.data == "synthetic:120" and trial.finetune_epochs == 2
    assert trials.command(trial) in resumed.log
    for name, value in resumed.result["best"]["settings"].items():
        assert best[name] == value
    assert MlflowClient().search_registered_models() == []
    assert not (home / "tune" / resumed.run_id).exists()


def test_a_finished_search_and_a_training_run_are_not_resumed(
    resumed: Job, cluster: dict[str, str]
) -> None:
    (error,) = run_job("jobs.tune", "--resume", resumed.run_id, env=cluster).errors
    assert "is finished; there is nothing to resume" in error
