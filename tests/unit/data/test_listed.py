"""Images of a list of files are read again where they are, and must be what they were."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mask_ray.config import ImageLimits
from mask_ray.data import listed as data_listed
from mask_ray.data.listed import decode_listed, read_listed
from mask_ray.data.sources import DataError
from mask_ray.data.sources.location import Place, locate
from mask_ray.data.summary import digest_of
from mask_ray.images import synthetic


def listed(*rows: tuple[str, bytes, int]) -> dict[str, np.ndarray]:
    """Rows of paths, the bytes that the run read, and labels."""
    return {
        "path": np.array([path for path, _, _ in rows], dtype=object),
        "digest": np.array([digest_of(encoded) for _, encoded, _ in rows], dtype=object),
        "label": np.array([label for _, _, label in rows]),
    }


def test_files_are_read_and_changed_or_missing_ones_are_named(tmp_path: Path) -> None:
    encoded, _ = synthetic.encode(0)
    other, _ = synthetic.encode(1)
    paths = [str(tmp_path / name) for name in ("same.jpg", "changed.jpg", "gone.jpg", "text.jpg")]
    for path, content in zip(paths, (encoded, other, None, b"text"), strict=True):
        if content is not None:
            Path(path).write_bytes(content)

    rows = decode_listed(
        listed(*((path, encoded, 1) for path in paths[:3]), (paths[3], b"text", 0)),
        32,
        ImageLimits(),
    )

    assert rows["label"].tolist() == [1, 1, 1, 0]
    assert rows["image"].shape == (4, 32, 32, 3) and rows["image"][0].any()
    assert not rows["image"][1:].any()
    good, changed, gone, broken = rows["error"].tolist()
    assert good == ""
    assert changed == "has changed since the run read it"
    assert gone == "cannot be read: No such file or directory"
    assert broken


def test_drawn_images_are_drawn_again() -> None:
    encoded, _ = synthetic.encode(7, seed=3)
    rows = decode_listed(listed(("synthetic/3/7.jpg", encoded, 0)), 32, ImageLimits())
    assert rows["error"].tolist() == [""]


@pytest.mark.parametrize("name", ["0.jpg", "with mask/0#1.jpg"])
def test_files_of_an_object_store_are_read_from_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    located: list[str] = []

    def recorded(uri: str) -> Place:
        located.append(uri)
        return locate(uri)

    monkeypatch.setattr(data_listed, "locate", recorded)
    encoded, _ = synthetic.encode(0)
    fsspec.filesystem("memory").pipe(f"/bucket/{name}", encoded)
    rows = decode_listed(listed((f"memory:///bucket/{name}", encoded, 0)), 32, ImageLimits())
    assert rows["error"].tolist() == [""]
    # pyarrow reads no URI that has a space.
    assert located == ["memory:///"]


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    rows = decode_listed(listed(("nowhere://bucket/0.jpg", b"", 0)), 32, ImageLimits())
    assert "nowhere" in rows["error"][0]


def test_strange_classes_are_rejected() -> None:
    files = pa.table({"path": ["a.jpg"], "digest": ["d"], "label": ["cat"]})
    with pytest.raises(DataError, match="classes must be among with_mask, without_mask; got cat"):
        read_listed(files, ["with_mask", "without_mask"], 32, ImageLimits())
