"""Walks through folders as people have them: past what systems put there, noting what it skips."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from mask_ray.config import IMAGE_FORMATS

IMAGE_SUFFIXES = tuple(sorted(suffix for each in IMAGE_FORMATS for suffix in each.suffixes))

# Files and folders of systems: macOS, Windows, Linux, Synology, QNAP, Picasa. Names
# that begin with a dot are theirs too.
_JUNK = re.compile(
    r"__macosx|icon\r|\.?(eh)?thumbs(_vista)?\.db|desktop\.ini|picasa\.ini|__pycache__|lost\+found"
    r"|\$recycle\.bin|recycler|system volume information|[@#](eadir|tmp|recycle|snapshot)"
    r"|@recently-snapshot|@__thumb",
    re.IGNORECASE,
)
# How many skipped names a message shows.
_NUM_SHOWN = 3


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is a system's own, or hidden."""
    return name.startswith(".") or _JUNK.fullmatch(name) is not None


@dataclass
class Skipped:
    """Paths that were skipped, below their folder, by reason.

    Args:
        dangling: Links to nothing.
        linked: Linked folders, which could form a circle.
        special: Neither files nor folders, such as pipes.
        unreadable: Folders that may not be read.
        outside: Files outside the folders of classes.
        other: Files whose names are not those of images.
    """

    dangling: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    def describe(self) -> list[str]:
        """Write a line for each reason, with the first names."""
        reasons = (
            (self.dangling, "links that lead nowhere", ""),
            (self.linked, "linked folders", "; give their own paths to include them"),
            (self.special, "names that are no files", ""),
            (self.unreadable, "folders that may not be read", ""),
            (self.outside, "files outside the folders of classes", ""),
            (self.other, "files that are not named as images", ""),
        )
        return [
            f"skipped {what}: {len(paths)} ({first_names(paths, _NUM_SHOWN)}){advice}"
            for paths, what, advice in reasons
            if paths
        ]


def first_names(names: Sequence[str], num_shown: int) -> str:
    """List the first names for a message, and how many more there are."""
    more = [f"and {len(names) - num_shown} more"] if len(names) > num_shown else []
    return ", ".join([*names[:num_shown], *more])


def walk(folder: str, skipped: Skipped, *, linked_depth: int = 0) -> Iterator[str]:
    """Yield the files in a folder and below it, in the order of their parts.

    Takes the memory of one folder at a time. Junk is left out silently.

    Args:
        folder: Where to begin.
        skipped: Takes what is left out otherwise.
        linked_depth: How many levels of links to folders are followed; 1: those in the folder.

    Yields:
        Paths below the folder, with slashes.

    Raises:
        OSError: the folder cannot be read.
    """
    yield from _walk(folder, "", skipped, linked_depth)


def _walk(folder: str, below: str, skipped: Skipped, linked_depth: int) -> Iterator[str]:
    with os.scandir(folder) as scanned:
        entries = sorted(
            (entry for entry in scanned if not is_junk(entry.name)), key=lambda entry: entry.name
        )
    for entry in entries:
        path = f"{below}{entry.name}"
        if entry.is_dir(follow_symlinks=linked_depth > 0):
            try:
                yield from _walk(entry.path, f"{path}/", skipped, linked_depth - 1)
            except PermissionError:
                skipped.unreadable.append(path)
        elif entry.is_file():
            yield path
        else:
            _skip(entry, path, skipped)


def _skip(entry: os.DirEntry[str], path: str, skipped: Skipped) -> None:
    if entry.is_dir():
        skipped.linked.append(path)
    elif entry.is_symlink():
        skipped.dangling.append(path)
    else:
        skipped.special.append(path)


def images_below(folder: str, skipped: Skipped) -> list[str]:
    """Return the paths of the images in and below a folder, by their names, sorted."""
    images = []
    for path in walk(folder, skipped):
        if PurePath(path).suffix.lower() in IMAGE_SUFFIXES:
            images.append(str(Path(folder, path)))
        else:
            skipped.other.append(path)
    return sorted(images)
