"""The project's serve_config.yaml with a free port and a test's own settings."""

from pathlib import Path
from typing import Any

import yaml

from mask_ray import processes
from tests.support.project import ROOT


def write_config(folder: Path, port: int | None = None, **settings: Any) -> Path:
    content = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    content["http_options"]["port"] = port or processes.free_port()
    content["applications"][0]["args"] |= settings
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
