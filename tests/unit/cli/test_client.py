"""The command-line client, before a server that answers as the test wants it."""

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from mask_ray import client
from mask_ray.config.client import ClientSettings
from tests.support.interrupts import accept_sigint
from tests.support.polling import wait_until
from tests.support.prediction_server import (
    PredictionServer,
    busy,
    prediction,
    prediction_server,
    problem,
)
from tests.support.project import ROOT

CLASSIFIED = {
    "label": "with_mask",
    "probability": 0.994,
    "probabilities": {"with_mask": 0.994, "without_mask": 0.006},
    "model": "mask-detector",
    "version": "3",
    "error": None,
}


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> str:
        (row,) = self.rows
        return row["error"]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mask_ray.client", *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PATH": "", **variables}


Run = Callable[..., Finished]


@pytest.fixture
def server() -> Iterator[PredictionServer]:
    with prediction_server() as stub:
        yield stub


@pytest.fixture
def run(
    server: PredictionServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """The client against the server, in the folder of the test's files; JSON by default."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, url: str = "", token: str = "") -> Finished:
        flags = [f"--url={url or server.url}", "--format=json"]
        monkeypatch.setattr(sys, "argv", ["client", *flags, *map(str, arguments)])
        monkeypatch.setenv("MASK_RAY_TOKEN", token)
        with pytest.raises(SystemExit) as end:
            client.main()
        return Finished(end.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Names of ten files, whose content is their name."""
    names = [f"{number}.jpg" for number in range(10)]
    for name in names:
        (tmp_path / name).write_text(name)
    return names


def test_each_file_has_a_row_with_its_prediction(
    run: Run, files: list[str], server: PredictionServer
) -> None:
    done = run(*files)

    assert done.rows == [{"path": name, **CLASSIFIED} for name in files]
    assert done.code == 0
    assert done.err.startswith("10 files: 10 classified, 0 failed, ")
    assert sorted(server.bodies) == [name.encode() for name in files]


def test_csv_parses_back(
    run: Run, files: list[str], tmp_path: Path, server: PredictionServer
) -> None:
    odd = 'a,b "c"\nd.jpg'
    (tmp_path / odd).write_text("odd")
    server.answers[b"odd"] = [problem(400, 'a, "b"')]

    done = run("--format=csv", files[0], odd)

    good, bad = csv.DictReader(io.StringIO(done.out, newline=""))
    assert list(good) == ["path", *CLASSIFIED]
    assert good["path"] == files[0]
    assert float(good["probability"]) == CLASSIFIED["probability"]
    assert json.loads(good["probabilities"]) == CLASSIFIED["probabilities"]
    assert (good["model"], good["version"], good["error"]) == ("mask-detector", "3", "")
    assert (bad["path"], bad["error"]) == (odd, '400 Bad Request: a, "b"')
    assert bad["label"] == bad["probability"] == bad["probabilities"] == ""


@pytest.mark.parametrize(
    ("output", "begins"), [("x.json", "{"), ("x.jsonl", "{"), ("x.csv", "path,"), ("x", "path,")]
)
def test_the_output_says_its_format(
    run: Run, files: list[str], tmp_path: Path, output: str, begins: str
) -> None:
    done = run("--format=auto", files[0], "--output", output)

    assert (done.code, done.out) == (0, "")
    assert (tmp_path / output).read_text().startswith(begins)


def test_rows_keep_the_order_of_the_files(
    files: list[str], server: PredictionServer, tmp_path: Path
) -> None:
    server.held = b"0.jpg".__eq__
    asking = command("--url", server.url, "--format=json", "--concurrency=2", *files)
    with subprocess.Popen(
        asking, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE
    ) as client:
        wait_until(lambda: len(server.received) == 10)
        server.released.set()
        out, _ = client.communicate(timeout=200)

    assert [json.loads(line)["path"] for line in out.splitlines()] == files
    assert server.most_at_once == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(400, "image is truncated"), "400 Bad Request: image is truncated"),
        (problem(413, "too costly"), "413 Request Entity Too Large: too costly"),
        (problem(422, "given up"), "422 Unprocessable Entity: given up"),
        (problem(500, "The server failed."), "500 Internal Server Error: The server failed."),
        (PlainTextResponse("<html>", 404), "404 Not Found"),
        (RedirectResponse("http://elsewhere/"), "307 Temporary Redirect"),
        (Response(b"[1]", 400), "400 Bad Request"),
        (PlainTextResponse("hello"), "the answer is not a prediction; is the url right?"),
        (prediction(label=None), "the answer is not a prediction; is the url right?"),
    ],
)
def test_a_bad_file_fails_alone(
    run: Run, files: list[str], server: PredictionServer, answer: Response, error: str
) -> None:
    server.answers[b"1.jpg"] = [answer]

    done = run(*files[:3])

    assert [row["error"] for row in done.rows] == [None, error, None]
    assert done.rows[1] == {"path": "1.jpg", **dict.fromkeys(CLASSIFIED), "probabilities": {}} | {
        "error": error
    }
    assert done.code == 1
    assert "3 files: 2 classified, 1 failed" in done.err
    assert len(server.received) == 3, "none was sent again"


