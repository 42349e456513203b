"""Memory that a process decodes into, and its owner reads from: pixels cross without a copy.

The first bytes say how many images of the batch are done. The pixels of each follow, one after the
other, in the order of the batch.
"""

import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# Pixels begin at a cache line.
_HEAD_BYTES = 64


def needed_bytes(image_sizes: Iterable[int]) -> int:
    """Return what a batch takes whose images are squares of these sides."""
    return _HEAD_BYTES + sum(map(_num_bytes, image_sizes))


def create(num_bytes: int) -> int:
    """Return the descriptor of new memory. On Linux no process can change its size.

    If another process could make it shorter, reading beyond its end would kill this one (SIGBUS).
    """
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            file.truncate(num_bytes)
            return os.dup(file.fileno())
    descriptor = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, num_bytes)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


class SharedPixels:
    """The memory behind a descriptor, which may be closed afterwards.

    It lasts until nothing refers to this object or to its pixels.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = np.frombuffer(mmap.mmap(descriptor, 0), np.uint8)
        self._num_done = self._memory[:_HEAD_BYTES].view(np.uint32)

    @property
    def num_done(self) -> int:
        """How many images of the batch are done."""
        return int(self._num_done[0])

    @num_done.setter
    def num_done(self, number: int) -> None:
        self._num_done[0] = number

    def places(self, image_sizes: Iterable[int]) -> list[NDArray[np.uint8]]:
        """Return the pixels of each image: uint8 of shape (image_size, image_size, 3)."""
        places, at = [], _HEAD_BYTES
        for size in image_sizes:
            end = at + _num_bytes(size)
            places.append(self._memory[at:end].reshape(size, size, 3))
            at = end
        return places


def joined(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Stack images; without a copy if they follow one another as `places` returned them."""
    if len(images) == 1:
        return images[0][None]
    first, memory = images[0], images[0].base
    if not isinstance(memory, np.ndarray) or memory.dtype != np.uint8 or memory.ndim != 1:
        return np.stack(images)
    at = _address(first)
    for number, image in enumerate(images):
        is_next = _address(image) == at + number * first.nbytes
        if not is_next or image.base is not memory or image.shape != first.shape:
            return np.stack(images)
    start = at - _address(memory)
    return memory[start : start + len(images) * first.nbytes].reshape(-1, *first.shape)


def _address(array: NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])


def _num_bytes(image_size: int) -> int:
    return image_size * image_size * 3
