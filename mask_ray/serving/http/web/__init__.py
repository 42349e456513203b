"""The page for trying the classifier in a browser: its files, and the routes that serve them.

The files are read once, when the routes are made. They contain no secret, so the page needs no
token; it asks the user for one when it sends images to a guarded service.
"""

import hashlib
from importlib import resources
from pathlib import PurePath
from string import Template

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mask_ray.config import readable_formats
from mask_ray.serving.http.limits import ACCEPTED_FORMATS

# Only this server's scripts, styles and answers; thumbnails are blobs. No form may navigate, so the
# token cannot end up in a URL.
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

# Values of the OWASP cheat sheet on HTTP headers: https://cheatsheetseries.owasp.org
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

_ASSETS = ("app.js", "camera.js", "cards.css", "icon.svg", "predict.js", "style.css")


def routes() -> list[Route]:
    """Routes (`GET` and `HEAD`) of the page at `/` and of its assets below `/web/`."""
    folder = resources.files(__name__)
    assets = {name: folder.joinpath(name).read_bytes() for name in _ASSETS}
    return [
        file_route("/", "index.html", page().encode()),
        *(file_route(f"/web/{name}", name, content) for name, content in assets.items()),
    ]


def page() -> str:
    """Fill the image formats that the decoder accepts into the HTML of the page."""
    return Template(resources.files(__name__).joinpath("index.html").read_text("utf-8")).substitute(
        media_types=",".join(image_format.media_type for image_format in readable_formats()),
        format_names=ACCEPTED_FORMATS,
    )


def file_route(
    path: str, file_name: str, content: bytes, security_headers: dict[str, str] = SECURITY_HEADERS
) -> Route:
    """Make the route of a file, which browsers load again only after it has changed.

    Its content type follows from the suffix of `file_name`.
    """
    content_type = _CONTENT_TYPES[PurePath(file_name).suffix]
    # A digest and not a time: it must be the same in all replicas.
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = security_headers | {"Cache-Control": "no-cache", "ETag": etag}

    async def serve_file(request: Request) -> Response:
        if _is_known(etag, request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=content_type)

    return Route(path, serve_file, methods=["GET"], name=file_name, include_in_schema=False)


def _is_known(etag: str, if_none_match: str) -> bool:
    """Whether the browser has this version; RFC 9110, section 13.1.2: a weak comparison."""
    known = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in known or "*" in known
