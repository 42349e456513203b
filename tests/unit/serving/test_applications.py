"""What Serve says of an application, and how one is read, deployed and ended."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from mask_ray.config import MaskRayError
from mask_ray.serving import applications
from tests.support.serve_configs import write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.mark.parametrize(
    "states",
    [
        {ReplicaState.RUNNING: 2, ReplicaState.STARTING: 1},
        {"RUNNING": 2, "STARTING": 1},  # as a Serve that runs says it
    ],
)
def test_the_replicas_of_an_application_are_counted(
    states: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = DeploymentStatusOverview(
        DeploymentStatus.UPSCALING,
        DeploymentStatusTrigger.AUTOSCALING,
        states,
        "",
    )
    application = ApplicationStatusOverview(
        ApplicationStatus.RUNNING, "", 1.0, {"Classifier": deployment}
    )
    found = SimpleNamespace(applications={"mask-detector": application})
    monkeypatch.setattr("ray.serve.status", lambda: found)

    status = applications.status("mask-detector")

    assert status is not None
    assert (status.num_running, status.num_starting) == (2, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("applications: [", "must be YAML"),
        ("a: 1", "applications is required"),
        ("[]", "serve.yaml"),
        ("applications: []", "must have one application of mask_ray.serving:build_app; it has 0"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)

    with pytest.raises(MaskRayError) as caught:
        applications.read(path)

    assert words in str(caught.value)
    with pytest.raises(MaskRayError, match=r"must be a file .*No such file"):
        applications.read(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_the_url_is_one_that_this_machine_reaches(host: str, url: str) -> None:
    assert applications.url_of(host, 8000) == url


def test_a_serve_that_ended_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise RayActorError

    monkeypatch.setattr("ray.serve.status", gone)
    monkeypatch.setattr("ray.serve.delete", gone)

    assert applications.status("mask-detector") is None
    applications.end(["mask-detector"])


def test_what_serve_rejects_is_one_line(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(_: Any) -> None:
        raise RuntimeError("Traceback\nValueError: two applications have one route_prefix")

    monkeypatch.setattr(applications, "deploy_to_serve", reject)

    with pytest.raises(MaskRayError, match=r"Serve does not take .*: two applications have one"):
        applications.deploy(applications.read(config))


def test_the_reason_of_a_failure_is_its_error() -> None:
    details = """Deploying app 'mask-detector' failed with exception:
Traceback (most recent call last):
  File "build.py", line 1, in build
    raise ApplicationError("no model: train one")
mask_ray.serving.deployment.ApplicationError: no model: train one
"""
    assert applications.reason_in(details) == "no model: train one"
    assert applications.reason_in("Failed to update the deployments ['Classifier'].\n") == (
        "Failed to update the deployments ['Classifier']."
    )
    assert applications.reason_in("") == "the application does not start"


def test_only_lines_of_its_own_replicas_are_shown() -> None:
    lines = ["no token is configured"]
    own = {"actor_name": "ServeReplica:mask-detector:Classifier", "lines": lines}

    assert applications.replica_lines(own, "mask-detector") == lines
    for other in ("ServeReplica:mask-detector-2:Classifier", "RayTrainWorker", "", None):
        assert applications.replica_lines(own | {"actor_name": other}, "mask-detector") == []
    assert applications.replica_lines({"lines": lines, "pid": "autoscaler"}, "mask-detector") == []


@pytest.mark.parametrize("num_failures", [2, 3])
def test_proxies_that_serve_replaces_as_it_starts_are_tried_again(
    num_failures: int, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def start(_: Any) -> None:
        calls.append(1)
        if len(calls) <= num_failures:
            raise RayActorError

    monkeypatch.setattr(applications, "deploy_to_serve", start)
    if num_failures == 2:
        applications.deploy(applications.read(config))
    else:
        with pytest.raises(MaskRayError, match="Serve does not start: "):
            applications.deploy(applications.read(config))
    assert len(calls) == 3
