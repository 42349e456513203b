"""What the Makefile's targets promise before they install anything."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.project import ROOT

BUILD_GPU = "mask_ray/horovod/build_gpu.sh"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Only what `make horovod-gpu` starts with, so that whatever it adds can be seen."""
    folder = tmp_path / "checkout"
    for name in ("Makefile", BUILD_GPU):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_horovod_gpu_without_a_cuda_toolkit_is_one_line_and_downloads_nothing(
    checkout: Path, tmp_path: Path
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    before = set(checkout.rglob("*"))
    done = subprocess.run(
        ["make", "horovod-gpu"],
        cwd=checkout,
        env=env | {"CUDA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if not line.startswith("make")] == [
        "error: no CUDA toolkit (bin/nvcc, include/cuda_runtime.h) "
        f"in {tmp_path}; install one or set CUDA_HOME"
    ]
    assert set(checkout.rglob("*")) == before


@pytest.mark.parametrize("has_headers", [True, False])
def test_the_cuda_toolkit_is_where_nvcc_says(
    checkout: Path, tmp_path: Path, has_headers: bool
) -> None:
    """The nvcc of the PATH may be a link or a wrapper, elsewhere."""
    cuda, wrapper = tmp_path / "cuda", tmp_path / "bin" / "nvcc"
    for nvcc in (cuda / "bin" / "nvcc", wrapper):
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text(f"#!/bin/sh\necho '#$ TOP={cuda}/bin/..' >&2\n")
        nvcc.chmod(0o755)
    if has_headers:
        (cuda / "include").mkdir()
        (cuda / "include" / "cuda_runtime.h").touch()
    done = subprocess.run(
        ["bash", BUILD_GPU, "--check"],
        cwd=checkout,
        env={"PATH": f"{wrapper.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode == 0) == has_headers
    assert (f"in {cuda};" in done.stderr) == (not has_headers)
