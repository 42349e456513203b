"""What a run was made by: code, locked and installed libraries, and the machines.

With its settings and its data, all that is needed to make it again.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

import mask_ray

# What differs between two runs, as a line tells it, by the tag that holds it.
_TOLD_AS = {
    "data_digest": "the images or their labels",
    "git_commit": "the code",
    "git_diff_digest": "uncommitted changes of the code",
    "lock_digest": "the locked libraries",
    "python_version": "the version of Python",
    "platform": "the platform",
}


def tags() -> dict[str, str]:
    """The short part, which a run is tagged with: commit, digests, Python, platform."""
    diff = git_diff()
    return {
        "git_commit": git_commit(),
        "git_diff_digest": _digest(diff.encode()) if diff else "none",
        "lock_digest": lock_digest(),
        "python_version": platform.python_version(),
        "platform": platform.platform(),
    }


def ray_job_id() -> str:
    """The submission id that `ray job` commands take, or the driver's own id outside a job."""
    submitted = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    own: str = ray.get_runtime_context().get_job_id()
    return str(submitted.get("metadata", {}).get("job_submission_id", own))


def environment() -> dict[str, Any]:
    """The long part: the version of every installed library, and every node's resources.

    Ray must be running.
    """
    installed = importlib.metadata.distributions()
    versions = {str(found.metadata["Name"]).lower(): found.version for found in installed}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "nodes": [_hardware(resources) for resources in nodes],
        "libraries": dict(sorted(versions.items())),
    }


def _hardware(resources: Mapping[str, float]) -> dict[str, float]:
    """CPUs, GPUs, their type, and bytes of memory; not the names of machines."""
    return {name: value for name, value in resources.items() if not name.startswith("node:")}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def differences(earlier: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """A line for each thing that differs between two runs' tags, by which figures may differ."""
    return [
        f"{what} ({name}): {earlier.get(name, 'unknown')} there, {own[name]} here"
        for name, what in _TOLD_AS.items()
        if name in own and own[name] != earlier.get(name)
    ]


def lock_digest() -> str:
    """SHA-256 of uv.lock, of which a submitted job has a copy; `unknown` without one."""
    for folder in (_tree(), _installed_from()):
        if folder is not None and (lock := folder / "uv.lock").is_file():
            return _digest(lock.read_bytes())
    return "unknown"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_commit() -> str:
    """The commit this code is of, with `-dirty` when it differs; `unknown` outside a checkout.

    A submitted job runs in a copy without `.git`: the copy is compared with the checkout that
    the package is installed from. `MASK_RAY_GIT_COMMIT` overrides both.
    """
    if commit := os.environ.get("MASK_RAY_GIT_COMMIT"):
        return commit
    return (
        _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip() or "unknown"
    )


def git_diff() -> str:
    """How this code differs from its commit, as a patch; empty where it does not."""
    return _git("diff", "--binary", "HEAD")


def _git(*arguments: str) -> str:
    """What git says of this code; nothing outside a checkout, or without git."""
    checkout = next((c for c in (_tree(), _installed_from()) if c and (c / ".git").exists()), None)
    if checkout is None:
        return ""
    try:
        return subprocess.run(
            ["git", "--git-dir", checkout / ".git", "--work-tree", _tree(), *arguments],
            cwd=_tree(),
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        ).stdout
    except FileNotFoundError:  # no git here
        return ""


def _tree() -> Path:
    return Path(mask_ray.__file__).parent.parent


def _installed_from() -> Path | None:
    try:
        origin = importlib.metadata.distribution("mask-ray").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    url = json.loads(origin or "{}").get("url", "")
    return Path(unquote(urlparse(url).path)) if url.startswith("file:") else None
