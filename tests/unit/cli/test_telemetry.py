"""No library sends usage statistics, by any of the ways in which its process is started."""

import os
import re
from typing import Any

import pytest

from mask_ray import cli
from mask_ray.config import DataSettings
from mask_ray.serving import ingress
from tests.support.project import ROOT

NAMES = ("RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in NAMES:
        os.environ.pop(name, None)


def test_the_line_that_people_type_turns_them_off() -> None:
    environment = ingress.environment(False)

    assert [environment[name] for name in NAMES] == ["0", "true", "1"]


def test_jobs_turn_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(cli, "connect", lambda instead: seen.update(os.environ))
    monkeypatch.setattr("sys.argv", ["job", "--data", "photos"])

    cli.main(DataSettings, lambda _: {})

    assert [seen[name] for name in NAMES] == ["0", "true", "1"]


def test_a_value_that_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "1"
    monkeypatch.setattr(cli, "connect", lambda instead: None)
    monkeypatch.setattr("sys.argv", ["job", "--data", "photos"])

    cli.main(DataSettings, lambda _: {})

    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert ingress.environment(False)["RAY_USAGE_STATS_ENABLED"] == "1"


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/guides/operate.md"])
def test_every_ray_that_pages_start_is_quiet_and_private(page: str) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
    for block in (block for block in blocks if "ray start" in block):
        assert "mask_ray.ingress" in block or "--disable-usage-stats" in block
        assert "--node-ip-address=127.0.0.1" in block
        assert "--dashboard-host=127.0.0.1" in block


def test_the_cluster_is_quiet() -> None:
    text = " ".join((ROOT / "cluster.yaml").read_text().split())

    assert "ray start --head" in text
    for start in re.findall(r"ray start --head[^;]*", text):
        assert "--disable-usage-stats" in start