def test_a_file_that_is_not_there_fails_alone(run: Run, files: list[str]) -> None:
    done = run("gone.jpg", files[0])
    assert [row["error"] for row in done.rows] == ["No such file or directory", None]
    assert done.code == 1


def test_a_late_answer_fails_alone(run: Run, files: list[str], server: PredictionServer) -> None:
    server.held = b"0.jpg".__eq__
    done = run("--timeout-s=0.5", *files[:2])
    assert [row["error"] for row in done.rows] == ["no answer within 0.5 s", None]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_busy_server_is_asked_again_when_it_said(
    run: Run, files: list[str], server: PredictionServer, form: str
) -> None:
    # Dates have whole seconds.
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    server.answers[b"0.jpg"] = [busy("1" if form == "seconds" else date), prediction()]

    done = run(files[0])

    assert done.rows == [{"path": "0.jpg", **CLASSIFIED}]
    first, second = server.received
    assert 0.5 < second.at_s - first.at_s < 4


def test_a_file_that_is_answered_too_late_twice_is_given_up(
    run: Run, files: list[str], server: PredictionServer
) -> None:
    server.default = lambda: problem(504, "late", **{"Retry-After": "0"})

    assert run("--retries=9", files[0]).error.startswith("504 ")
    assert len(server.received) == 2


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_server_that_stays_busy_is_given_up(
    run: Run, files: list[str], server: PredictionServer, status: int
) -> None:
    server.default = lambda: problem(status, "busy", **{"Retry-After": "0"})

    error = run("--retries=2", files[0]).error

    assert error.startswith(f"{status} ")
    assert error.endswith(": busy")
    assert len(server.received) == 3


def test_nobody_waits_longer_than_a_minute(
    run: Run, files: list[str], server: PredictionServer
) -> None:
    server.default = lambda: busy("61")
    assert run(files[0]).error == "429 Too Many Requests: All replicas are busy."
    assert len(server.received) == 1


def test_a_server_that_is_not_there_is_waited_for_once(run: Run, files: list[str]) -> None:
    done = run("--retries=1", "--concurrency=1", *files, url="http://127.0.0.1:1")

    errors = {row["error"] for row in done.rows}
    assert len(done.rows) == 10
    assert [error.partition(": ")[0] for error in errors] == ["the server is not reached"]
    assert done.err.count("is not reached") == done.err.count("trying up to 1 more times") == 1
    assert done.code == 1


class TestWaits:
    def test_are_as_long_as_asked_or_a_quarter_more(self) -> None:
        waits = [client._wait_s(5, 8.0) for _ in range(100)]
        assert min(waits) >= 8
        assert max(waits) <= 10
        assert len(set(waits)) > 50

    def test_double_up_to_a_minute(self) -> None:
        for attempt, longest in [(0, 0.25), (1, 0.5), (2, 1), (20, 60)]:
            assert longest / 2 <= client._wait_s(attempt, None) <= longest

    @pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "²"])
    def test_are_our_own_where_the_server_says_nothing_clear(self, value: str) -> None:
        response = httpx.Response(429, headers={"Retry-After": value.encode()})
        assert client._retry_after_s(response) is None


