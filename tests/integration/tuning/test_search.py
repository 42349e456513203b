"""A search: its trials, its result, and what it keeps."""

from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow import MlflowClient

from mask_ray.config import TrainSettings
from mask_ray.tuning import trials
from tests.support.ray_jobs import Job, run_here
from tests.support.tracked_runs import trial_runs


@pytest.fixture
def home(module_home: Path) -> Path:
    """One store for all tests of this module."""
    return module_home


@pytest.fixture(scope="module")
def found(cluster: dict[str, str], head_only: list[str]) -> Job:
    """A search of two trials."""
    flags = "--data synthetic:120 --grace-epochs 2 --num-trials 2 --search learning-rate"
    return run_here("jobs.tune", *head_only, *flags.split(), env=cluster)


@pytest.fixture
def nested(found: Job) -> dict[int, mlflow.entities.Run]:
    """The runs of the trials, by their numbers."""
    runs = trial_runs(found.run_id)
    assert len(runs) == 2
    return runs


def test_the_result_is_the_best_trial(found: Job, nested: dict[int, mlflow.entities.Run]) -> None:
    result = found.result
    assert result.keys() == {
        *("run_id", "best", "num_trials", "num_stopped_early", "num_failed", "seconds")
    }
    assert (result["num_trials"], result["num_stopped_early"]) == (2, 0)
    losses = [
        point.value
        for run in nested.values()
        for point in MlflowClient().get_metric_history(run.info.run_id, "val_loss")
    ]
    best = result["best"]
    assert best["val_loss"] == pytest.approx(min(losses), abs=1e-6)
    params = mlflow.get_run(best["run_id"]).data.params
    assert best["settings"].keys() == {"learning_rate"}
    assert all(params[name] == str(value) for name, value in best["settings"].items())


def test_the_best_settings_are_kept_and_nothing_is_registered(
    found: Job, nested: dict[int, mlflow.entities.Run], home: Path
) -> None:
    best = yaml.safe_load(mlflow.artifacts.load_text(f"runs:/{found.run_id}/best.yaml"))
    trial = TrainSettings(**best)
    assert trial.data == "synthetic:120" and trial.finetune_epochs == 0
    assert trials.command(trial) in found.log
    for name, value in found.result["best"]["settings"].items():
        assert best[name] == value
    assert MlflowClient().search_registered_models() == []
    assert not (home / "tune" / found.run_id).exists()


def test_a_finished_search_is_not_resumed(found: Job, cluster: dict[str, str]) -> None:
    (error,) = run_here("jobs.tune", "--resume", found.run_id, env=cluster).errors
    assert "is finished; there is nothing to resume" in error
