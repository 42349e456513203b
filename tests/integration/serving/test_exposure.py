"""A service that listens beyond this machine: never without a token, on no node."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ray import serve

from mask_ray.processes import free_port
from mask_ray.serving import deployment
from mask_ray.serving.deployment import ApplicationError, build_app
from mask_ray.serving.http.auth import TOKENS_VARIABLE
from tests.support import image_files
from tests.support.onnx_files import write_classifier

TOKEN = "s3cret-of-22-characters"


@pytest.fixture(scope="module")
def url(ray_local: None) -> Iterator[str]:
    port = free_port()
    serve.start(http_options={"host": "0.0.0.0", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    model = write_classifier(tmp_path / "tiny.onnx")
    return {"model_uri": str(model), "max_replicas": 1}


def test_a_deploy_without_a_token_is_refused(url: str, settings: dict[str, object]) -> None:
    with pytest.raises(ApplicationError, match=r"needs a token: .*; it listens on 0\.0\.0\.0"):
        build_app(settings)


def test_replicas_have_the_tokens_of_the_deploy(
    url: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The workers of this Ray were started without the variable, as on another node.
    monkeypatch.setenv(TOKENS_VARIABLE, f"phone-app:{TOKEN}")
    serve.run(build_app(settings | {"require_token": True}), name="guarded", route_prefix="/")
    try:
        photo = image_files.jpeg()
        asked = [
            httpx.post(f"{url}/predict", content=photo, headers=headers, timeout=30).status_code
            for headers in ({}, {"Authorization": f"Bearer {TOKEN}"})
        ]
        other = httpx.get(f"{url}/readyz", headers={"Host": "evil.example"}, timeout=30)
        slash = httpx.post(f"{url}/predict/", content=photo, timeout=30)
    finally:
        serve.delete("guarded")

    assert asked == [401, 200]
    assert other.status_code == 421
    assert slash.status_code == 404 and "location" not in slash.headers


def test_a_replica_refuses_what_the_deploy_could_not_know(
    url: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "serve_http_host", lambda: None)
    application = build_app(settings)

    with pytest.raises(RuntimeError):
        serve.run(application, name="open", route_prefix="/open")
    assert httpx.get(f"{url}/open/readyz", timeout=30).status_code >= 400
    serve.delete("open")
