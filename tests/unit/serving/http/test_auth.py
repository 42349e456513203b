"""Who is answered: tokens, where they come from, and what is logged of them."""

import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from mask_ray.serving.http.app import http_app
from mask_ray.serving.http.auth import (
    TOKENS_VARIABLE,
    UNNAMED,
    Guard,
    TokenError,
    tokens_of_environment,
)
from mask_ray.serving.observability.exchanges import Exchange
from tests.support.guarded_app import FIRST, PHOTO, SECOND, THIRD, paths_of, predict
from tests.support.local_backend import LocalBackend, request
from tests.support.prediction_server import running

OPEN_PATHS = {
    "/",
    "/docs",
    "/docs/init.js",
    "/docs/swagger-ui-bundle.js",
    "/docs/swagger-ui.css",
    "/healthz",
    "/livez",
    "/openapi.json",
    "/readyz",
    "/v2/health/live",
    "/v2/health/ready",
}


def test_every_route_but_the_open_ones_asks_for_a_token(guarded: FastAPI) -> None:
    asking = {
        path
        for method, path in paths_of(guarded)
        if request(guarded, method, path).status_code == 401
    }
    paths = {path for _, path in paths_of(guarded)}

    assert {"/predict", "/v2/models/tiny/infer", "/v2"} <= asking
    assert paths - asking == OPEN_PATHS | {path for path in paths if path.startswith("/web/")}


@pytest.mark.parametrize("authorization", [f"Bearer {FIRST}", f"bearer {SECOND}"])
def test_each_of_several_tokens_is_valid(guarded: FastAPI, authorization: str) -> None:
    assert predict(guarded, authorization).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        f"Bearer {THIRD}",
        f"Bearer {FIRST[:-1]}",
        f"Bearer {FIRST}, {SECOND}",
        f"Bearer phone-app:{FIRST}",
        "Bearer \xff",
        "Bearer" + " x" * 999,
    ],
)
def test_any_other_token_is_refused(guarded: FastAPI, authorization: str) -> None:
    response = request(
        guarded,
        "POST",
        "/predict",
        content=PHOTO,
        headers=[(b"authorization", authorization.encode("latin-1"))],
    )

    assert response.status_code == response.json()["status"] == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Basic Zmlyc3Q6", "first"]
)
def test_no_token_is_refused(guarded: FastAPI, authorization: str | None) -> None:
    response = predict(guarded, authorization)

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


def test_under_v2_the_refusal_has_the_form_of_the_protocol(guarded: FastAPI) -> None:
    response = request(guarded, "POST", "/v2/models/tiny/infer", content=b"{}")

    assert (response.status_code, response.json()) == (401, {"error": "A bearer token is needed."})


def test_a_refused_body_is_not_read(guarded: FastAPI) -> None:
    async def unread() -> Any:
        raise AssertionError("the body was read")
        yield b""

    assert request(guarded, "POST", "/predict", content=unread()).status_code == 401


def test_tokens_of_a_file_are_read_again_when_it_changes(model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    old, new = f"old:{FIRST}", f"new:{SECOND}"
    file.write_text(f"# of the phone app\n{old}\n\n")
    app = http_app(LocalBackend(model_path, token_file=file))

    def statuses() -> tuple[int, int]:
        asked = [predict(app, f"Bearer {token}") for token in (FIRST, SECOND)]
        return asked[0].status_code, asked[1].status_code

    assert statuses() == (200, 401)
    file.write_text(f"{old}\n{new}\n")
    assert statuses() == (200, 200)
    (tmp_path / "next").write_text(f"{new}\n")
    (tmp_path / "next").replace(file)
    assert statuses() == (401, 200)


def test_a_file_that_is_gone_or_empty_lets_nobody_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    file.write_text(FIRST)
    guard = Guard(token_file=file)

    file.unlink()
    assert [guard.caller_of(FIRST), guard.caller_of("")] == [None, None]
    file.write_text("")
    assert guard.caller_of("") is None
    assert guard.is_on
    assert "no token of token_file is valid until the file is fixed" in caplog.text
    file.write_text(FIRST)
    assert guard.caller_of(FIRST) == UNNAMED
    assert FIRST not in caplog.text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "must hold at least one token; got none"),
        (" ", "must hold at least one token; got none"),
        (",", "must hold at least one token; got none"),
        (f"{FIRST},b\u00e4d-and-long-enough-as-such", "number 2 must be a token of letters"),
        ("two words-of-22-characters", "number 1 must be a token of letters"),
        (f"bad name:{FIRST}", "number 1 must be a token of letters"),
        (f"{FIRST},{SECOND[:21]}", "number 2 must be a token of at least 22 .* it has 21"),
        ("name:short", "number 1 must be a token of at least 22 .* it has 5"),
    ],
)
def test_tokens_that_can_be_none_are_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv(TOKENS_VARIABLE, value)

    with pytest.raises(TokenError, match=f"^MASK_RAY_TOKENS.*{message}") as caught:
        tokens_of_environment()

    for secret in filter(None, (entry.strip() for entry in value.split(","))):
        assert secret not in str(caught.value)


def test_the_log_names_who_asked_and_counts_who_may_not(model_path: Path, tokens: None) -> None:
    seen: list[Exchange] = []
    app = http_app(LocalBackend(model_path), seen.append)

    for authorization in (f"Bearer {FIRST}", f"Bearer {SECOND}", f"Bearer {THIRD}", None):
        predict(app, authorization)

    notes = [{k: v for k, v in e.notes.items() if k in ("caller", "login")} for e in seen]
    assert notes == [
        {"caller": "phone-app"},
        {"caller": UNNAMED},
        {"login": "invalid"},
        {"login": "missing"},
    ]


def test_tokens_are_never_logged(guarded: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    predict(guarded, f"Bearer {FIRST}")
    response = predict(guarded, f"Bearer {THIRD}")

    logged = "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("mask_ray")
    )
    for token in (FIRST, SECOND, THIRD):
        assert token not in logged + response.text


def test_the_documentation_has_a_button_for_the_token(guarded: FastAPI) -> None:
    described = request(guarded, "GET", "/openapi.json").json()

    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert described["paths"]["/predict"]["post"]["security"] == [{"token": []}]
    assert "security" not in described["paths"]["/healthz"]["get"]
    assert "openapi.json" in request(guarded, "GET", "/docs/init.js").text


def test_over_real_http_the_refusal_ends_the_upload(guarded: FastAPI) -> None:
    with running(guarded) as url:
        response = httpx.post(f"{url}/predict", content=bytes(5_000_000), timeout=10)

    assert response.status_code == 401
