"""Find images that show the same picture, by a signature of each image.

A signature is the grey picture sampled on rings within its largest centred circle. Rotating the
picture shifts every ring by the same angle, and mirroring reverses the rings. Fourier transforms
along the rings compare two signatures at all rotations at once, mirrored or not. What a rotation
leaves outside the circle, such as black corners, does not count.

A hash of the whole picture does not survive a rotation. In 1,376 photos of faces, many of them
rotated by up to 25 degrees, blurred or with noise added, 1,413 of all 946,000 pairs agree in their
signatures, and seen side by side these are copies. `imagehash.phash` is within 8 of its 64 bits
for 674 of them, and for 316 pairs of different photos. In another 1,720 photos 60 pairs agree;
about five of these show two similar people, such as two close crops of a black mask.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_ray.images.decode import RGBArray

NUM_RINGS = 8
NUM_ANGLES = 32
SIGNATURE_BYTES = NUM_RINGS * NUM_ANGLES

# Correlation from which two signatures are one picture. With a lower value, different faces in
# similar crops agree; with a higher one, rotated and blurred copies do not. A false pair costs
# nothing, a missed pair makes test metrics a little too good.
SAME_PICTURE = 0.93

# Least standard deviation of pixels, of 255. The rings of plainer pictures are only noise.
_LEAST_CONTRAST = 4.0

# Images are sorted by each of this many keys, of 32 random projections each, and compared with
# their next neighbours in each order. Similar pictures share the first bits of some key. Each of
# those 1,413 pairs differs in at most 107 bits of all keys, two photos by chance in 256.
_NUM_ORDERS = 24
_NUM_NEIGHBOURS = 6
_NUM_HARMONICS = 8
_MOST_BITS_APART = 0.21

# Number of rows whose spectra are in memory at a time.
_CHUNK = 8192

_GRID_PX = 48

Signatures = NDArray[np.uint8]


def _ring_points() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return horizontal and vertical offsets from the centre, -1 to 1. Rings have equal area."""
    radii = 0.92 * np.sqrt((np.arange(NUM_RINGS) + 0.5) / NUM_RINGS)[:, None]
    angles = np.arange(NUM_ANGLES) * 2 * np.pi / NUM_ANGLES
    across, down = radii * np.cos(angles), radii * np.sin(angles)
    return across.astype(np.float32), down.astype(np.float32)


_ACROSS, _DOWN = _ring_points()


def signature(picture: RGBArray, height: int, width: int) -> Signatures:
    """Sample a picture, which may have been stretched, on rings.

    Args:
        picture: uint8 of shape (any, any, 3), upright.
        height: Height before stretching, in the unit of `width`.
        width: Width before stretching.

    Returns uint8 of shape (SIGNATURE_BYTES,).
    """
    image = Image.fromarray(picture).convert("L")
    grey = np.asarray(image.resize((_GRID_PX, _GRID_PX), Image.Resampling.BOX))
    centre, side = (_GRID_PX - 1) / 2, min(height, width)
    columns = np.rint(centre + centre * side / width * _ACROSS).astype(np.intp)
    rows = np.rint(centre + centre * side / height * _DOWN).astype(np.intp)
    return grey[rows, columns].ravel()


