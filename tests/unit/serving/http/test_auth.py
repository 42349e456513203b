"""Who is answered: tokens, origins, and what an answer gives away."""

import logging
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.routing import Route

from mask_ray.config import ServeSettings
from mask_ray.serving import deployment
from mask_ray.serving.deployment import ApplicationError, build_app
from mask_ray.serving.http.app import http_app
from mask_ray.serving.http.auth import (
    TOKENS_VARIABLE,
    UNNAMED,
    Guard,
    Token,
    TokenError,
    tokens_of_environment,
)
from mask_ray.serving.http.rate_limits import RateLimits
from mask_ray.serving.observability.exchanges import Exchange
from tests.support import image_files
from tests.support.local_backend import LocalBackend, request
from tests.support.onnx_files import write_classifier
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
PHOTO = image_files.jpeg()
FIRST, SECOND, THIRD = (f"{name}-of-22-characters" for name in ("first", "second", "third"))


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "tiny.onnx")


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKENS_VARIABLE, f"phone-app:{FIRST}, {SECOND}")


@pytest.fixture
def guarded(model_path: Path, tokens: None) -> FastAPI:
    return http_app(LocalBackend(model_path))


def predict(app: FastAPI, authorization: str | None = None, **headers: str) -> httpx.Response:
    if authorization is not None:
        headers["authorization"] = authorization
    return request(app, "POST", "/predict", content=PHOTO, headers=headers)


