"""How often each name of a token may ask."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from mask_ray.config import ServeSettings
from mask_ray.serving.http.app import http_app
from mask_ray.serving.http.auth import TokenError
from mask_ray.serving.http.rate_limits import RateLimits
from tests.support.guarded_app import FIRST, SECOND, predict
from tests.support.local_backend import LocalBackend, request


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
