"""Files of features are either right or not found. What is in them, and Ray, are stood in for."""

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mask_ray.config import TrainSettings
from mask_ray.data import ImageData, Summary
from mask_ray.training import features
from mask_ray.training.features import FeatureError, Key, prepare

NUM_FEATURES = 4
DIGEST = "d" * 64
BACKBONE = b"onnx"
FILES = {
    f"{split}_{name}.npy" for split in ("train", "val") for name in ("features", "labels", "order")
}


def data_set(digest: str = DIGEST, num_images: int = 50) -> ImageData:
    """A data set that nothing is read of but its summary."""
    counts = {
        "train": Counter(a=num_images - 20, b=10),
        "val": Counter(a=4, b=6),
        "test": Counter(a=1, b=1),
    }
    nothing: Any = None
    return ImageData(lambda splits: nothing, ["a", "b"], Summary(counts, digest, {}), kept=True)


IMAGES = data_set()


def expected_rows(key: Key, images: ImageData) -> dict[str, np.ndarray]:
    """Rows of random features, others for another key, train and val mixed."""
    num_rows = {split: images.summary.counts[split].total() for split in ("train", "val")}
    splits = np.repeat(list(num_rows), list(num_rows.values()))
    rng = np.random.default_rng(int(key.name, 16))
    views = (len(splits), 1 + key.augmented_views, NUM_FEATURES)
    return {
        "split": rng.permutation(splits),
        "features": rng.normal(size=views).astype(np.float16),
        "label": rng.integers(0, 2, len(splits)),
        "digest": np.array([f"{n:032x}" * 2 for n in rng.permutation(len(splits))]),
    }


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Key]:
    """Stands in for Ray and the backbone; the keys that were computed."""
    keys: list[Key] = []

    def extracted(key: Key, images: ImageData, backbone: bytes, num_cpus: int) -> Any:
        rows = expected_rows(key, images)

        def iter_batches(batch_size: int) -> Iterator[dict[str, np.ndarray]]:
            keys.append(key)
            for start in range(0, len(rows["split"]), 7):
                yield {name: values[start : start + 7] for name, values in rows.items()}

        return SimpleNamespace(iter_batches=iter_batches)

    monkeypatch.setattr(features, "_extracted", extracted)
    return keys


def settings(**given: Any) -> TrainSettings:
    return TrainSettings(data="photos", **{"augmented_views": 1} | given)


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., Path]:
    """The folder that a run gets; its own is `tmp_path / "own"`."""

    def prepared(images: ImageData = IMAGES, backbone: bytes = BACKBONE, **given: Any) -> Path:
        own = tmp_path / "own"
        return prepare(settings(**given), images, backbone, own_folder=own, num_cpus=1)

    return prepared


def assert_right(folder: Path, key: Key, images: ImageData = IMAGES) -> None:
    rows = expected_rows(key, images)
    for split in ("train", "val"):
        own = rows["split"] == split
        loaded, labels = (
            np.load(folder / f"{split}_{name}.npy") for name in ("features", "labels")
        )
        views = slice(None) if split == "train" else slice(1)
        np.testing.assert_array_equal(loaded, rows["features"][own][:, views])
        np.testing.assert_array_equal(labels, rows["label"][own])
        order = np.load(folder / f"{split}_order.npy")
        np.testing.assert_array_equal(order, np.argsort(rows["digest"][own]))


def key_of(**given: Any) -> Key:
    return features.key_of(settings(**given), IMAGES, BACKBONE)


def times_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