def paths_of(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every route, with parameters filled in."""
    routes = [route for route in app.routes if isinstance(route, Route | APIRoute)]
    described = request(app, "GET", "/openapi.json").json()["paths"]
    found = [(method.upper(), path) for path, methods in described.items() for method in methods]
    found += [(method, route.path) for route in routes for method in route.methods or ()]
    return [
        (method, path.replace("{name}", "tiny").replace("{version}", "1"))
        for method, path in sorted(set(found))
    ]


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


def test_a_variable_that_is_empty_stops_the_deploy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKENS_VARIABLE, "")
    with pytest.raises(ApplicationError, match="MASK_RAY_TOKENS must hold at least one token"):
        build_app({})


def test_tokens_are_needed_where_the_settings_say_so(
    monkeypatch: pytest.MonkeyPatch, model_path: Path
) -> None:
    with pytest.raises(ApplicationError, match=r"require_token is on: .*; got no token"):
        build_app({"require_token": True})
    with pytest.raises(TokenError, match="require_token is on"):
        http_app(LocalBackend(model_path, require_token=True))
    monkeypatch.setenv(TOKENS_VARIABLE, FIRST)
    assert predict(http_app(LocalBackend(model_path, require_token=True))).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "gpu-node", "", "127.0.0.1.example"])
def test_nothing_listens_beyond_loopback_without_a_token(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(deployment, "serve_http_host", lambda: host)
    with pytest.raises(ApplicationError, match="listens beyond this machine needs a token: set "):
        build_app({})
    Guard((Token("app", b""),)).check_exposure(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", None])
def test_on_loopback_a_service_may_do_without(host: str | None) -> None:
    guard = Guard()
    guard.check_exposure(host)
    assert not guard.is_on


def test_tokens_travel_with_the_deployment(
    monkeypatch: pytest.MonkeyPatch, model_path: Path
) -> None:
    monkeypatch.setenv(TOKENS_VARIABLE, f"phone-app:{FIRST}")
    application = build_app({"model_uri": str(model_path)})
    monkeypatch.delenv(TOKENS_VARIABLE)

    bound: Any = application._bound_deployment.init_args
    settings, _, tokens = bound
    assert FIRST not in repr(bound)
    app = http_app(LocalBackend(model_path), guard=Guard.of(settings, tokens))
    assert [predict(app, a).status_code for a in (None, f"Bearer {FIRST}")] == [401, 200]


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


def test_each_name_has_its_own_rate(model_path: Path, tokens: None) -> None:
    app = http_app(LocalBackend(model_path, rate_limits={"phone-app": 0.001}))

    statuses = [predict(app, f"Bearer {token}").status_code for token in (FIRST, FIRST, SECOND)]
    refused = request(app, "GET", "/v2", headers={"authorization": f"Bearer {FIRST}"})

    assert statuses == [200, 429, 200]
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 1000


def test_a_rate_for_a_name_that_no_token_has_is_refused(model_path: Path, tokens: None) -> None:
    with pytest.raises(TokenError, match=r"names of tokens \(phone-app, unnamed\); got phone-ap$"):
        http_app(LocalBackend(model_path, rate_limits={"phone-ap": 1}))
    with pytest.raises(ValidationError, match="must be requests per second above 0; got 0 of a"):
        ServeSettings(rate_limits={"a": 0})


def test_a_rate_admits_a_second_of_requests_at_once_and_then_its_share() -> None:
    now = 100.0
    limits = RateLimits({"app": 4}, clock=lambda: now)

    assert [limits.wait_s("app") > 0 for _ in range(6)] == [False] * 4 + [True] * 2
    assert limits.wait_s("app") == pytest.approx(0.25)
    now += 0.25
    assert [limits.wait_s("app") > 0 for _ in range(2)] == [False, True]
    now += 3600
    assert [limits.wait_s("app") > 0 for _ in range(5)] == [False] * 4 + [True]
    assert limits.wait_s("other") == 0


def test_a_token_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ApplicationError, match=r"token_file .*missing cannot be read: No such"):
        build_app({"token_file": str(tmp_path / "missing")})
    (tmp_path / "empty").write_text("# none\n")
    with pytest.raises(ApplicationError, match=r"token_file .*empty must hold at least one token"):
        build_app({"token_file": str(tmp_path / "empty")})
    with pytest.raises(ApplicationError, match="must be an absolute path"):
        build_app({"token_file": "tokens"})


def test_without_tokens_everyone_is_answered_and_the_log_says_so(
    model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not os.environ.get(TOKENS_VARIABLE)
    app = http_app(LocalBackend(model_path))

    assert [predict(app).status_code for _ in range(2)] == [200, 200]
    assert caplog.text.count("no token is configured") == 1


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


PREFLIGHT = {"origin": "https://app.example.org", "access-control-request-method": "POST"}


def test_other_origins_are_not_allowed_by_default(model_path: Path) -> None:
    app = http_app(LocalBackend(model_path))

    answers = [
        predict(app, origin="https://app.example.org"),
        request(app, "OPTIONS", "/predict", headers=PREFLIGHT),
    ]

    for response in answers:
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_origins_that_are_configured_are_allowed(model_path: Path, tokens: None) -> None:
    app = http_app(LocalBackend(model_path, cors_origins=["https://app.example.org"]))

    preflight = request(
        app,
        "OPTIONS",
        "/predict",
        headers=PREFLIGHT | {"access-control-request-headers": "authorization,content-type"},
    )
    refused = request(
        app, "OPTIONS", "/predict", headers=PREFLIGHT | {"origin": "https://evil.example"}
    )
    answered = predict(app, f"Bearer {FIRST}", origin="https://app.example.org")

    assert preflight.status_code == answered.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example.org"
    assert answered.headers["access-control-allow-origin"] == "https://app.example.org"
    assert "Retry-After" in answered.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("origin", ["app.example.org", "https://app.example.org/", "null", ""])
def test_an_origin_of_another_form_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="must be origins such as"):
        ServeSettings(cors_origins=[origin])


def test_no_answer_gives_the_server_away(guarded: FastAPI) -> None:
    asked = [*paths_of(guarded), ("GET", "/nothing"), ("DELETE", "/predict"), ("POST", "/v2")]

    for method, path in asked:
        response = request(guarded, method, path, headers={"authorization": f"Bearer {FIRST}"})
        assert response.headers["x-content-type-options"] == "nosniff", path
        assert not {"server", "x-powered-by"} & set(response.headers)
        if response.status_code >= 400:
            for leak in ("Traceback", ".py", "/work", "starlette", "fastapi", " object at 0x"):
                assert leak not in response.text


def test_unforeseen_errors_have_the_header_too(model_path: Path) -> None:
    backend = LocalBackend(model_path)
    backend.predictor = None  # type: ignore[assignment]

    response = predict(http_app(backend))

    assert response.status_code == 500
    assert response.headers["x-content-type-options"] == "nosniff"


def test_over_real_http_the_refusal_ends_the_upload(guarded: FastAPI) -> None:
    with running(guarded) as url:
        response = httpx.post(f"{url}/predict", content=bytes(5_000_000), timeout=10)

    assert response.status_code == 401
