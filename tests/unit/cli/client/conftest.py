"""The command-line client, before a server that answers as the test wants it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mask_ray import client
from tests.support.client_runs import Finished, Run
from tests.support.prediction_server import PredictionServer, prediction_server


@pytest.fixture
def server() -> Iterator[PredictionServer]:
    with prediction_server() as stub:
        yield stub


@pytest.fixture
def run(
    server: PredictionServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """The client against the server, in the folder of the test's files; JSON by default."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, url: str = "", token: str = "") -> Finished:
        flags = [f"--url={url or server.url}", "--format=json"]
        monkeypatch.setattr(sys, "argv", ["client", *flags, *map(str, arguments)])
        monkeypatch.setenv("MASK_RAY_TOKEN", token)
        with pytest.raises(SystemExit) as end:
            client.main()
        return Finished(end.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Names of ten files, whose content is their name."""
    names = [f"{number}.jpg" for number in range(10)]
    for name in names:
        (tmp_path / name).write_text(name)
    return names
