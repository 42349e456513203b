"""A run that ended before it had registered a model is resumed."""

from pathlib import Path
from typing import Any, NoReturn

import mlflow
import pytest

from mask_ray.config import MaskRayError, tracking_uri
from mask_ray.training import export
from tests.support.ray_jobs import Job, run_here


@pytest.fixture
def home(module_home: Path) -> Path:
    return module_home


@pytest.fixture(scope="module")
def failed(cluster: dict[str, str], head_only: list[str]) -> Job:
    """A run that fails after its last epoch."""

    def fail(*given: Any) -> NoReturn:
        raise MaskRayError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "choose", fail)
        return run_here("jobs.train", *head_only, "--data", "synthetic:80", env=cluster)


def status_and_epochs(run_id: str) -> tuple[str, list[int]]:
    mlflow.set_tracking_uri(tracking_uri())
    points = mlflow.MlflowClient().get_metric_history(run_id, "val_loss")
    return str(mlflow.get_run(run_id).info.status), [point.step for point in points]


def test_it_goes_on_after_its_last_epoch_and_is_not_resumed_again(
    failed: Job, cluster: dict[str, str]
) -> None:
    (error,) = failed.errors
    assert error.startswith("error: the disk is full")
    assert status_and_epochs(failed.run_id) == ("FAILED", [0, 1])

    resumed = run_here("jobs.train", "--resume", failed.run_id, env=cluster)
    assert resumed.result["run_id"] == failed.run_id
    assert status_and_epochs(failed.run_id) == ("FINISHED", [0, 1])

    again = run_here("jobs.train", "--resume", failed.run_id, env=cluster)
    (error,) = again.errors
    assert f"run {failed.run_id} is finished; there is nothing to resume" in error
