"""The pipeline as a user runs it: done once, it is not done again."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient
from ray import serve

from mask_ray import tracking
from mask_ray.config import DEFAULT_MODEL_NAME as NAME
from mask_ray.evaluation import promotion
from mask_ray.evaluation.champion_history import ChampionHistory
from mask_ray.processes import free_port
from tests.support.ray_jobs import run_here
from tests.support.serve_configs import write_config
from tests.support.tracked_runs import all_runs

STAGES = ["fetch", "inspect", "train", "evaluate", "promote", "deploy", "smoke-test"]


@pytest.fixture
def home(module_home: Path) -> Path:
    return module_home


@pytest.fixture(scope="module")
def ray_environment(module_home: Path) -> dict[str, str]:
    """Replicas look for models in the module's store."""
    return {"MASK_RAY_HOME": str(module_home)}


@pytest.fixture(scope="module")
def url() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def flags(
    cluster: dict[str, str],
    url: str,
    head_only: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[str]]:
    """Of a small pipeline that serves at a port of its own."""
    port = int(url.rpartition(":")[2])
    file = write_config(tmp_path_factory.mktemp("serve"), port)
    own = ["--data", "synthetic:120", "--smoke-images", "5", "--serve-config", str(file)]
    yield [*head_only, *own]
    serve.shutdown()


@pytest.fixture(scope="module")
def finished(cluster: dict[str, str], flags: list[str]) -> dict[str, Any]:
    """What the pipeline says at its end."""
    return run_here("jobs.pipeline", *flags, "--serve", env=cluster).result


def test_each_stage_is_done_once_and_what_it_made_is_served(
    finished: dict[str, Any], url: str
) -> None:
    found = all_runs()
    below = found[found["tags.mlflow.parentRunId"] == finished["run_id"]]
    assert list(below["tags.pipeline.stage"]) == STAGES
    assert len(found) == 1 + len(STAGES) and set(found["status"]) == {"FINISHED"}
    points = MlflowClient().get_metric_history(
        below[below["tags.pipeline.stage"] == "train"]["run_id"].iloc[0], "val_loss"
    )
    assert {point.step for point in points} == {0, 1}

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


def test_done_before_it_only_says_so(
    finished: dict[str, Any], cluster: dict[str, str], flags: list[str]
) -> None:
    before = Counter(all_runs()["tags.pipeline.stage"].dropna())
    again = run_here("jobs.pipeline", *flags, env=cluster)
    assert again.result["model_version"] == "1" and again.result["seconds"] == {}
    assert again.log.count(": skipped, done in run ") == len(STAGES)
    assert Counter(all_runs()["tags.pipeline.stage"].dropna()) == before


def test_a_failure_is_one_line_with_the_stage(
    finished: dict[str, Any], cluster: dict[str, str], flags: list[str]
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    failed = run_here("jobs.pipeline", *flags, "--url", nobody, env=cluster)
    assert failed.returncode == 1
    assert len(failed.errors) == 1 and "Traceback" not in failed.log
    assert failed.errors[0].startswith(
        f"error: stage deploy failed: nothing answers at {nobody}; start it with `serve run "
    )


def test_a_version_is_promoted_by_hand_and_taken_back(
    finished: dict[str, Any], cluster: dict[str, str], flags: list[str]
) -> None:
    left = run_here("jobs.pipeline", *flags, "--no-promote", env=cluster).result
    assert (left["model_version"], left["promoted"]) == ("1", False)

    client = MlflowClient()
    assert client.copy_model_version(finished["model_uri"], NAME).version == 2
    compared = run_here("jobs.promote", "2", "--promotion-margin", "1", env=cluster).result
    assert not compared["promoted"]
    assert tracking.aliases(NAME) == {"champion": "1"}
    assert compared["champion"]["num_images"] == compared["challenger"]["num_images"] > 0
    promotion.force_promotion(NAME, "2")
    assert tracking.aliases(NAME) == {"champion": "2", "previous": "1"}
    assert run_here("jobs.promote", "--rollback", env=cluster).result["version"] == "1"
    assert tracking.aliases(NAME) == {"champion": "1"}
