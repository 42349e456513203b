"""Importing does nothing, imports point down, and each system is used in one place."""

import subprocess
import sys
from pathlib import Path

from tests.support.project import ROOT

PYDANTIC = {
    "annotated_types",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
}


def python(code: str, folder: Path) -> str:
    """Run code in an empty folder that is also home; what it prints."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder / "home"),
        "MASK_RAY_HOME": str(folder / "home" / "state"),
        # What these write of their own accord is not ours.
        "KERAS_HOME": str(folder / "keras"),
        "MPLCONFIGDIR": str(folder / "matplotlib"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "ORT_DISABLE_TELEMETRY": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    (folder / "home").mkdir()
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder / "home",
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def test_settings_need_nothing_but_pydantic(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import mask_ray.config
print(*{name.partition(".")[0] for name in set(sys.modules) - before
        if "site-packages" in (getattr(sys.modules[name], "__file__", None) or "")})
"""
    assert set(python(code, tmp_path).split()) == PYDANTIC
