"""Describe what a run was made with: code, locked and installed libraries, machines.

Together with its settings and its data, this is what repeating a run takes.
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

import mask_ray
from mask_ray import ray_internals
from mask_ray.tracking import patch

# Descriptions of tags, for lines that name differences between runs.
_DESCRIPTIONS = {
    "data_digest": "the images or their labels",
    "git_commit": "the code",
    "git_diff_digest": "uncommitted changes of the code",
    "lock_digest": "the locked libraries",
    "python_version": "the version of Python",
    "platform": "the platform",
}


def tags() -> dict[str, str]:
    """Return the tags of a run: commit, digests, Python, platform."""
    diff = git_diff()
    return {
        "git_commit": git_commit(),
        "git_diff_digest": _digest(diff.encode()) if diff else "none",
        "lock_digest": lock_digest(),
        "python_version": platform.python_version(),
        "platform": platform.platform(),
    }


def ray_job_id() -> str:
    """Return the submission id that `ray job` commands take; outside a job, the driver's id."""
    own: str = ray.get_runtime_context().get_job_id()
    return ray_internals.submission_id() or own


def environment() -> dict[str, Any]:
    """Return the version of every installed library, and the resources of every node.

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
    """Keep CPUs, GPUs, their type and bytes of memory; leave out names of machines."""
    return {name: value for name, value in resources.items() if not name.startswith("node:")}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def differences(earlier: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """Return a line for each difference between two runs' tags that may change figures."""
    return [
        f"{what} ({name}): {earlier.get(name, 'unknown')} there, {own[name]} here"
        for name, what in _DESCRIPTIONS.items()
        if name in own and own[name] != earlier.get(name)
    ]


def lock_digest() -> str:
    """Return the SHA-256 of uv.lock, which a submitted job has too; `unknown` without one."""
    for folder in (_code_folder(), _installed_from()):
        if folder is not None and (lock := folder / "uv.lock").is_file():
            return _digest(lock.read_bytes())
    return "unknown"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_commit() -> str:
    """Return the commit of this code, with `-dirty` if it differs; `unknown` outside a checkout.

    A submitted job runs in a copy without `.git`, so the copy is compared with the checkout that
    the package is installed from. `MASK_RAY_GIT_COMMIT` overrides both.
    """
    if commit := os.environ.get("MASK_RAY_GIT_COMMIT"):
        return commit
    return (
        _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip() or "unknown"
    )


def git_diff() -> str:
    """Return how this code differs from its commit, as a patch; empty if it does not."""
    return _git("diff", "--binary", "HEAD")


def shareable_diff() -> str:
    """Return `git_diff` without what git ignores and what looks like a key."""
    compared = ("diff", "--binary", "--no-renames", "--no-ext-diff", "--no-textconv")
    diff = _git(*compared, "HEAD")
    names = _git(*compared, "--name-only", "-z", "HEAD").split("\0")
    ignored = _git("ls-files", "-z", "--cached", "--ignored", "--exclude-standard").split("\0")
    return patch.shareable(diff, [name for name in names if name], ignored) if diff else ""


def _git(*arguments: str) -> str:
    """Run git on this code; return its output, empty outside a checkout or without git."""
    checkout = next(
        (c for c in (_code_folder(), _installed_from()) if c and (c / ".git").exists()), None
    )
    if checkout is None:
        return ""
    try:
        return subprocess.run(
            ["git", "--git-dir", checkout / ".git", "--work-tree", _code_folder(), *arguments],
            cwd=_code_folder(),
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        ).stdout
    except FileNotFoundError:  # no git here
        return ""


def _code_folder() -> Path:
    return Path(mask_ray.__file__).parent.parent


def _installed_from() -> Path | None:
    try:
        origin = importlib.metadata.distribution("mask-ray").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    url = json.loads(origin or "{}").get("url", "")
    return Path(unquote(urlparse(url).path)) if url.startswith("file:") else None
