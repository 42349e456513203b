"""The client as a command: wrong usage, Ctrl-C, closed pipes, full disks, its terminal and help."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mask_ray.config.client import ClientSettings
from tests.support.client_runs import Run, command, environment, start
from tests.support.interrupts import accept_sigint
from tests.support.polling import wait_until
from tests.support.prediction_server import PredictionServer
from tests.support.project import ROOT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: PATHS"),
        (["x", "--concurrency=0"], "--concurrency must be greater than or equal to 1; got '0'"),
        (["x", "--url=localhost:8000"], "--url must begin with http:// or https://; got localhost"),
        (["x", "--output=no/such.csv"], "--output must be a file that can be written: "),
        (["x", "--token-file=none"], "--token-file must be a readable file: "),
        ([""], "paths.0 must name a file or a folder; got an empty string"),
        (["x", "--colour=red"], "there is no flag --colour. --help lists all"),
    ],
)
def test_wrong_usage_is_one_line(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1


def test_ctrl_c_leaves_what_is_done_written(
    files: list[str], server: PredictionServer, tmp_path: Path
) -> None:
    server.held = b"1.jpg".__eq__
    asked = ("--url", server.url, "--concurrency=2", "--output=x.jsonl", *files)
    own = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": accept_sigint}
    with start(tmp_path, *asked, **own) as client:
        wait_until(lambda: len(server.received) == 10)
        # The row of the last answer may still be on its way; none of the others is.
        client.send_signal(signal.SIGINT)
        _, err = client.communicate(timeout=200)

    written = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    paths = [row["path"] for row in written]
    assert client.returncode == 130
    assert err == "error: stopped\n"
    assert paths in (files[:1] + files[2:], files[:1] + files[2:-1])
    assert all(row["error"] is None for row in written)


def test_a_reader_that_has_seen_enough_ends_it_quietly(
    files: list[str], server: PredictionServer, tmp_path: Path
) -> None:
    asked = ("--url", server.url, "--concurrency=1", *files)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(tmp_path, *asked, **pipes) as client:
        assert client.stdout is not None and client.stderr is not None
        client.stdout.close()
        err = client.stderr.read()
        client.wait(timeout=20)

    assert (client.returncode, err) == (1, b"")


def test_a_full_disk_is_one_line(run: Run, files: list[str]) -> None:
    done = run(*files, "--output=/dev/full")
    assert done.code == 1
    assert done.err == "error: output cannot be written: [Errno 28] No space left on device\n"


def test_a_terminal_shows_how_far_it_is(
    files: list[str], server: PredictionServer, tmp_path: Path
) -> None:
    terminal, end = pty.openpty()
    asking = command("--url", server.url, "--output=x.csv", *files)
    variables = environment(TERM="xterm", COLUMNS="100")
    with subprocess.Popen(asking, cwd=tmp_path, env=variables, stderr=end) as client:
        os.close(end)
        shown = b""
        while client.poll() is None or not shown.endswith(b"files/s\r\n"):
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # what Linux says of a terminal that nobody writes to any more
                break
    os.close(terminal)

    assert client.returncode == 0
    assert b"10/10" in shown


def test_help_names_every_flag() -> None:
    done = subprocess.run(
        command("--help"), env=environment(COLUMNS="400"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith("usage: python -m mask_ray.client PATHS [flags]\n")
    for name in set(ClientSettings.model_fields) - {"paths"}:
        assert f"--{name.replace('_', '-')} " in done.stdout
    assert "MASK_RAY_TOKEN" in done.stdout
    assert "None" not in done.stdout


def test_nothing_of_ray_is_imported() -> None:
    code = "import sys, mask_ray.client; print(*{'ray', 'mlflow', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("\n", "")
