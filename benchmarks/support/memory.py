"""The peak memory of a process and all its children."""

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from mask_ray.config import MaskRayError

SAMPLE_EVERY_S = 1

# The kernel's own account of a process, in which a page that n processes share counts 1/n. Shmem
# is Ray's object store.
_FIELDS = {"Pss": "all", "Pss_Shmem": "object store"}
_PSS = re.compile(rf"^({'|'.join(_FIELDS)}): +(\d+) kB$", re.MULTILINE)


def run_and_watch(command: Sequence[str], what: str) -> dict[str, Any]:
    """Run a command that prints JSON on its last line, and sample its memory.

    Returns:
        That JSON with two entries more, in MiB at the moment of the highest total: `peak_mb`, the
        memory of all processes, and `store_mb`, the share of Ray's object store.

    Raises:
        MaskRayError: the command failed; the message begins with `what`.
    """
    peak: Counter[str] = Counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        while process.poll() is None:
            peak = max(peak, _memory_kb(process.pid), key=lambda sample: sample["Pss"])
            time.sleep(SAMPLE_EVERY_S)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise MaskRayError(f"{what} ended with exit code {process.returncode}")
    megabytes = {"peak_mb": peak["Pss"] / 1024, "store_mb": peak["Pss_Shmem"] / 1024}
    return json.loads(output.splitlines()[-1]) | megabytes


def _memory_kb(pid: int) -> Counter[str]:
    """Sum over the process and all its descendants."""
    total: Counter[str] = Counter()
    with suppress(psutil.NoSuchProcess):
        for process in (root := psutil.Process(pid), *root.children(recursive=True)):
            with suppress(OSError):  # it has ended
                rollup = Path("/proc", str(process.pid), "smaps_rollup").read_text()
                total.update({name: int(size) for name, size in _PSS.findall(rollup)})
    return total
