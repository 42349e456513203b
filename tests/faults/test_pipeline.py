"""The pipeline killed in every stage: resumed, it does nothing twice."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient
from ray import serve

from mask_ray import tracking
from mask_ray.config import DEFAULT_MODEL_NAME as NAME
from mask_ray.evaluation.champion_history import ChampionHistory
from mask_ray.processes import free_port
from tests.support.ray_jobs import SMALL, run_job
from tests.support.serve_configs import write_config
from tests.support.tracked_runs import all_runs

STAGES = ["fetch", "inspect", "train", "evaluate", "promote", "deploy", "smoke-test"]
# What it says when it is killed, one time after the other.
KILLED_AT = [
    "stage fetch: starts",
    "stage inspect: starts",
    "scratch 1/1  loss",
    "registered as version 1 of",
    "stage evaluate: starts",
    "stage promote: starts",
    "serving at http://127.0.0.1",
    "stage smoke-test: starts",
]


@pytest.fixture
def home(module_home: Path) -> Path:
    return module_home


@pytest.fixture(scope="module")
def url() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def flags(
    cluster: dict[str, str], url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """Of a small pipeline that serves at a port of its own."""
    port = int(url.rpartition(":")[2])
    file = write_config(tmp_path_factory.mktemp("serve"), port)
    own = ["--data", "synthetic:120", "--finetune-epochs", "1", "--smoke-images", "5"]
    yield [*own, *SMALL, "--serve-config", str(file)]
    serve.shutdown()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()


@pytest.fixture(scope="module")
def finished(cluster: dict[str, str], flags: list[str]) -> dict[str, Any]:
    """What the pipeline tells at its end, after it was killed once in each stage."""
    for line in KILLED_AT:
        killed = run_job("jobs.pipeline", *flags, "--serve", env=cluster, events={line: kill})
        assert killed.returncode == -9
    return run_job("jobs.pipeline", *flags, "--serve", env=cluster).result


def test_killed_in_every_stage_it_does_nothing_twice_and_loses_nothing(
    finished: dict[str, Any], url: str
) -> None:
    found = all_runs()
    below = found[found["tags.mlflow.parentRunId"] == finished["run_id"]]
    assert list(below["tags.pipeline.stage"]) == STAGES
    assert len(found) == 1 + len(STAGES) and set(found["status"]) == {"FINISHED"}
    points = MlflowClient().get_metric_history(
        below[below["tags.pipeline.stage"] == "train"]["run_id"].iloc[0], "val_loss"
    )
    assert {point.step for point in points} == {0}

    versions = MlflowClient().search_model_versions(f"name='{NAME}'")
    assert [version.version for version in versions] == [1]
    assert versions[0].tags["promotion.decision"] == "promoted"
    assert json.loads(versions[0].tags["promotion.challenger"])["version"] == "1"
    assert tracking.aliases(NAME) == {"champion": "1"}
    history = ChampionHistory(tracking.RegisteredModel(NAME)).entries()
    assert [(entry.event, entry.version) for entry in history] == [("promoted", "1")]

    assert (finished["promoted"], finished["served_version"]) == (True, "1")
    assert httpx.get(f"{url}/healthz").json()["model"] == {"name": NAME, "version": "1"}
    (smoke,) = (s for s in below.to_dict("records") if s["tags.pipeline.stage"] == "smoke-test")
    assert smoke["metrics.num_images"] == 5
    assert smoke["metrics.largest_difference"] < 1e-3