class TestFiles:
    def test_hold_every_row_of_its_split_in_order(
        self, find: Callable[..., Path], computed: list[Key]
    ) -> None:
        folder = find(augmented_views=2)
        assert_right(folder, key_of(augmented_views=2))
        assert np.load(folder / "train_features.npy").shape == (40, 3, NUM_FEATURES)
        assert np.load(folder / "val_features.npy").shape == (10, 1, NUM_FEATURES)

    def test_can_be_read_by_others_and_explain_themselves(
        self, find: Callable[..., Path], computed: list[Key]
    ) -> None:
        folder = find()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert Key(**json.loads((folder / "key.json").read_text())) == key_of()

    def test_are_found_by_the_next_run(
        self, find: Callable[..., Path], computed: list[Key], capfd: pytest.CaptureFixture[str]
    ) -> None:
        folder = find()
        before = times_of(folder)
        assert "features: 50 images and 40 augmented views, " in capfd.readouterr().out
        assert find() == folder
        assert capfd.readouterr().out == f"features: found in {folder}\n"
        assert times_of(folder) == before
        assert len(computed) == 1

    @pytest.mark.parametrize(
        "given",
        [
            {"image_size": 96},
            {"alpha": 0.5},
            {"augmented_views": 2},
            {"augmentation": 0.5},
            {"val_fraction": 0.2},
            {"test_fraction": 0.2},
            {"images": data_set(digest="e" * 64)},
            {"backbone": b"another"},
        ],
        ids=lambda given: next(iter(given)),
    )
    def test_are_others_for_another(
        self, find: Callable[..., Path], computed: list[Key], given: dict[str, Any]
    ) -> None:
        assert find() != find(**given)
        first, second = computed
        assert first.name != second.name

    @pytest.mark.parametrize(
        "given",
        [
            {"seed": 5},
            {"num_workers": 2},
            {"head_epochs": 1, "learning_rate": 0.5},
            {"finetune_epochs": 0, "finetune_from": "top"},
            {"precision": "bfloat16"},
        ],
        ids=lambda given: next(iter(given)),
    )
    def test_do_not_depend_on(
        self, find: Callable[..., Path], computed: list[Key], given: dict[str, Any]
    ) -> None:
        assert find() == find(**given)
        assert len(computed) == 1

    def test_without_views_do_not_depend_on_augmentation(
        self, find: Callable[..., Path], computed: list[Key]
    ) -> None:
        folders = {find(augmented_views=0, augmentation=strength) for strength in (0, 1, 2)}
        assert len(folders) == len(computed) == 1

    def test_that_are_not_finished_leave_nothing(
        self, find: Callable[..., Path], home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(batch_size: int) -> Iterator[dict[str, np.ndarray]]:
            yield {name: rows[:7] for name, rows in expected_rows(key_of(), IMAGES).items()}
            raise KeyboardInterrupt

        stub = SimpleNamespace(iter_batches=interrupted)
        monkeypatch.setattr(features, "_extracted", lambda *given: stub)
        with pytest.raises(KeyboardInterrupt):
            find()
        assert list((home / "features").iterdir()) == []

    def test_of_two_runs_at_once_are_those_of_the_faster(
        self,
        find: Callable[..., Path],
        computed: list[Key],
        home: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        extracted = features._extracted

        def slow(*given: Any) -> Any:
            monkeypatch.setattr(features, "_extracted", extracted)
            find()
            return extracted(*given)

        monkeypatch.setattr(features, "_extracted", slow)
        folder = find()
        assert len(computed) == 2
        assert_right(folder, key_of())
        assert list((home / "features").iterdir()) == [folder]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def overwrite(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip_a_byte,
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "removed": Path.unlink,
}
MANIFESTS = [b"[]", b"null", b"{}", b'{"sha256": {}}', b'{"sha256": []}', b"\xff", b"{", b"5"]


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize("name", [*sorted(FILES), "key.json", "manifest.json"])
    def test_is_seen_and_the_features_computed_again(
        self,
        find: Callable[..., Path],
        computed: list[Key],
        capfd: pytest.CaptureFixture[str],
        name: str,
        damage: str,
    ) -> None:
        DAMAGES[damage](find() / name)
        folder = find()
        assert len(computed) == 2
        assert f"features: {folder} is damaged: computing them again\n" in capfd.readouterr().out
        assert_right(folder, key_of())
        assert find() == folder
        assert len(computed) == 2

    @pytest.mark.parametrize("content", MANIFESTS)
    def test_of_the_manifest_is_seen(
        self, find: Callable[..., Path], computed: list[Key], content: bytes
    ) -> None:
        (find() / "manifest.json").write_bytes(content)
        assert_right(find(), key_of())
        assert len(computed) == 2


class TestOwnFolder:
    def test_is_taken_without_the_cache_which_is_neither_read_nor_written(
        self, find: Callable[..., Path], computed: list[Key], home: Path, tmp_path: Path
    ) -> None:
        assert find(feature_cache=False) == tmp_path / "own"
        assert_right(tmp_path / "own", key_of())
        assert not home.exists()

        cached = find()
        before = times_of(cached)
        assert find(feature_cache=False) == tmp_path / "own"
        assert len(computed) == 3
        assert times_of(cached) == before

    def test_is_made_anew_by_another_attempt_at_the_run(
        self, find: Callable[..., Path], computed: list[Key], tmp_path: Path
    ) -> None:
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "train_features.npy").touch()
        assert_right(find(feature_cache=False), key_of())
        assert len(computed) == 1

    def test_is_taken_where_the_cache_cannot_be_made(
        self,
        find: Callable[..., Path],
        computed: list[Key],
        home: Path,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        home.mkdir()
        (home / "features").write_text("in the way")
        assert find() == tmp_path / "own"
        assert_right(tmp_path / "own", key_of())
        said = capfd.readouterr().out
        assert f"features: {home / 'features'} cannot be used (" in said
        assert said.count("this run keeps its own\n") == 1

    def test_is_taken_where_the_cache_is_read_only(
        self,
        find: Callable[..., Path],
        computed: list[Key],
        read_only_disk: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("MASK_RAY_HOME", str(read_only_disk))
        assert find() == tmp_path / "own"
        assert_right(tmp_path / "own", key_of())
        assert f"({os.strerror(errno.EROFS)}" in capfd.readouterr().out.replace("[Errno 30] ", "")


class TestFullDisk:
    """It takes the features of 12,000 images but not their labels, and not those of 20,000."""

    @pytest.mark.parametrize("num_images", [12_000, 20_000, 200_000])
    def test_is_told_in_one_line_and_left_as_it_was(
        self,
        find: Callable[..., Path],
        computed: list[Key],
        small_disk: Path,
        monkeypatch: pytest.MonkeyPatch,
        num_images: int,
    ) -> None:
        monkeypatch.setenv("MASK_RAY_HOME", str(small_disk))
        many = data_set(num_images=num_images)
        with pytest.raises(FeatureError) as told:
            prepare(settings(), many, BACKBONE, own_folder=small_disk / "train" / "own", num_cpus=1)
        assert str(told.value).startswith(
            f"the features of {many.summary.num_images} images cannot be kept in "
            f"{small_disk / 'train' / 'own'}: "
        )
        assert os.strerror(errno.ENOSPC) in str(told.value)
        assert "\n" not in str(told.value)
        assert [path for path in small_disk.rglob("*") if path.is_file()] == []

    def test_of_the_cache_alone_leaves_the_run_its_own(
        self,
        find: Callable[..., Path],
        computed: list[Key],
        small_disk: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("MASK_RAY_HOME", str(small_disk))
        many = data_set(num_images=20_000)
        folder = find(many)
        assert folder == tmp_path / "own"
        assert_right(folder, features.key_of(settings(), many, BACKBONE), many)
        assert [path for path in small_disk.rglob("*") if path.is_file()] == []
