"""What a data set holds: counts by split and class, and digests of its contents."""

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass, field

from mask_ray.config import SplitName
from mask_ray.data.inventory import Inventory
from mask_ray.data.splits import LEFT_OUT, SPLITS, Assignment

_NUM_BAD_FILES_SHOWN = 10


@dataclass(frozen=True)
class Summary:
    """What a data set holds, after one pass over it.

    Args:
        counts: Number of images by split and class.
        digest: Digest of contents and labels.
        bad_files: Reason of each unreadable file, by path.
        split_digest: Digest of contents, labels and splits.
        num_grouped: Number of images that share a picture or a given group with another, and
            therefore the split.
        num_left_out: Number of images left out because the fixed test set has their picture.
        num_dropped: Number of images left out because others of their picture or group were given
            another split.
        num_resolved: Number of images that were moved to another split for the same reason.
        filled: Splits that the source gives nothing, and that got a share of its train split.
    """

    counts: dict[SplitName, Counter[str]]
    digest: str
    bad_files: dict[str, str] = field(repr=False)
    split_digest: str = ""
    num_grouped: int = 0
    num_left_out: int = 0
    num_dropped: int = 0
    num_resolved: int = 0
    filled: tuple[SplitName, ...] = ()

    @property
    def num_images(self) -> int:
        """Number of readable images, over all classes and splits."""
        return sum(split.total() for split in self.counts.values())

    def report(self) -> str:
        """Describe it in a few lines: images by split and class, and the first bad files."""
        splits = ", ".join(
            f"{split} {counts.total()} ({', '.join(f'{n} {k}' for k, n in sorted(counts.items()))})"
            for split, counts in self.counts.items()
        )
        lines = [f"{self.num_images} images: {splits}"]
        if self.num_grouped:
            lines.append(
                f"{self.num_grouped} of them share a picture or group with others, and are in the "
                "same split"
            )
        if self.num_left_out:
            lines.append(f"{self.num_left_out} more left out: --test-data has their picture")
        if self.filled:
            names = " and ".join(self.filled)
            lines.append(f"the data has no {names}: a share of its train is used")
        if self.num_resolved:
            lines.append(f"{self.num_resolved} moved: their picture or group is in another split")
        if self.num_dropped:
            lines.append(
                f"{self.num_dropped} more left out: their picture or group is in another split"
            )
        if self.bad_files:
            lines.append(f"{len(self.bad_files)} unreadable files left out:")
            named = itertools.islice(self.bad_files.items(), _NUM_BAD_FILES_SHOWN)
            lines += [f"  {path}: {reason}" for path, reason in named]
        if len(self.bad_files) > _NUM_BAD_FILES_SHOWN:
            lines.append("  ... (all of them in bad_files.json of the run)")
        return "\n".join(lines)


def summarise(
    inventory: Inventory,
    assignment: Assignment,
    class_names: list[str],
    bad_files: dict[str, str],
) -> Summary:
    """Count the images of a data set and compute its digests.

    The digest is the sum, modulo 2^256, of a SHA-256 for each file, over its label and content.
    It depends only on contents and labels, not on names or order. See AdHash in Bellare and
    Micciancio 1997, https://doi.org/10.1007/3-540-69053-0_13.
    """
    counts: dict[SplitName, Counter[str]] = {name: Counter() for name in SPLITS}
    total = split_total = 0
    rows = zip(inventory.labels, inventory.digests, assignment.indices, strict=True)
    for label, digest, index in rows:
        split = (*SPLITS, LEFT_OUT)[index]
        labelled = f"{class_names[label]}\0{digest.tobytes().hex()}"
        total += int.from_bytes(hashlib.sha256(labelled.encode()).digest())
        split_total += int.from_bytes(hashlib.sha256(f"{labelled}\0{split}".encode()).digest())
        if split != LEFT_OUT:
            counts[split][class_names[label]] += 1
    return Summary(
        counts,
        f"{total % 2**256:064x}",
        bad_files,
        f"{split_total % 2**256:064x}",
        assignment.num_grouped,
        assignment.num_left_out,
        assignment.num_dropped,
        assignment.num_resolved,
        assignment.filled,
    )


def digest_of(encoded: bytes) -> str:
    """Compute the SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(encoded).hexdigest()
