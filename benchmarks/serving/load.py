"""Load from wrk: many connections, each with one request at a time, and many different photos."""

import base64
import io
import json
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mask_ray.config import ImageLimits, MaskRayError
from mask_ray.data import sources
from mask_ray.images.decode import decode
from mask_ray.images.errors import ImageError

_SCRIPT = Path(__file__).with_name("load.lua")
_BOUNDARY = "a5c1f0e2b7d94683"
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Form:
    """How a server wants an image.

    Args:
        wrap: Encoded image to request body.
    """

    name: str
    content_type: str
    wrap: Callable[[bytes], bytes]


def _as_json(encoded: bytes) -> bytes:
    return json.dumps({"image": base64.b64encode(encoded).decode()}).encode()


def _as_file(encoded: bytes) -> bytes:
    with Image.open(io.BytesIO(encoded)) as image:
        mime_type = image.get_format_mimetype()
    head = 'Content-Disposition: form-data; name="images"; filename="photo"'
    lines = f"--{_BOUNDARY}\r\n{head}\r\nContent-Type: {mime_type}\r\n\r\n".encode()
    return lines + encoded + f"\r\n--{_BOUNDARY}--\r\n".encode()


RAW = Form("raw body", "application/octet-stream", bytes)
JSON = Form("base64 in JSON", "application/json", _as_json)
MULTIPART = Form("multipart form", f"multipart/form-data; boundary={_BOUNDARY}", _as_file)


@dataclass(frozen=True)
class Load:
    """What wrk measured.

    Args:
        num_errors: Answers of 4xx and 5xx, failed connections, and no answer within a minute.
    """

    num_answers: int
    seconds: float
    p50_ms: float
    p99_ms: float
    num_errors: int

    @property
    def per_second(self) -> float:
        """Good answers a second."""
        return (self.num_answers - self.num_errors) / self.seconds


def check_wrk() -> None:
    """Check that there is a wrk.

    Raises:
        MaskRayError: there is none.
    """
    if shutil.which("wrk") is None:
        raise MaskRayError("the load comes from wrk, which is missing: apt-get install wrk")


def photos(folder: Path, num_photos: int) -> list[Path]:
    """Readable photos of all classes, in an order that is always the same.

    Raises:
        MaskRayError: there are fewer.
    """
    labelled = sources.list_labelled(str(folder))
    paths = [Path(path) for path in labelled.reader.names(labelled.files)]
    random.Random(0).shuffle(paths)
    readable = [path for path in paths if _is_readable(path)][:num_photos]
    if len(readable) < num_photos:
        raise MaskRayError(f"{folder} has {len(readable)} photos; {num_photos} are wanted")
    return readable


def _is_readable(path: Path) -> bool:
    limits = ImageLimits()
    try:
        decode(path.read_bytes(), limits, at_least_px=32)
    except ImageError:
        return False
    return True


def write_bodies(paths: list[Path], form: Form, folder: Path) -> Path:
    """A file for each request body; the list of them."""
    folder.mkdir()
    for number, path in enumerate(paths):
        (folder / str(number)).write_bytes(form.wrap(path.read_bytes()))
    bodies = folder / "list"
    bodies.write_text("".join(f"{folder / str(number)}\n" for number in range(len(paths))))
    return bodies


def drive(
    url: str,
    bodies: Path,
    form: Form,
    *,
    num_connections: int,
    seconds: float,
    per_second: float | None = None,
) -> Load:
    """Ask without a pause on each connection, or `per_second` times on all of them.

    Raises:
        MaskRayError: wrk failed.
    """
    command = ["wrk", "--threads=1", f"--connections={num_connections}"]
    command += [f"--duration={seconds:.0f}s", f"--timeout={_TIMEOUT_S}s", f"--script={_SCRIPT}"]
    command += [url, "--", str(bodies), form.content_type]
    command += [str(per_second)] if per_second else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not done.stdout.splitlines():
        raise MaskRayError(f"wrk failed: {done.stderr or done.stdout}")
    return Load(**json.loads(done.stdout.splitlines()[-1]))
