"""Models of a tracking server, kept on this machine by version and SHA-256.

A version never changes, so a replica can load a kept one without asking the server.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import quote

from mask_ray.config import MaskRayError
from mask_ray.files import make_private, publish_folder, sha256_of

ONNX_FILE = "model.onnx"

_DOWNLOADING = ".downloading-"
_ABANDONED_S = 24 * 3600


class ModelDamagedError(MaskRayError):
    """The file of a version is not the one that was registered."""


class ModelCache:
    """Folders of models, below one folder for each server.

    Args:
        folder: Folder of all servers.
        store: URI of the server.
    """

    def __init__(self, folder: Path, store: str) -> None:
        digest = hashlib.blake2b(store.encode(), digest_size=8).hexdigest()
        self._folder = folder / digest

    def find(self, name: str, version: str, sha256: str | None) -> Path | None:
        """Return the folder of a kept version whose file is undamaged, or None.

        Args:
            name: Name of the registered model.
            version: Number of the version.
            sha256: Digest that the ONNX file must have; None: the one that it was kept with.
        """
        for kept in sorted(self._of(name, version).glob("*")):
            if kept.name.startswith(_DOWNLOADING) or sha256 not in (None, kept.name):
                continue
            if (kept / ONNX_FILE).is_file() and sha256_of(kept / ONNX_FILE) == kept.name:
                return kept
            shutil.rmtree(kept, ignore_errors=True)
        return None

    def keep(
        self, name: str, version: str, sha256: str | None, download: Callable[[Path], Path]
    ) -> Path:
        """Download a version and keep it; return its folder. A failed download leaves nothing.

        Other files that were kept for this version are deleted: a registered model that was
        deleted and made again has other files under the same numbers.

        Args:
            name: Name of the registered model.
            version: Number of the version.
            sha256: Digest that the ONNX file must have; None if it is unknown.
            download: Downloads the model into a folder; returns the model's folder there.

        Raises:
            ModelDamagedError: the downloaded file has another digest.
        """
        parent = self._of(name, version)
        make_private(parent)
        _delete_abandoned(parent)
        scratch = Path(mkdtemp(prefix=_DOWNLOADING, dir=parent))
        try:
            model = download(scratch)
            digest = check_digest(model / ONNX_FILE, sha256, f"models:/{name}/{version}")
            _move(model, parent / digest)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        for other in parent.glob("*"):
            if other.name != digest and not other.name.startswith(_DOWNLOADING):
                shutil.rmtree(other, ignore_errors=True)
        return parent / digest

    def _of(self, name: str, version: str) -> Path:
        return self._folder / quote(name, safe="") / version


def _delete_abandoned(parent: Path) -> None:
    """Delete downloads of processes that were killed; none takes a day."""
    for scratch in parent.glob(f"{_DOWNLOADING}*"):
        with suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(scratch, ignore_errors=True)


def _move(folder: Path, kept: Path) -> None:
    try:
        publish_folder(folder, kept)
    except OSError:
        # Another process has kept the same files first.
        if not kept.is_dir():
            raise


def check_digest(path: Path, sha256: str | None, uri: str) -> str:
    """Return the SHA-256 of a model file.

    Raises:
        ModelDamagedError: it is not `sha256`, if that is given.
    """
    digest = sha256_of(path)
    if sha256 not in (None, digest):
        raise ModelDamagedError(
            f"the file of {uri} must have the SHA-256 with which it was registered, {sha256}; "
            f"got {digest}"
        )
    return digest
