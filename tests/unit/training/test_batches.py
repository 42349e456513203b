"""Which rows of the features each worker sees in an epoch, and in which order."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask_ray.config import MaskRayError
from mask_ray.training.batches import (
    FeatureBatches,
)

NUM_VIEWS = 3


FILES = [
    f"{split}_{name}.npy" for split in ("train", "val") for name in ("features", "labels", "order")
]


def write_features(folder: Path, num_train: int = 20, num_val: int = 7) -> Path:
    """Features that tell their row and view, and labels that tell their row."""
    for split, rows, views in (("train", num_train, NUM_VIEWS), ("val", num_val, 1)):
        features = np.zeros((rows, views, 4), np.float16)
        features[..., 0] = np.arange(rows)[:, None]
        features[..., 1] = np.arange(views)
        np.save(folder / f"{split}_features.npy", features)
        np.save(folder / f"{split}_labels.npy", np.arange(rows))
        np.save(folder / f"{split}_order.npy", np.arange(rows))
    return folder


def workers(folder: Path, size: int, seed: int = 0) -> list[FeatureBatches]:
    return [FeatureBatches(folder, rank, size, seed) for rank in range(size)]


def rows_of(batches: Any) -> list[int]:
    return [int(label) for _, labels in batches for label in labels]


def epoch_of(folder: Path, size: int = 1, epoch: int = 0, seed: int = 0) -> list[list[int]]:
    """Rows by worker."""
    return [rows_of(worker.train(epoch, 4)) for worker in workers(folder, size, seed)]


class TestTrainingRows:
    @pytest.mark.parametrize("size", [1, 2, 3])
    @pytest.mark.parametrize("num_train", [3, 19, 20, 21])
    def test_go_to_one_worker_each_as_many_to_all(
        self, tmp_path: Path, size: int, num_train: int
    ) -> None:
        folder = write_features(tmp_path, num_train)
        for epoch in range(5):
            by_worker = epoch_of(folder, size, epoch)
            assert {len(rows) for rows in by_worker} == {num_train // size}
            rows = [row for rows in by_worker for row in rows]
            assert len(set(rows)) == len(rows) >= num_train - (size - 1)
            assert set(rows) <= set(range(num_train))

    def test_that_are_left_over_are_others_in_another_epoch(self, tmp_path: Path) -> None:
        folder = write_features(tmp_path, num_train=5)
        seen = Counter(row for e in range(20) for rows in epoch_of(folder, 3, e) for row in rows)
        assert set(seen) == set(range(5))

    def test_come_in_another_order_in_every_epoch(self, tmp_path: Path) -> None:
        folder = write_features(tmp_path)
        orders = {tuple(epoch_of(folder, epoch=epoch)[0]) for epoch in range(10)}
        assert len(orders) == 10

    def test_come_in_the_same_order_again_for_the_same_seed_alone(self, tmp_path: Path) -> None:
        folder = write_features(tmp_path)
        first, again, other = (epoch_of(folder, 2, epoch=3, seed=seed) for seed in (0, 0, 1))
        assert first == again != other

    def test_are_one_of_their_views_all_of_which_have_their_turn(self, tmp_path: Path) -> None:
        (worker,) = workers(write_features(tmp_path), size=1)
        seen: Counter[tuple[int, int]] = Counter()
        for epoch in range(40):
            for features, labels in worker.train(epoch, 8):
                np.testing.assert_array_equal(features[:, 0], labels)
                seen.update(zip(labels.tolist(), features[:, 1].tolist(), strict=True))
        assert set(seen) == {(row, view) for row in range(20) for view in range(NUM_VIEWS)}
        by_view = Counter(view for _, view in seen.elements())
        # Within four standard deviations of a third of 800.
        assert all(abs(n - 800 / 3) < 4 * (800 * 2 / 9) ** 0.5 for n in by_view.values())

    def test_come_in_batches_as_a_model_takes_them(self, tmp_path: Path) -> None:
        (worker,) = workers(write_features(tmp_path), size=1)
        batches = list(worker.train(0, 8))
        assert [len(labels) for _, labels in batches] == [8, 8, 4]
        for features, labels in batches:
            assert (features.dtype, features.shape) == (np.float32, (len(labels), 4))
            assert labels.dtype == np.int64


class TestValidationRows:
    @pytest.mark.parametrize("size", [1, 2, 3])
    @pytest.mark.parametrize("num_val", [1, 2, 7, 600])
    def test_are_all_seen_once_also_where_workers_are_more(
        self, tmp_path: Path, size: int, num_val: int
    ) -> None:
        folder = write_features(tmp_path, num_val=num_val)
        rows = [row for worker in workers(folder, size) for row in rows_of(worker.val())]
        assert sorted(rows) == list(range(num_val))

    def test_are_the_images_themselves(self, tmp_path: Path) -> None:
        (worker,) = workers(write_features(tmp_path), size=1)
        for features, labels in worker.val():
            np.testing.assert_array_equal(features[:, 0], labels)
            assert features.dtype == np.float32


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [Path.unlink, cut, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x" * 9)],
    ids=["missing", "cut", "empty", "garbage"],
)
def test_features_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(write_features(tmp_path) / name)
    with pytest.raises(MaskRayError) as told:
        FeatureBatches(tmp_path, rank=1, size=2, seed=0)
    assert str(told.value).startswith(f"the features in {tmp_path} cannot be read by worker 1: ")
    assert str(told.value).endswith(
        "MASK_RAY_HOME must be on storage that all nodes mount at the same place"
    )
