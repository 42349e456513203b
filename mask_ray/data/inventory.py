"""Flat arrays with all that is known of the images of a data set, except pixels.

An image takes about 320 bytes and no Python object: two million images take 650 MB in the driver.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mask_ray.data.near_duplicates import SIGNATURE_BYTES, connect, equal_pairs, near_pairs

NOT_GIVEN = -1

Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Inventory:
    """One row for each readable image.

    Args:
        labels: Index of the class, int32 of shape (n,).
        digests: SHA-256 of the file, uint8 of shape (n, 32).
        signatures: From `near_duplicates.signature`, uint8 of shape (n, SIGNATURE_BYTES).
        given_splits: Index of the split that the source gives, int8 of shape (n,), or NOT_GIVEN.
        given_groups: Hash of the group that the source gives, uint64 of shape (n,), or 0.
        held_out: Whether the image is in the fixed test set, bool of shape (n,).
    """

    labels: NDArray[np.int32]
    digests: NDArray[np.uint8]
    signatures: NDArray[np.uint8]
    given_splits: NDArray[np.int8]
    given_groups: NDArray[np.uint64]
    held_out: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of_batch(cls, batch: Batch, splits: tuple[str, ...]) -> Self:
        """Take the rows of a batch with the columns `label`, `digest` (hex) and `signature`.

        The columns `given_split`, `given_group` and `held_out` are optional.

        Raises:
            ValueError: a given split is not in `splits`.
        """
        num_rows = len(batch["label"])
        hexes = "".join(batch["digest"])
        nothing = np.full(num_rows, "", dtype=object)
        return cls(
            batch["label"].astype(np.int32),
            np.frombuffer(bytes.fromhex(hexes), np.uint8).reshape(num_rows, 32),
            np.asarray(batch["signature"], np.uint8).reshape(num_rows, SIGNATURE_BYTES),
            np.array(
                [_split_index(name, splits) for name in batch.get("given_split", nothing)], np.int8
            ),
            np.array([_name_hash(name) for name in batch.get("given_group", nothing)], np.uint64),
            batch.get("held_out", np.zeros(num_rows, bool)).astype(bool),
        )

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """Concatenate all parts."""
        kept = list(parts) or [cls.empty()]
        return cls(
            *(
                np.concatenate([getattr(part, column.name) for part in kept])
                for column in fields(cls)
            )
        )

    @classmethod
    def empty(cls) -> Self:
        """Return an inventory without rows."""
        return cls(
            np.zeros(0, np.int32),
            np.zeros((0, 32), np.uint8),
            np.zeros((0, SIGNATURE_BYTES), np.uint8),
            np.zeros(0, np.int8),
            np.zeros(0, np.uint64),
            np.zeros(0, bool),
        )

    def prefixes(self) -> NDArray[np.uint64]:
        """Return the first 8 bytes of each digest, uint64 of shape (n,)."""
        return np.ascontiguousarray(self.digests[:, :8]).view(">u8").ravel().astype(np.uint64)

    def hex_digests(self, rows: Any = slice(None)) -> list[str]:
        """Return the digests of these rows in hex, as in batches."""
        return [digest.tobytes().hex() for digest in self.digests[rows]]

    def groups(self) -> NDArray[np.int64]:
        """Return the first row of each row's group.

        A group holds copies of one file, images of one picture, and images to which the source
        gives one group.
        """
        prefixes = self.prefixes()
        named = np.flatnonzero(self.given_groups)
        _, one_of_each = np.unique(prefixes, return_index=True)
        first, second, _ = near_pairs(self.signatures, one_of_each)
        pairs = (
            equal_pairs(prefixes),
            equal_pairs(self.given_groups[named], named),
            (first, second),
        )
        return connect(len(self), *(np.concatenate(side) for side in zip(*pairs, strict=True)))


def _split_index(name: str, splits: tuple[str, ...]) -> int:
    if not name:
        return NOT_GIVEN
    if name not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)}, or empty; got {name}")
    return splits.index(name)


def _name_hash(name: str) -> int:
    """Hash a name to 64 bits; an empty name to 0."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) if name else 0