def equal_pairs(
    keys: NDArray[np.uint64], rows: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs of rows that connect all rows of equal key.

    Args:
        keys: Key of each row in `rows`.
        rows: Rows that have a key; all rows by default.
    """
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    first, second = order[:-1][same], order[1:][same]
    return (first, second) if rows is None else (rows[first], rows[second])


def connect(
    num_rows: int, first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Group rows 0 to num_rows - 1 so that `first[i]` and `second[i]` share a group, for all i.

    Returns the first row of each row's group, of shape (num_rows,).
    """
    # Slow to import, and processes that only decode never need it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.ones(len(first), bool), (first, second)
    _, group = connected_components(coo_array(edges, (num_rows, num_rows)), directed=False)
    _, first_rows = np.unique(group, return_index=True)
    roots: NDArray[np.int64] = first_rows[group]
    return roots


def near_pairs(
    signatures: Signatures, rows: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Find pairs of rows that show one picture, and their correlations.

    Of a large group not all pairs are found, but enough to connect it.

    Args:
        signatures: Shape (n, SIGNATURE_BYTES).
        rows: Rows to compare; all rows by default.
    """
    has_contrast = _contrast(signatures) >= _LEAST_CONTRAST
    rows = np.flatnonzero(has_contrast) if rows is None else rows[has_contrast[rows]]
    candidates = [rows[row] for row in _candidates(signatures, rows)]
    agreement = correlations(signatures, *candidates)
    same = agreement >= SAME_PICTURE
    return candidates[0][same], candidates[1][same], agreement[same]


def first_of_each(signatures: Signatures, most: int) -> list[int]:
    """Return the rows that show no picture of a row before them, `most` at most.

    Compares with the rows that it returns alone, so it is for few.

    Args:
        signatures: Shape (n, SIGNATURE_BYTES).
        most: Number of rows after which to stop.
    """
    has_contrast = _contrast(signatures) >= _LEAST_CONTRAST
    found: list[int] = []
    for row in range(len(signatures)):
        if len(found) == most:
            break
        earlier = np.array([each for each in found if has_contrast[each]], np.int64)
        agreement = correlations(signatures, earlier, np.full(len(earlier), row))
        if not has_contrast[row] or not (agreement >= SAME_PICTURE).any():
            found.append(row)
    return found


def correlations(
    signatures: Signatures, first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Correlate rows `first[i]` and `second[i]` at the best rotation, mirrored or not: -1 to 1."""
    results = [np.zeros(0, np.float32)]
    for start in range(0, len(first), _CHUNK):
        pairs = slice(start, start + _CHUNK)
        spectra = _spectra(signatures[first[pairs]]), _spectra(signatures[second[pairs]])
        results.append(_correlate(*spectra))
    return np.concatenate(results)


def _correlate(first: NDArray[np.complex64], second: NDArray[np.complex64]) -> NDArray[np.float32]:
    turned = np.fft.irfft((first.conj() * second).sum(axis=1), NUM_ANGLES).max(axis=1)
    mirrored = np.fft.irfft((first * second).sum(axis=1), NUM_ANGLES).max(axis=1)
    best: NDArray[np.float32] = np.maximum(turned, mirrored).astype(np.float32)
    return best


def _spectra(signatures: Signatures) -> NDArray[np.complex64]:
    """Compute Fourier coefficients along the rings, of signatures scaled to mean 0 and norm 1."""
    rings = signatures.reshape(-1, NUM_RINGS, NUM_ANGLES).astype(np.float32)
    rings -= rings.mean(axis=(1, 2), keepdims=True)
    rings /= np.sqrt((rings**2).sum(axis=(1, 2), keepdims=True)) + 1e-6
    return np.fft.rfft(rings).astype(np.complex64)


def _contrast(signatures: Signatures) -> NDArray[np.float64]:
    chunks = np.array_split(signatures, max(1, len(signatures) // _CHUNK))
    return np.concatenate([chunk.std(axis=1) for chunk in chunks])


def _candidates(
    signatures: Signatures, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find pairs that are worth comparing, each once, as positions in `rows`.

    Sorts random projections of features that rotating and mirroring do not change: Charikar 2002,
    https://doi.org/10.1145/509907.509965.
    """
    keys = _keys(signatures, rows)
    most_apart = int(_MOST_BITS_APART * 32 * _NUM_ORDERS)
    found = [np.zeros(0, np.int64)]
    for column in keys.T:
        order = np.argsort(column, kind="stable")
        for distance in range(1, min(_NUM_NEIGHBOURS + 1, len(order))):
            first, second = order[:-distance], order[distance:]
            near = _bits_apart(keys, first, second) <= most_apart
            pair = np.minimum(first, second)[near], np.maximum(first, second)[near]
            found.append(pair[0] * len(rows) + pair[1])
    pairs = np.unique(np.concatenate(found))
    return np.divmod(pairs, max(1, len(rows)))


def _keys(signatures: Signatures, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Compute the sorting keys, of shape (n, _NUM_ORDERS): 96 bytes an image."""
    centre = _mean_invariants(signatures, rows)
    shape = (len(centre), 32 * _NUM_ORDERS)
    projection = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    keys = [np.zeros((0, _NUM_ORDERS), np.uint32)]
    for chunk in _chunks(rows):
        bits = (_invariants(signatures[chunk]) - centre) @ projection > 0
        keys.append(np.packbits(bits, axis=1).view(">u4").astype(np.uint32))
    return np.concatenate(keys)


def _bits_apart(
    keys: NDArray[np.uint32], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.int64]:
    chunks = [slice(at, at + 2**17) for at in range(0, len(first), 2**17)]
    counts = [
        np.bitwise_count(keys[first[rows]] ^ keys[second[rows]]).sum(axis=1, dtype=np.int64)
        for rows in chunks
    ]
    return np.concatenate(counts)


def _chunks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _invariants(signatures: Signatures) -> NDArray[np.float32]:
    """Return ring means and magnitudes of low harmonics: (n, NUM_RINGS * _NUM_HARMONICS)."""
    spectra = _spectra(signatures)[:, :, :_NUM_HARMONICS]
    magnitudes = np.abs(spectra)
    magnitudes[:, :, 0] = spectra[:, :, 0].real
    return magnitudes.reshape(len(signatures), -1)


def _mean_invariants(signatures: Signatures, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    sample = rows[:: max(1, len(rows) // _CHUNK)]
    if not len(sample):
        return np.zeros(NUM_RINGS * _NUM_HARMONICS, np.float32)
    mean: NDArray[np.float32] = _invariants(signatures[sample]).mean(axis=0)
    return mean