def test_a_folder_stands_for_the_images_below_it(run: Run, tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.jpg", ".cache/x.jpg", "sub/c.webp"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "empty").mkdir()

    done = run("photos", "empty", "photos/notes.txt")

    paths = ["photos/a.jpg", "photos/b.PNG", "photos/sub/c.webp", "empty", "photos/notes.txt"]
    assert [row["path"] for row in done.rows] == paths
    assert [row["error"] for row in done.rows if row["error"]] == [
        "folder without images: "
        ".avif, .bmp, .gif, .heic, .heif, .jpeg, .jpg, .png, .tif, .tiff, .webp"
    ]


def test_what_a_folder_holds_beside_images_is_counted_and_named(run: Run, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.HEIC", "notes.txt", "sub/list.csv", "@eaDir/a.jpg", "Thumbs.db"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "photos" / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "photos" / "more").symlink_to(tmp_path)

    done = run("photos")

    assert [row["path"] for row in done.rows] == ["photos/a.jpg", "photos/b.HEIC"]
    assert done.err.splitlines()[:3] == [
        "skipped links that lead nowhere: 1 (gone.jpg)",
        "skipped linked folders: 1 (more); give their own paths to include them",
        "skipped files that are not named as images: 2 (notes.txt, sub/list.csv)",
    ]


def test_a_name_may_be_anything(run: Run, tmp_path: Path) -> None:
    names = ["a,b.jpg", "[c].jpg", '"d".jpg', "é.jpg"]
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_text("x")

    done = run(*names, os.fsdecode(b"\xff.jpg"))

    assert [row["path"] for row in done.rows] == [*names, "\udcff.jpg"]


class TestToken:
    @pytest.fixture(autouse=True)
    def _guarded(self, server: PredictionServer) -> None:
        server.token = "secret"

    def test_comes_from_the_environment(self, run: Run, files: list[str]) -> None:
        assert run(files[0], token="secret\n").code == 0

    def test_comes_from_a_file_first(self, run: Run, files: list[str], tmp_path: Path) -> None:
        (tmp_path / "token").write_text("secret\n")
        flags = ("--token-file", "token", files[0])
        assert run(*flags, token="old").code == 0

    def test_that_is_missing_is_an_error_of_the_file(self, run: Run, files: list[str]) -> None:
        assert run(files[0]).error == "401 Unauthorized: A bearer token is needed."

    def test_that_no_header_can_carry_is_wrong_usage(self, run: Run, files: list[str]) -> None:
        done = run(files[0], token="se cret")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: MASK_RAY_TOKEN must hold one token")
        assert "cret" not in done.err


def test_the_threshold_is_the_servers(run: Run, files: list[str], server: PredictionServer) -> None:
    server.default = lambda: prediction(label="uncertain", model={"name": "x", "version": None})

    (row,) = run("--threshold=0.9", files[0]).rows

    assert (row["label"], row["version"]) == ("uncertain", None)
    assert server.received[0].query == "threshold=0.9"


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


def test_a_url_may_end_in_the_path(run: Run, files: list[str], server: PredictionServer) -> None:
    assert run(files[0], url=f"{server.url}/predict/").code == 0


def test_ctrl_c_leaves_what_is_done_written(
    files: list[str], server: PredictionServer, tmp_path: Path
) -> None:
    server.held = b"1.jpg".__eq__
    asking = command("--url", server.url, "--concurrency=2", "--output=x.jsonl", *files)
    with subprocess.Popen(
        asking,
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=accept_sigint,
    ) as client:
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
    asking = command("--url", server.url, "--concurrency=1", *files)
    with subprocess.Popen(
        asking, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as client:
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
