"""Small archives, good and bad, made on the spot."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

FILES = {
    "a/1.jpg": b"one", "a/deep/2.jpg": b"two", "b/3.jpg": b"three",
}  # fmt: skip


def folder(root: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def zip_bytes(files: dict[str, bytes] = FILES, top: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            zipped.writestr(top + name, content)
    return buffer.getvalue()


def tar_bytes(files: dict[str, bytes] = FILES, top: str = "", mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tar_of(kind: bytes, name: str = "a/odd", link: str = "") -> bytes:
    """A tar archive of one member of a kind other than a file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        tar.addfile(member)
    return buffer.getvalue()


def tar_with_header(kind: bytes, num_bytes: int) -> bytes:
    """A tar.gz archive whose one file has a header of this size before its own."""
    header, member = tarfile.TarInfo("header"), tarfile.TarInfo("a/1.jpg")
    header.type, header.size = kind, num_bytes
    parts = [header.tobuf(tarfile.USTAR_FORMAT), bytes(-(-num_bytes // 512) * 512)]
    return gzip.compress(b"".join([*parts, member.tobuf(tarfile.USTAR_FORMAT), bytes(1024)]))


def zip_with_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        entry = zipfile.ZipInfo("a/odd")
        entry.external_attr = 0o120777 << 16
        zipped.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def written(tmp_path: Path, content: bytes, name: str = "photos.zip") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


class Usage(NamedTuple):
    """What `shutil.disk_usage` says."""

    free: int
