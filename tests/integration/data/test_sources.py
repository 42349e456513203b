"""Whatever kind of source files come from, the data set is the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mask_ray import data
from mask_ray.config import DataSettings
from mask_ray.data import Summary, sources
from mask_ray.images import synthetic
from tests.support import object_store, photo_archives, range_server

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    drawn = [synthetic.encode(index, image_size=48) for index in range(80)]
    return {f"{name}/{index}.jpg": jpeg for index, (jpeg, name) in enumerate(drawn)}


@pytest.fixture(scope="module")
def folder(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_archives.folder(tmp_path_factory.mktemp("photos"), files)


@pytest.fixture(scope="module")
def ray_environment(files: dict[str, bytes]) -> Iterator[dict[str, str]]:
    """The way to the object store, for this process and for Ray's."""
    objects = {f"set/{name}": content for name, content in files.items()}
    with object_store.serve(objects) as address, pytest.MonkeyPatch.context() as patch:
        environment = object_store.environment(address)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


def summary(*given: object) -> Summary:
    settings = DataSettings(data=[str(source) for source in given])
    return data.load(settings, 32).summary


def write_manifest(file: Path, folder: Path, rows: list[str], header: str) -> Path:
    file.write_text("\n".join([header, *rows]))
    return file


def test_every_kind_gives_the_same_data_set(
    folder: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    expected = summary(folder)
    assert expected.num_images == 80
    (tmp_path / "a.zip").write_bytes(photo_archives.zip_bytes(files))
    (tmp_path / "a.tar.gz").write_bytes(photo_archives.tar_bytes(files, top="photos/"))
    rows = [f"{folder / name},{name.split('/')[0]}" for name in files]
    manifest = write_manifest(tmp_path / "photos.csv", folder, rows, "path,label")
    for source in (tmp_path / "a.zip", tmp_path / "a.tar.gz", manifest, "s3://photos/set"):
        assert summary(source) == expected
    with range_server.serve(photo_archives.zip_bytes(files), cuts=[1000]) as served:
        assert summary(served.url) == expected


def test_parts_of_a_data_set_together_are_that_data_set(
    folder: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    parts = [{n: c for n, c in files.items() if n.startswith(p)} for p in ("with_", "without")]
    (tmp_path / "a.zip").write_bytes(photo_archives.zip_bytes(parts[0]))
    other = photo_archives.folder(tmp_path / "other", parts[1])
    assert summary(tmp_path / "a.zip", other) == summary(folder)


def test_a_manifest_s_split_and_group_are_kept(
    folder: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    split = {0: "test", 1: "validation"}
    rows = [
        f"{folder / name},{name.split('/')[0]},{split.get(index // 20, 'train')}"
        for index, name in enumerate(files)
    ]
    manifest = write_manifest(tmp_path / "photos.csv", folder, rows, "path,label,split")
    counts = {name: counter.total() for name, counter in summary(manifest).counts.items()}
    assert counts == {"train": 40, "val": 20, "test": 20}


def test_files_that_are_not_there_are_bad_files(folder: Path, tmp_path: Path) -> None:
    rows = [f"{p},{p.parent.name}" for p in folder.rglob("*.jpg")]
    rows += ["gone.jpg,with_mask", "s3.jpg,without_mask"]
    manifest = write_manifest(tmp_path / "photos.csv", folder, rows, "path,label")
    bad = summary(manifest).bad_files
    assert bad == {
        str(tmp_path / name): "cannot be read: No such file or directory"
        for name in ("gone.jpg", "s3.jpg")
    }


def test_images_without_labels_come_in_order_from_anywhere(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    photo_archives.folder(tmp_path / "flat", {"2.jpg": b"two", "1.jpg": b"one"})
    (tmp_path / "a.zip").write_bytes(photo_archives.zip_bytes())
    table, reader = sources.open_images(f"{tmp_path / 'flat'}\n{tmp_path / 'a.zip'}")
    read = [encoded for encoded, error in reader.contents(table) if not error]
    assert read == [b"one", b"two", b"one", b"two", b"three"]
    table, reader = sources.open_images("s3://photos/set/with_mask")
    paths = reader.names(table)
    assert paths[0] == "s3://photos/set/with_mask/0.jpg" and len(paths) == 40
    for path, (encoded, error) in zip(paths, reader.contents(table), strict=True):
        assert encoded == files[path.removeprefix("s3://photos/set/")] and not error
