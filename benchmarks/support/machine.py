"""What a figure was measured on."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import psutil

# Ray's own processes, one or both on every machine that runs it.
_RAY_PROCESSES = {"raylet", "gcs_server"}


def describe(*packages: str) -> str:
    """Command, cores, processor, memory, and versions of Python and these packages."""
    memory_gb = psutil.virtual_memory().total / 2**30
    versions = [f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]
    lines = [
        f"command: python -m {_module()} {' '.join(sys.argv[1:])}".rstrip(),
        f"machine: {os.cpu_count()} cores, {_processor()}, {memory_gb:.0f} GiB, "
        f"{platform.system()} {platform.machine()}; load {os.getloadavg()[0]:.1f} at the start",
        f"versions: {', '.join(versions)}",
    ]
    if others := ray_processes():
        lines.append(f"note: another Ray is running here ({others} processes) and takes its share")
    return "\n".join(lines)


def ray_processes() -> int:
    """How many of Ray's own processes, of anybody, run on this machine."""
    return sum(p.info["name"] in _RAY_PROCESSES for p in psutil.process_iter(["name"]))


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
