"""`make serve` in a Ray that runs: what its terminal shows, and what it leaves."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from mask_ray.processes import free_port
from tests.support.onnx_files import write_classifier
from tests.support.project import ROOT


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    content["http_options"]["port"] = free_port()
    model = write_classifier(tmp_path / "tiny.onnx")
    content["applications"][0]["args"] |= {"model_uri": str(model), "max_replicas": 1}
    return content


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Commands of a test, which it may leave running."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.terminate()
        process.wait(60)


def serve(config: dict[str, Any], folder: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    return subprocess.Popen(
        [sys.executable, "-m", "mask_ray.serve", "--no-haproxy", "--serve-config", str(path)],
        env={**env, "PYTHONUNBUFFERED": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_says_when_it_is_ready_and_ends_what_it_started(
    config: dict[str, Any],
    session_ray: Mapping[str, str],
    started: list[subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    url = f"http://127.0.0.1:{config['http_options']['port']}"
    process = serve(config, tmp_path, session_ray)
    started.append(process)
    assert process.stdout is not None

    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith("ready at"):
            break
    assert lines[0] == f"deploying {tmp_path / 'tiny.onnx'}"
    assert lines[-1] == f"ready at {url}, tiny", process.stderr and process.stderr.read()
    assert httpx.head(f"{url}/readyz", trust_env=False).status_code == 200

    process.terminate()
    rest, errors = process.communicate(timeout=120)
    assert rest.splitlines()[-2:] == [
        "stopping: requests that are running are answered first",
        "stopped",
    ]
    assert (process.returncode, errors) == (0, "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/readyz", trust_env=False)


def test_without_a_model_it_ends_in_one_line(
    config: dict[str, Any],
    session_ray: Mapping[str, str],
    started: list[subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    config["applications"][0]["args"]["model_uri"] = "models:/never-trained@champion"
    process = serve(config, tmp_path, session_ray)
    started.append(process)

    _, errors = process.communicate(timeout=300)

    (line,) = errors.splitlines()
    assert process.returncode == 1
    assert line.startswith("error: no model models:/never-trained@champion")
    assert "jobs.train" in line
