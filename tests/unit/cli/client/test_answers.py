"""What the client makes of answers that are late, bad or busy, and the token that it sends."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from mask_ray import client
from tests.support.client_runs import CLASSIFIED, Run
from tests.support.prediction_server import PredictionServer, busy, prediction, problem


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
