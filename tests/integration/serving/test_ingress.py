"""What Ray Serve makes of the environment that `mask_ray.ingress` prints."""

import json
import os
import subprocess
import sys

import pytest

from mask_ray.serving import ingress


def serve_settings(variables: dict[str, str]) -> dict[str, str]:
    """What Ray Serve makes of an environment."""
    program = (
        "import json; from ray.serve._private import constants; print(json.dumps("
        "{name: repr(value) for name, value in vars(constants).items() if name[:4] == 'RAY_'}))"
    )
    inherited = {n: value for n, value in os.environ.items() if not n.startswith("RAY_SERVE_")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=inherited | variables, capture_output=True, check=True)
    settings: dict[str, str] = json.loads(done.stdout)
    return settings


def test_the_environment_equals_the_throughput_mode_of_serve() -> None:
    variables = ingress.environment()
    if variables["RAY_SERVE_ENABLE_HA_PROXY"] == "0":
        pytest.skip("needs haproxy")
    others = {n: value for n, value in variables.items() if n not in ingress.THROUGHPUT}

    own = serve_settings(variables)
    mode = serve_settings(others | {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"})

    assert own.pop("RAY_SERVE_THROUGHPUT_OPTIMIZED") == "False"
    assert mode.pop("RAY_SERVE_THROUGHPUT_OPTIMIZED") == "True"
    assert own == mode
    assert own != serve_settings(others)
