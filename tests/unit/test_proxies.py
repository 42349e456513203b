"""Which proxy a request takes, by the variables that desktops and companies set."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mask_ray import client, proxies
from mask_ray.config import MaskRayError
from mask_ray.config.client import ClientSettings
from mask_ray.data import sources
from mask_ray.data.sources import fingerprint
from mask_ray.pipeline import live_service
from mask_ray.serving import ingress
from tests.support import image_files

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
# As GNOME, companies and typing mistakes leave them; httpx fails on each when a client is made.
UNUSABLE = [
    {"ALL_PROXY": "socks://127.0.0.1:9"},
    {"ALL_PROXY": "socks5h://127.0.0.1:9"},
    {"all_proxy": "socks4://user:secret@127.0.0.1:9"},
    {"HTTP_PROXY": "ftp://127.0.0.1:9"},
    {"HTTP_PROXY": "http://[::1"},
    {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "[::1],localhost"},
    {"HTTP_PROXY": "http://127.0.0.1:9", "no_proxy": "[::1]"},
]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Answers on this machine."""
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("variables", UNUSABLE)
def test_this_machine_is_reached_whatever_the_variables(
    variables: dict[str, str],
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_variables(monkeypatch, variables)
    monkeypatch.setenv("MASK_RAY_HOME", str(tmp_path / "home"))
    photo = tmp_path / "a.png"
    photo.write_bytes(image_files.png())

    with proxies.client() as http:
        assert http.get(server).text == "{}"
    assert fingerprint.of_source(f"{server}/a.zip")
    with pytest.raises(live_service.ServiceError, match="something else answers"):
        live_service.health(server)
    with pytest.raises(sources.DataError, match="zip"):
        sources.fetch(f"{server}/a.zip")
    settings = ClientSettings(paths=[str(photo)], url=server, output=tmp_path / "rows.csv")
    assert client.run(settings) == 1
    assert "not a prediction" in (tmp_path / "rows.csv").read_text()


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000",
        "http://a.localhost",
        "http://127.0.0.1",
        "http://127.1.2.3:5000/predict",
        "https://[::1]:8000",
        "http://0.0.0.0:8000",
        "http://inside.example.org",
    ],
)
def test_this_machine_and_hosts_of_no_proxy_have_none(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = dict.fromkeys(NAMES[:3], "http://proxy.example.org:3128")
    set_variables(monkeypatch, every | {"no_proxy": "[::1],.example.org"})

    assert proxies.proxy_for(url) is None


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ({"https_proxy": "p:3128"}, "http://p:3128"),
        ({"ALL_PROXY": "http://p:3128"}, "http://p:3128"),
        ({"ALL_PROXY": "socks://s:1080", "HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ({"HTTP_PROXY": "http://p:3128"}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "*"}, None),
    ],
)
def test_other_hosts_have_the_proxy_of_their_scheme(
    variables: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(monkeypatch, variables)

    assert proxies.proxy_for("https://photos.example.org/a.zip") == proxy


@pytest.mark.parametrize(
    "value", ["socks://u:secret@s:1080", "socks5://s:1080", "http://", "ftp://s"]
)
def test_a_proxy_that_cannot_be_used_is_one_line_that_names_the_variable(
    value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    far = "http://photos.example.org"

    for ask in (
        lambda: proxies.proxy_for(far),
        lambda: fingerprint.of_source(f"{far}/a.zip"),
        lambda: client.run(ClientSettings(paths=[str(tmp_path)], url=far)),
    ):
        with pytest.raises(MaskRayError) as caught:
            ask()
        message = str(caught.value)
        assert message.startswith("ALL_PROXY must be the URL of an HTTP proxy")
        assert "photos.example.org in NO_PROXY" in message
        assert "secret" not in message
        assert "\n" not in message


def test_what_is_no_url_is_one_line() -> None:
    with pytest.raises(MaskRayError, match=r"http://\[::1 is not a URL"):
        proxies.proxy_for("http://[::1")


def test_libraries_are_told_to_reach_this_machine_directly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert proxies.without_this_machine({"NO_PROXY": "a"}) == {}
    assert "NO_PROXY" not in ingress.environment(False)

    monkeypatch.setenv("HTTP_PROXY", "http://p:3128")
    monkeypatch.setenv("NO_PROXY", "[::1], inside.example.org")

    hosts = "::1,inside.example.org,localhost,127.0.0.1"
    assert proxies.without_this_machine(
        {"HTTP_PROXY": "p", "NO_PROXY": "[::1], inside.example.org"}
    ) == {
        "NO_PROXY": hosts,
        "no_proxy": hosts,
    }
    assert ingress.environment(False)["NO_PROXY"] == hosts
