"""The fingerprint of a source in an object store."""

from pathlib import Path

import pytest

from mask_ray.config import MaskRayError
from mask_ray.data.sources import fingerprint
from tests.support import object_store


def test_a_store_is_another_when_a_file_in_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    photos = {"set/a/1.jpg": b"1", "set/b/2.jpg": b"2"}
    seen = []
    for changed in ({}, {"set/a/1.jpg": b"one"}, {"set/b/3.jpg": b"3"}):
        with object_store.serve(photos | changed) as address:
            for name, value in object_store.environment(address).items():
                monkeypatch.setenv(name, value)
            seen.append(fingerprint.of_source("s3://photos/set"))
            seen.append(fingerprint.of_source("s3://photos/set/b/2.jpg"))
    assert len(set(seen[::2])) == 3
    with pytest.raises(MaskRayError, match=r"s3://photos/set .*cannot be read"):
        fingerprint.of_source("s3://photos/set")

    (tmp_path / "1.jpg").write_bytes(b"1")
    here = f"file://{tmp_path}"
    before = fingerprint.of_source(here)
    assert fingerprint.of_source(here) == before
    (tmp_path / "2.jpg").write_bytes(b"2")
    assert fingerprint.of_source(here) != before
