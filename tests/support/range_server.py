"""An HTTP server of one file that honours Range and If-Range, and hangs up on request."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Served:
    """What is served, and what was asked.

    Args:
        content: The file.
        etag: Its validator; empty for none.
        cuts: After how many bytes of the body each of the first answers ends.
        failures: The statuses of the first answers, instead of the file.
        shift: How many bytes after those asked for it goes on.
    """

    content: bytes
    etag: str = '"v1"'
    cuts: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    shift: int = 0
    url: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


@contextmanager
def serve(content: bytes, **options: object) -> Iterator[Served]:
    served = Served(content, **options)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = dict(self.headers)
            served.requests.append(asked)
            if served.etag and asked.get("If-None-Match") == served.etag:
                self._head(304, 0)
                return
            if served.failures:
                self._head(served.failures.pop(0), 0)
                return
            start = self._start(asked)
            body = served.content[start:]
            self._head(206 if start else 200, len(body), start)
            if served.cuts:
                body = body[: served.cuts.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def _start(self, asked: dict[str, str]) -> int:
            same = asked.get("If-Range") == served.etag
            return int(asked["Range"][6:-1]) + served.shift if same and "Range" in asked else 0

        def _head(self, status: int, length: int, start: int = 0) -> None:
            served.statuses.append(status)
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            if status == 206:
                whole = len(served.content)
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            if served.etag:
                self.send_header("ETag", served.etag)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/photos.zip"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
