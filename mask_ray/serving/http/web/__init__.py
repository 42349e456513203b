"""The page a person uses to try the classifier: its files, and the routes that serve them.

The files are read once, when the routes are made, and hold no data and no secret: a guarded
endpoint serves the page to everyone, and asks for the token where images are sent.
"""

import hashlib
from importlib import resources
from pathlib import PurePath
from string import Template

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mask_ray.config import IMAGE_FORMATS
from mask_ray.serving.http.limits import ACCEPTED_FORMATS

# Nothing but this server's own scripts, styles and answers; thumbnails are blobs. No form ever
# navigates, so that the token cannot end up in a URL.
_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)

# As the OWASP cheat sheet on HTTP headers has them: https://cheatsheetseries.owasp.org
SECURITY_HEADERS = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), display-capture=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_ASSETS = ("app.js", "camera.js", "icon.svg", "predict.js", "style.css")


def routes() -> list[Route]:
    """`GET` and `HEAD` of the page at `/` and of its assets below `/web/`."""
    folder = resources.files(__name__)
    assets = {name: folder.joinpath(name).read_bytes() for name in _ASSETS}
    return [
        file_route("/", "index.html", page().encode()),
        *(file_route(f"/web/{name}", name, content) for name, content in assets.items()),
    ]


def page() -> str:
    """The HTML of the page, with the image formats that the decoder accepts."""
    return Template(resources.files(__name__).joinpath("index.html").read_text()).substitute(
        media_types=",".join(image_format.media_type for image_format in IMAGE_FORMATS),
        format_names=ACCEPTED_FORMATS,
    )


def file_route(
    path: str, file_name: str, content: bytes, security_headers: dict[str, str] = SECURITY_HEADERS
) -> Route:
    """A file as its suffix says, which browsers ask for again only once it has changed."""
    content_type = _CONTENT_TYPES[PurePath(file_name).suffix]
    # A digest, not a time: all replicas must tell a browser the same.
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = security_headers | {"Cache-Control": "no-cache", "ETag": etag}

    async def serve_file(request: Request) -> Response:
        if _is_known(etag, request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=content_type)

    return Route(path, serve_file, methods=["GET"], name=file_name, include_in_schema=False)


def _is_known(etag: str, if_none_match: str) -> bool:
    """Whether the browser has it: RFC 9110, section 13.1.2, compares weakly."""
    known = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in known or "*" in known
