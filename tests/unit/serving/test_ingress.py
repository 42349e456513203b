"""How HTTP gets in: the environment for Serve, and what becomes of HAProxy's configuration."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mask_ray.serving import haproxy, ingress
from mask_ray.serving.haproxy import error_response, find_binary, tighten, write_errors

# In the form that Ray gives it.
CONFIG = """global
    stats socket /tmp/admin.sock mode 666 level admin expose-fd listeners
    maxconn 64
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 25s
    errorfile 502 /tmp/500.http
    errorfile 503 /tmp/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind *:8000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
listen stats
  bind *:8404
  stats enable
"""


@pytest.fixture
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_HAPROXY_RETRIES"):
        monkeypatch.delenv(name, raising=False)


def test_only_the_service_is_for_other_machines(tmp_path: Path) -> None:
    lines = [line.strip() for line in tighten(CONFIG, tmp_path).splitlines()]

    binds = [line for line in lines if line.startswith("bind")]
    assert binds == ["bind 127.0.0.1:9101", "bind *:8000", "bind 127.0.0.1:8404"]
    assert "stats socket /tmp/admin.sock mode 600 level admin expose-fd listeners" in lines


def test_tightening_twice_changes_nothing(tmp_path: Path) -> None:
    once = tighten(CONFIG, tmp_path)

    assert tighten(once, tmp_path) == once


def test_haproxy_takes_the_configuration(tmp_path: Path) -> None:
    binary = find_binary()
    if binary is None:
        pytest.skip("needs haproxy")
    write_errors(tmp_path)
    path = tmp_path / "haproxy.cfg"
    path.write_text(tighten(CONFIG, tmp_path))

    checked = subprocess.run([binary, "-c", "-f", path], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


def test_errors_are_problems_and_say_which_to_try_again() -> None:
    head, _, body = error_response(503).decode().partition("\r\n\r\n")

    assert head.startswith("HTTP/1.1 503 Service Unavailable\r\n")
    assert f"Content-Length: {len(body)}" in head.split("\r\n")
    assert "Retry-After: 1" in head.split("\r\n")
    assert "Content-Type: application/problem+json" in head.split("\r\n")
    assert json.loads(body)["status"] == 503
    assert b"Retry-After" not in error_response(400)


@pytest.mark.usefixtures("_unset")
def test_ray_keeps_idle_processes_even_while_no_cpu_is_free() -> None:
    name = "RAY_num_workers_soft_limit"
    assert int(ingress.environment()[name]) > (os.cpu_count() or 1)


@pytest.mark.usefixtures("_unset")
def test_ray_looks_for_new_log_files_twice_a_second() -> None:
    code = (
        "from ray._private import log_monitor as m; print(m.RAY_LOG_MONITOR_MANY_FILES_THRESHOLD)"
    )
    command = [sys.executable, "-c", code]
    env = os.environ | ingress.environment()
    printed = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "0"


def test_a_shell_takes_the_environment() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "mask_ray.ingress"], capture_output=True, text=True, check=True
    ).stdout

    lines = [shlex.split(line) for line in printed.splitlines()]
    assert {line[0] for line in lines} == {"export"}
    assert dict(line[1].split("=", 1) for line in lines) == ingress.environment()


@pytest.mark.usefixtures("_unset")
def test_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_RETRIES", "7")

    assert ingress.environment()["RAY_SERVE_HAPROXY_RETRIES"] == "7"


@pytest.mark.usefixtures("_unset")
def test_without_haproxy_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(haproxy, "find_binary", lambda: None)

    variables = ingress.environment()

    assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert not variables.keys() & ingress.THROUGHPUT.keys()
    assert capsys.readouterr().err.startswith("warning: haproxy is not found")
    assert ingress.environment(wants_haproxy=False) == variables
    assert capsys.readouterr().err == ""


def test_ports_of_serve_that_are_taken_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "is_free", lambda port: port != 8404)

    (moved,) = ingress.other_free_ports().items()

    assert moved[0] == "RAY_SERVE_HAPROXY_STATS_PORT"
    assert moved[1] != "8404"
