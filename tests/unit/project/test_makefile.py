"""What the Makefile's targets promise before they install anything."""

import os
import re
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


class TestClean:
    """`make clean` removes only what make has made, in any folder."""

    @staticmethod
    def clean(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.run(
            ["make", *flags, "clean"],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @pytest.mark.parametrize("name", ["sp ace", "a$b", "a'b", 'a"b', "a;b", "a#b", "(a) & b"])
    def test_what_is_beside_a_path_of_any_signs_stays(
        self, checkout: Path, tmp_path: Path, name: str
    ) -> None:
        inside = tmp_path / name / "mask_ray"
        shutil.copytree(checkout, inside)
        others = [tmp_path / "sp", tmp_path / "a", tmp_path / name / "photos", tmp_path / "b"]
        for other in others:
            other.mkdir(exist_ok=True)
            (other / "photo.jpg").touch()
        made = [".venv", ".tools", ".pytest_cache", "mask_ray/data/__pycache__"]
        kept = ["photos/__pycache__/mine", "mine/.venv/x", ".env"]
        for path in (*(f"{each}/x" for each in made), ".venv/.synced", ".tools/.made", *kept):
            (inside / path).parent.mkdir(parents=True, exist_ok=True)
            (inside / path).touch()

        done = self.clean(inside)

        assert (done.returncode, done.stderr) == (0, "")
        assert not any((inside / path).exists() for path in made)
        assert all((inside / path).exists() for path in kept)
        assert all((other / "photo.jpg").exists() for other in others)

    def test_what_somebody_else_made_stays(self, checkout: Path, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        (elsewhere / "uv").mkdir(parents=True)
        (checkout / ".tools").symlink_to(elsewhere)
        (checkout / ".venv" / "bin").mkdir(parents=True)

        done = self.clean(checkout)

        assert done.returncode == 0
        assert ".venv was not made by make: left as it is" in done.stdout
        assert (elsewhere / "uv").exists() and (checkout / ".tools").is_symlink()
        assert (checkout / ".venv" / "bin").exists()

    def test_a_makefile_of_elsewhere_touches_nothing_here(
        self, checkout: Path, tmp_path: Path
    ) -> None:
        here = tmp_path / "here"
        (here / ".venv").mkdir(parents=True)
        (here / ".venv" / ".synced").touch()

        done = self.clean(here, "-f", str(checkout / "Makefile"))

        assert done.returncode != 0
        assert "run make in the folder of mask_ray: cd there, or make -C FOLDER" in done.stderr
        assert (here / ".venv" / ".synced").exists()


@pytest.mark.parametrize(("haproxy", "flags"), [("1", ""), ("0", " --no-haproxy")])
def test_make_serve_is_a_command_of_the_project(haproxy: str, flags: str) -> None:
    """It says when it is ready; `serve run` does not."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--dry-run", "serve", f"HAPROXY={haproxy}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1].strip() == f"exec python -m mask_ray.serve{flags}"


NAMED = re.compile(r"(?:`|^ *|run: |entry: |exec )make ([a-z][a-z-]*)", re.MULTILINE)
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", ".pre-commit-config.yaml")]
PAGES += [ROOT / ".ci/run", *sorted((ROOT / ".github").rglob("*.[my][dm]*"))]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


def test_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {(page.name, name) for page in PAGES for name in NAMED.findall(page.read_text())}

    assert {"setup", "check", "check-types", "test", "docs"} <= {name for _, name in named}
    assert {(page, name) for page, name in named if name not in targets} == set()
