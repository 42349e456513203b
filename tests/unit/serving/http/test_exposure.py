"""Where a service needs a token: before it is deployed, and on which addresses."""

import os
from pathlib import Path
from typing import Any

import pytest

from mask_ray.serving import deployment
from mask_ray.serving.deployment import ApplicationError, build_app
from mask_ray.serving.http.app import http_app
from mask_ray.serving.http.auth import TOKENS_VARIABLE, Guard, Token, TokenError
from tests.support.guarded_app import FIRST, predict
from tests.support.local_backend import LocalBackend


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
