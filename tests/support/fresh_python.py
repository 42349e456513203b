"""A Python process of its own, in an empty home."""

import subprocess
import sys
from pathlib import Path

from tests.support.project import ROOT


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
