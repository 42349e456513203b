"""What `make serve` says, before a Serve that is stood in for."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mask_ray import cli, serve
from mask_ray.serving import applications
from mask_ray.serving.applications import Status
from tests.support.serve_configs import write_config

RUNS = Status(is_running=True, failure="", details="", deployed_at_s=1.0)
DEPLOYS = Status(is_running=False, failure="", details="", deployed_at_s=1.0)
SCALES_UP = replace(RUNS, num_running=1, num_starting=1)
MODEL = {"name": "mask-detector", "version": "3"}


class StubServe:
    """Answers what a test says, one answer a poll; the last one stays."""

    def __init__(self) -> None:
        self.listens_on: tuple[str, int] | None = None
        self.running: list[str] = []
        self.statuses: list[Status | None] = [RUNS]
        self.models: list[dict[str, str] | None] = [MODEL]
        self.refused: list[dict[str, str]] = []
        self.ended: list[list[str]] = []
        self.num_naps = 0
        self.stops_after_naps = 5

    def status(self, name: str) -> Status | None:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def health(self, url: str) -> dict[str, Any] | None:
        model = self.models.pop(0) if len(self.models) > 1 else self.models[0]
        return None if model is None else {"model": model, "refused": self.refused}

    def nap(self, seconds: float) -> None:
        """Ctrl-C comes after some."""
        self.num_naps += 1
        if self.num_naps > self.stops_after_naps:
            raise KeyboardInterrupt


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServe]:
    stub = StubServe()
    monkeypatch.setattr(cli, "connect", lambda instead: None)
    monkeypatch.setattr(serve, "started_ray", lambda: False)
    monkeypatch.setattr(serve, "on_worker_output", lambda handler, of_all_jobs: None)
    monkeypatch.setattr(serve, "_health", stub.health)
    monkeypatch.setattr(serve, "time", SimpleNamespace(sleep=stub.nap, monotonic=time.monotonic))
    monkeypatch.setattr(applications, "listens_on", lambda: stub.listens_on)
    monkeypatch.setattr(applications, "running", lambda: stub.running)
    monkeypatch.setattr(applications, "status", stub.status)
    monkeypatch.setattr(applications, "deploy", lambda file: None)
    monkeypatch.setattr(applications, "end", stub.ended.append)
    # The command sets variables of Ray.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    handler = signal.getsignal(signal.SIGTERM)
    yield stub
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def run(
    config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, list[str], list[str]]:
    """Exit code, and lines on standard output and error."""
    monkeypatch.setattr("sys.argv", ["serve", "--serve-config", str(config)])
    code = 0
    try:
        serve.main()
    except SystemExit as ended:
        code = int(str(ended.code))
    out, err = capfd.readouterr()
    return code, out.splitlines(), err.splitlines()


def url_of(config: Path) -> str:
    return applications.read(config).url


def test_it_says_when_and_where_it_is_ready_and_how_it_ends(
    stub: StubServe, config: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stub.statuses = [DEPLOYS, RUNS]
    stub.models = [None, MODEL]

    code, out, err = run(config, monkeypatch, capfd)

    assert (code, err) == (0, [])
    assert out == [
        "deploying models:/mask-detector@champion",
        f"ready at {url_of(config)}, version 3",
        "stopping: requests that are running are answered first",
        "stopped",
    ]
    assert stub.ended == [["mask-detector"]]


def test_it_names_each_version_that_answers_next(
    stub: StubServe, config: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stub.models = [MODEL, MODEL, MODEL | {"version": "4"}, None, MODEL | {"version": "4"}]

    _, out, _ = run(config, monkeypatch, capfd)

    url = url_of(config)
    assert out[1:5] == [
        f"ready at {url}, version 3",
        f"{url}: version 4",
        f"{url}: not ready",
        f"{url}: version 4",
    ]


def test_a_version_that_cannot_be_served_is_said_once_with_the_reason(
    stub: StubServe, config: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stub.refused = [{"alias": "champion", "version": "4", "reason": "cannot be loaded"}]

    _, out, _ = run(config, monkeypatch, capfd)

    assert out[1:-2] == [
        f"ready at {url_of(config)}, version 3",
        "version 4 (champion) cannot be served, version 3 stays: cannot be loaded",
    ]


def test_a_service_that_runs_is_replaced_with_a_word(
    stub: StubServe, config: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stub.running = ["mask-detector", "other"]
    stub.listens_on = applications.read(config).host_and_port

    _, out, _ = run(config, monkeypatch, capfd)

    assert out[:2] == [
        "replacing mask-detector, which this Ray serves; Ctrl-C then ends it",
        f"ending other, which this Ray serves and {config} does not name",
    ]


@pytest.mark.parametrize("was_running", [False, True])
def test_a_service_that_cannot_start_is_one_line(
    was_running: bool, stub: StubServe, config: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """What ran before is left alone: Serve still has it."""
    stub.statuses = [DEPLOYS, Status(False, "no model models:/mask-detector@champion", "...", 1.0)]
    stub.running = ["mask-detector"] if was_running else []
    stub.models = [None]

    code, _, err = run(config, monkeypatch, capfd)

    assert (code, err) == (1, ["error: no model models:/mask-detector@champion"])
    assert stub.ended == [[] if was_running else ["mask-detector"]]


def test_a_port_that_is_taken_is_one_line(
    stub: StubServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = write_config(tmp_path, port)
        code, out, err = run(config, monkeypatch, capfd)

    assert (code, out) == (1, [])
    assert err == [
        f"error: the service cannot listen on port {port} of 127.0.0.1: Address already in use. "
        f"End what listens there, or change http_options in {config}"
    ]
    assert stub.ended == []


def test_a_serve_elsewhere_in_this_ray_is_one_line(
    stub: StubServe, config: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stub.listens_on = ("127.0.0.1", 1)

    code, _, (line,) = run(config, monkeypatch, capfd)

    assert code == 1
    assert line.startswith("error: this Ray serves at http://127.0.0.1:1 already")
    assert "serve shutdown -y" in line


@pytest.mark.parametrize(
    ("status", "words"),
    [(None, "was ended by another command"), (Status(True, "", "", 2.0), "was deployed again")],
)
def test_a_service_that_another_command_takes_ends_this_one(
    status: Status | None,
    words: str,
    stub: StubServe,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    stub.statuses = [RUNS, status]

    code, _, (line,) = run(config, monkeypatch, capfd)

    assert code == 1
    assert words in line
    assert stub.ended == []


def test_a_deploy_that_fails_says_that_the_one_before_goes_on(
    stub: StubServe, config: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stub.running = ["mask-detector"]
    stub.listens_on = applications.read(config).host_and_port
    stub.statuses = [replace(DEPLOYS, failure="x.onnx cannot be loaded")]

    code, _, (line,) = run(config, monkeypatch, capfd)

    assert code == 1
    assert line == (
        f"error: x.onnx cannot be loaded -- version 3 goes on answering at {url_of(config)}"
    )
    assert stub.ended == [[]]


def test_replicas_that_do_not_answer_are_one_line(
    stub: StubServe, config: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stub.models = [None]
    monkeypatch.setattr(serve, "_ANSWER_WITHIN_S", 0)

    code, _, (line,) = run(config, monkeypatch, capfd)

    assert code == 1
    assert "nothing answers at http://127.0.0.1:" in line


def test_a_service_that_waits_says_for_what(
    stub: StubServe, config: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stub.statuses = [DEPLOYS, DEPLOYS, RUNS]
    monkeypatch.setattr(serve, "_REMIND_S", 0)

    _, out, _ = run(config, monkeypatch, capfd)

    assert out[1].startswith("still deploying: a replica needs 1 free CPU and ")


def test_more_replicas_that_do_not_start_are_said_once_with_what_they_need(
    stub: StubServe, config: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    # As beside a training, which holds the CPUs to its end.
    stub.statuses = [RUNS, SCALES_UP]
    stub.stops_after_naps = 30

    code, out, err = run(config, monkeypatch, capfd)

    (line,) = [line for line in out if "replica" in line]
    assert line.startswith(
        "1 of 2 replicas not started after 30 s: a replica needs 1 free CPU and "
    )
    assert (code, err) == (0, [])


def test_replicas_that_start_in_time_need_no_word(
    stub: StubServe, config: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stub.statuses = [RUNS, *[SCALES_UP] * 3, RUNS, *[SCALES_UP] * 3, RUNS]
    stub.stops_after_naps = 30

    _, out, _ = run(config, monkeypatch, capfd)

    assert not [line for line in out if "replica" in line]


def test_a_wrong_setting_is_found_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    config = write_config(tmp_path, max_batch_size=0)

    code, _, (line,) = run(config, monkeypatch, capfd)

    assert code == 1
    assert line == (f"error: {config}: max_batch_size must be greater than or equal to 1; got 0")
