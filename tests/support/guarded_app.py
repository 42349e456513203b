"""Tokens of three callers, and requests to an app that asks for tokens."""

import httpx
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route

from tests.support import image_files
from tests.support.local_backend import request

PHOTO = image_files.jpeg()
FIRST, SECOND, THIRD = (f"{name}-of-22-characters" for name in ("first", "second", "third"))


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
