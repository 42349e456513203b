"""Reading from an object store that stops answering."""

from pathlib import Path

import pytest

from mask_ray.data import sources
from mask_ray.data.sources.reading import Files
from tests.support import object_store


def test_a_store_that_does_not_answer_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or all of its images would count as bad, and the rest as the data set."""
    with object_store.serve({"set/a/1": b"", "set/b/2": b""}) as address:
        for name, value in object_store.environment(address).items():
            monkeypatch.setenv(name, value)
        labelled = sources.list_labelled("s3://photos/set")
    (task,) = Files(labelled.roots, labelled.files, 0).get_read_tasks(1)
    with pytest.raises(OSError, match="photos"):
        list(task())
