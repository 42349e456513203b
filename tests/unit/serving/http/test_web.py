"""The page's files over HTTP, and what their headers promise. The page itself: tests/e2e/page."""

import asyncio
import re
from importlib import resources

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.types import ASGIApp

from mask_ray.config import IMAGE_FORMATS, ImageFormat, readable_formats
from mask_ray.serving.http import web
from mask_ray.serving.http.app import http_app
from tests.support import image_files, local_backend
from tests.support.local_backend import LocalBackend
from tests.support.onnx_files import write_classifier
from tests.support.project import ROOT

CONTENT_TYPES = {
    "/": "text/html; charset=utf-8",
    "/web/app.js": "text/javascript; charset=utf-8",
    "/web/camera.js": "text/javascript; charset=utf-8",
    "/web/cards.css": "text/css; charset=utf-8",
    "/web/icon.svg": "image/svg+xml",
    "/web/predict.js": "text/javascript; charset=utf-8",
    "/web/style.css": "text/css; charset=utf-8",
}

PAGE = Starlette(routes=web.routes())


def request(method: str, path: str, app: ASGIApp = PAGE, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


def get(path: str, app: ASGIApp = PAGE, **headers: str) -> httpx.Response:
    return request("GET", path, app, **headers)


def file_of(path: str) -> str:
    if path == "/":
        return web.page()
    return resources.files(web).joinpath(path.removeprefix("/web/")).read_text()


@pytest.mark.parametrize("path", CONTENT_TYPES)
def test_every_file_is_served_as_what_it_is(path: str) -> None:
    response = get(path)

    assert response.status_code == 200
    assert response.headers["content-type"] == CONTENT_TYPES[path]
    assert response.text == file_of(path)


def test_every_file_of_the_page_is_served() -> None:
    names = {path.name for path in resources.files(web).iterdir() if path.is_file()}
    served = {path.rpartition("/")[2] or "index.html" for path in CONTENT_TYPES}
    assert names - {"__init__.py"} == served


@pytest.mark.parametrize("path", CONTENT_TYPES)
def test_every_answer_has_the_security_headers(path: str) -> None:
    headers = get(path).headers

    assert (
        web.SECURITY_HEADERS.items()
        <= {name: headers.get(name) for name in web.SECURITY_HEADERS}.items()
    )
    policy = dict(
        directive.split(" ", 1) for directive in headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "camera=(self)" in headers["permissions-policy"]


@pytest.mark.parametrize("path", CONTENT_TYPES)
def test_a_browser_that_has_a_file_is_told_so(path: str) -> None:
    first = get(path)
    etag = first.headers["etag"]

    again = get(path, **{"If-None-Match": f'"other", W/{etag}'})

    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert again.headers["x-frame-options"] == "DENY"
    assert get(path, **{"If-None-Match": '"other"'}).status_code == 200


def test_head_has_no_body() -> None:
    response = request("HEAD", "/")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) == len(file_of("/").encode())


def test_nothing_else_is_served() -> None:
    for path in ("/web/__init__.py", "/web/", "/web/index.html", "/web/../config/base.py"):
        assert get(path).status_code == 404
    assert request("POST", "/").status_code == 405


@pytest.mark.parametrize("path", CONTENT_TYPES)
def test_nothing_comes_from_outside(path: str) -> None:
    code = re.sub(r"^\s*//.*$", "", file_of(path), flags=re.MULTILINE)
    addresses = re.findall(r"(?:https?:)?//[\w.-]+", code)
    assert set(addresses) <= {"http://www.w3.org"}, "an SVG's namespace alone is not fetched"


def test_the_page_needs_nothing_that_its_policy_forbids() -> None:
    page = file_of("/")

    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    assert all(" src=" in tag for tag in re.findall(r"<script[^>]*>", page))
    for name in ("app.js", "camera.js", "predict.js"):
        script = file_of(f"/web/{name}")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(|localStorage", script
        )


def test_the_page_works_below_any_prefix() -> None:
    assert re.findall(r'(?:href|src)="(/[^"]*)"', file_of("/")) == []
    assert 'fetch("predict"' in file_of("/web/predict.js")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    path = write_classifier(tmp_path_factory.mktemp("model") / "tiny.onnx")
    return http_app(LocalBackend(path))


def test_page_api_docs_and_errors_list_the_accepted_formats(classifier: FastAPI) -> None:
    (chosen,) = re.findall(r'id="files"[^>]*accept="([^"]*)"', file_of("/"))
    (shown,) = re.findall(r'id="formats"[^>]*>([^.]*)\.', file_of("/"))
    paths = get("/openapi.json", classifier).json()["paths"]
    described = paths["/predict"]["post"]["requestBody"]["description"].partition(", an ")[0]
    refused = local_backend.request(classifier, "POST", "/predict", content=image_files.psd())
    listed = refused.json()["detail"].partition("; ")[2].removesuffix(" are accepted")
    api = (ROOT / "docs/reference/http-api.md").read_text()
    (documented,) = re.findall(r"^Images are ([^.]*)\.", api, re.MULTILINE)

    assert chosen.split(",") == [accepted.media_type for accepted in readable_formats()]
    names = [accepted.name for accepted in readable_formats()]
    for text in (shown, described, listed):
        assert re.split(", | or | and ", text) == names
    documented = re.sub(r" \([^)]*\)", "", documented)
    assert re.split(", | or ", documented) == [accepted.name for accepted in IMAGE_FORMATS]


@pytest.mark.parametrize(
    "accepted",
    [each for each in IMAGE_FORMATS if each.name != "HEIC"],
    ids=lambda accepted: accepted.name,
)
def test_every_listed_format_is_classified(classifier: FastAPI, accepted: ImageFormat) -> None:
    headers = {"content-type": accepted.media_type}
    photo = image_files.in_format(accepted.name.upper())

    answered = local_backend.request(classifier, "POST", "/predict", content=photo, headers=headers)

    assert answered.status_code == 200, answered.text


def test_the_api_of_an_app_that_serves_it_stays_as_it_was() -> None:
    app = FastAPI()
    app.router.routes.extend(web.routes())

    assert get("/", app).status_code == 200
    assert get("/openapi.json", app).json()["paths"] == {}
    docs = get("/docs", app)
    assert docs.status_code == 200
    assert "content-security-policy" not in docs.headers


@pytest.mark.parametrize("path", [path for path in CONTENT_TYPES if path.endswith(".js")])
def test_scripts_need_no_recent_browser(path: str) -> None:
    code = re.sub(r"//.*|/\*.*?\*/", "", file_of(path))

    # Safari has the first since 17.4, the second since 16.
    assert "AbortSignal.any" not in code
    assert "AbortSignal.timeout" not in code
