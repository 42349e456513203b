"""The page at `/docs`: Swagger UI of `openapi.json`, with all its files from this server.

The files of Swagger UI come from the package fastapi-offline. The package's own page needs a script
inside the HTML, which the policy below forbids; this page loads the script from a file.
"""

from importlib import resources

from starlette.routing import Route

from mask_ray.serving.http.web import SECURITY_HEADERS, file_route

# Swagger UI sets styles on elements, and its icons are data: URLs.
_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = SECURITY_HEADERS | {"Content-Security-Policy": _CONTENT_SECURITY_POLICY}

# Relative URLs: the application may be served under a prefix.
_PAGE = b"""<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>mask_ray: API</title>
  <link rel="icon" href="web/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="docs/swagger-ui.css">
  <script defer src="docs/swagger-ui-bundle.js"></script>
  <script defer src="docs/init.js"></script>
</head>
<body>
  <div id="docs"></div>
</body>
</html>
"""

_START = b"""SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""


def routes() -> list[Route]:
    """Routes (`GET` and `HEAD`) of the page and its files. They need no token."""
    folder = resources.files("fastapi_offline") / "static"
    files = {
        name: (folder / name).read_bytes() for name in ("swagger-ui-bundle.js", "swagger-ui.css")
    }
    return [
        file_route("/docs", "docs.html", _PAGE, _HEADERS),
        file_route("/docs/init.js", "init.js", _START, _HEADERS),
        *(file_route(f"/docs/{name}", name, file, _HEADERS) for name, file in files.items()),
    ]
