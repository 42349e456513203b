"""Write files and folders that are whole or not there, even after a power cut.

What is written gets its name only once its content is on the disk, and the name is on the disk
before the writer goes on. State is private: only its owner may read it.
`safe_cell` keeps a spreadsheet from running a text in a table.
"""

import ctypes
import errno
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mask_ray.config import MaskRayError, home

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
# Names of files and classes may come from strangers, and a spreadsheet runs a cell that looks like
# a formula: https://owasp.org/www-community/attacks/CSV_Injection
# Full-width signs count too in some locales.
FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")

UNFINISHED = ".unfinished"

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def appearing_file(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """Yield the path to write to. After it the file has its name, completely or not at all.

    The unfinished file is beside it, with `.unfinished` added to its name. Only one process may
    write a file at a time.

    Args:
        path: The file; replaced if it exists. Its folder must exist.
        mode: Its permissions; None for the usual ones of a new file.

    Raises:
        OSError: the file cannot be written; nothing unfinished stays.
    """
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    try:
        unfinished.unlink(missing_ok=True)
        if mode is not None:
            os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield unfinished
        _sync(unfinished)
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str, *, mode: int | None = None) -> None:
    """Write a file, see `appearing_file`."""
    with appearing_file(path, mode=mode) as unfinished:
        unfinished.write_text(text, "utf-8")


def publish_folder(unfinished: Path, folder: Path) -> None:
    """Give a complete folder its name, once all that is in it is on the disk.

    Args:
        unfinished: The folder, in the same file system.
        folder: Its name from now on; nothing, or an empty folder, may be there.

    Raises:
        OSError: it cannot be renamed, or the disk fails.
    """
    _sync_tree(unfinished)
    unfinished.replace(folder)
    _sync_folder(folder.parent)


def make_private(folder: Path) -> Path:
    """Create a folder and its missing parents, for their owner alone. Returns the folder.

    The state of an earlier version in `~/.mask_ray` was open to others: it is closed.

    Raises:
        OSError: a folder cannot be created.
    """
    for parent in [*reversed(folder.parents), folder]:
        if not parent.is_dir():
            parent.mkdir(PRIVATE_FOLDER, exist_ok=True)
    default = Path("~/.mask_ray")
    with suppress(RuntimeError):  # no home directory
        default = default.expanduser()
    if home() == default and default.is_dir() and default.stat().st_mode & 0o077:
        with suppress(OSError):  # it belongs to somebody else
            default.chmod(PRIVATE_FOLDER)
    return folder


def check_home() -> None:
    """Create the folder of all state if it is missing, and check that it can be written.

    Raises:
        MaskRayError: it cannot be created or written, or its path has a sign that a URI of SQLite
            reads as its own.
    """
    folder = home()
    strange = sorted({sign for sign in str(folder) if sign in "%?#" or not sign.isprintable()})
    if strange:
        raise MaskRayError(
            f"MASK_RAY_HOME must have no {' '.join(map(repr, strange))} in its path, which ends or "
            f"changes the URI of the database in it; got {str(folder)!r}"
        )
    try:
        make_private(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name in ("mlflow.db", "mlartifacts"):
            path = folder / name
            if path.exists() and not os.access(path, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, f"{name} may not be written")
    except OSError as error:
        if is_full(error):
            raise
        raise MaskRayError(
            f"MASK_RAY_HOME must be a folder that can be written; {folder}: {error.strerror}. Set "
            "MASK_RAY_HOME to another"
        ) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full, or a quota spent."""
    return isinstance(error, OSError) and error.errno in _FULL


def _sync_tree(folder: Path) -> None:
    """Put a folder and all below it on the disk.

    One call for the whole file system, where there is one: a call for each of many small files
    takes milliseconds each.
    """
    if _sync_file_system(folder):
        return
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        _sync_folder(Path(root))


def _sync_file_system(folder: Path) -> bool:
    """Call Linux's `syncfs`; return whether it is there and succeeded."""
    if sys.platform != "linux":
        return False
    opened = os.open(folder, os.O_RDONLY)
    try:
        return ctypes.CDLL(None).syncfs(opened) == 0
    except AttributeError:  # a C library without it
        return False
    finally:
        os.close(opened)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk. Some network file systems cannot; they need not."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)


def safe_cell(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would take for a formula."""
    return f"'{text}" if FORMULA.match(text) else text
