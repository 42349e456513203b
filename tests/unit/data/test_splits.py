"""Images of one picture, or of one given group, are in one split."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_ray.config import DataSettings
from mask_ray.data import near_duplicates, splits
from mask_ray.data.inventory import NOT_GIVEN, Inventory
from mask_ray.images import synthetic
from mask_ray.images.decode import decode, resize

SETTINGS = DataSettings(data="folder")
TRAIN, VAL, TEST = (splits.SPLITS.index(name) for name in ("train", "val", "test"))


def face(index: int) -> Image.Image:
    encoded, _ = synthetic.encode(index, image_size=96)
    return Image.fromarray(decode(encoded))


def signature(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture)
    return near_duplicates.signature(resize(pixels, 128), *pixels.shape[:2])


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    pair = np.stack([first, second])
    return float(near_duplicates.correlations(pair, np.array([0]), np.array([1]))[0])


def inventory(signatures: np.ndarray, **columns: object) -> Inventory:
    """One row a signature; files all differ, and nothing is given except `columns`."""
    num_rows = len(signatures)
    digests = [hashlib.sha256(str(row).encode()).digest() for row in range(num_rows)]
    own = {
        "labels": np.zeros(num_rows, np.int32),
        "digests": np.frombuffer(b"".join(digests), np.uint8).reshape(num_rows, 32),
        "signatures": signatures,
        "given_splits": np.full(num_rows, NOT_GIVEN, np.int8),
        "given_groups": np.zeros(num_rows, np.uint64),
        "held_out": np.zeros(num_rows, bool),
    }
    return Inventory(**{**own, **columns})


def plain(num_rows: int) -> np.ndarray:
    """Signatures with nothing to compare."""
    return np.zeros((num_rows, near_duplicates.SIGNATURE_BYTES), np.uint8)


@pytest.mark.parametrize("degrees", [5, -12, 25, 90, 180])
def test_a_turned_picture_is_the_same_picture(degrees: int) -> None:
    original, turned = signature(face(6)), signature(face(6).rotate(degrees))
    assert agreement(original, turned) >= near_duplicates.SAME_PICTURE


def test_a_mirrored_and_stretched_picture_is_the_same_picture() -> None:
    changed = face(6).transpose(Image.Transpose.FLIP_LEFT_RIGHT).reduce(2)
    pair = signature(face(6)), signature(changed)
    assert agreement(*pair) >= near_duplicates.SAME_PICTURE


def test_other_faces_are_other_pictures() -> None:
    faces = np.stack([signature(face(index)) for index in range(60)])
    assert len(near_duplicates.near_pairs(faces)[0]) == 0


def test_pairs_are_found_among_many() -> None:
    faces = [face(index) for index in range(60)]
    signatures = [signature(f) for f in faces] + [signature(f.rotate(90)) for f in faces]
    first, second, _ = near_duplicates.near_pairs(np.stack(signatures))
    found = {tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    assert found >= {(index, index + 60) for index in range(60)}


def test_pictures_without_contrast_are_not_compared() -> None:
    assert len(near_duplicates.near_pairs(plain(5))[0]) == 0


def test_nothing_is_compared_with_nothing() -> None:
    assert len(near_duplicates.near_pairs(plain(0))[0]) == 0


def test_a_group_has_one_split() -> None:
    names = np.repeat(np.arange(1, 51, dtype=np.uint64), 20)
    assigned = splits.assign(inventory(plain(1000), given_groups=names), SETTINGS).indices
    assert all(len(set(group)) == 1 for group in assigned.reshape(50, 20))
    assert set(assigned) == {TRAIN, VAL, TEST}


def test_shares_of_groups_are_those_asked_for() -> None:
    names = np.repeat(np.arange(1, 4001, dtype=np.uint64), 5)
    assigned = splits.assign(inventory(plain(20_000), given_groups=names), SETTINGS).indices
    shares = np.bincount(assigned, minlength=3) / len(assigned)
    np.testing.assert_allclose(shares[[VAL, TEST]], 0.15, atol=0.02)


def test_only_what_a_group_moves_is_an_exception() -> None:
    stock = inventory(plain(200), given_groups=np.r_[1, 1, np.zeros(198)].astype(np.uint64))
    assigned = splits.assign(stock, SETTINGS)
    for row in range(200):
        digest = stock.digests[row].tobytes().hex()
        found = assigned.moved.get(digest, splits.split_of(digest, SETTINGS))
        assert found == splits.SPLITS[assigned.indices[row]]
    assert len(assigned.moved) <= 1


def test_a_given_split_wins_for_all_of_its_group() -> None:
    given = np.full(4, NOT_GIVEN, np.int8)
    given[1] = VAL
    stock = inventory(plain(4), given_splits=given, given_groups=np.array([7, 7, 7, 0], np.uint64))
    assert splits.assign(stock, SETTINGS).indices[:3].tolist() == [VAL] * 3


class TestConflicts:
    """Files of one group that the source gives different splits."""

    STOCK = inventory(
        plain(6),
        given_splits=np.array([TRAIN, TEST, TRAIN, VAL, TRAIN, NOT_GIVEN], np.int8),
        given_groups=np.array([7, 7, 8, 8, 9, 7], np.uint64),
    )

    def test_all_are_named_at_once_with_the_ways_out(self) -> None:
        with pytest.raises(splits.SplitConflictError) as caught:
            splits.assign(self.STOCK, SETTINGS)
        message = caught.value.describe([f"{row}.jpg" for row in range(6)])
        assert "0.jpg is given train, 1.jpg test; 2.jpg is given train, 3.jpg val. " in message
        assert "--resolve-conflicts drop" in message and "--resolve-conflicts move" in message

    def test_more_than_a_line_holds_are_in_a_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MASK_RAY_HOME", str(tmp_path / "home"))
        given = np.tile(np.array([TRAIN, TEST], np.int8), 30)
        groups = np.repeat(np.arange(1, 31, dtype=np.uint64), 2)
        stock = inventory(plain(60), given_splits=given, given_groups=groups)
        with pytest.raises(splits.SplitConflictError) as caught:
            splits.assign(stock, SETTINGS)
        message = caught.value.describe([f"{row}.jpg" for row in range(60)])
        listed = tmp_path / "home" / "split_conflicts.csv"
        assert f"and 10 more, all of them in {listed}" in message
        lines = listed.read_text().splitlines()
        assert lines[:2] == ["conflict,split,path", "1,train,0.jpg"]
        assert lines[-1] == "30,test,59.jpg"

    def test_drop_leaves_out_what_is_outside_the_most_held_out_split(self) -> None:
        settings = SETTINGS.model_copy(update={"resolve_conflicts": "drop"})
        assigned = splits.assign(self.STOCK, settings)
        left_out = len(splits.SPLITS)
        assert assigned.indices.tolist() == [left_out, TEST, left_out, VAL, TRAIN, TEST]
        assert (assigned.num_dropped, assigned.num_resolved, assigned.num_left_out) == (2, 0, 0)

    def test_move_puts_all_into_it(self) -> None:
        settings = SETTINGS.model_copy(update={"resolve_conflicts": "move"})
        assigned = splits.assign(self.STOCK, settings)
        assert assigned.indices.tolist() == [TEST, TEST, VAL, VAL, TRAIN, TEST]
        assert (assigned.num_dropped, assigned.num_resolved) == (0, 2)

    def test_a_copy_that_stays_is_told_from_one_that_is_dropped(self) -> None:
        given = np.array([TRAIN, TEST], np.int8)
        stock = inventory(plain(2), given_splits=given, digests=np.zeros((2, 32), np.uint8))
        settings = SETTINGS.model_copy(update={"resolve_conflicts": "drop"})
        assigned = splits.assign(stock, settings)
        digest = stock.hex_digests()[0]
        assert assigned.moved[splits.dropped_key(digest, "train")] == splits.LEFT_OUT
        assert assigned.moved.get(digest, splits.split_of(digest, SETTINGS)) == "test"


class TestSplitsThatAreMissing:
    @pytest.mark.parametrize(
        ("given", "filled"),
        [([TRAIN, TEST], ("val",)), ([TRAIN, VAL], ("test",)), ([TRAIN], ("val", "test"))],
    )
    def test_get_a_share_of_train(self, given: list[int], filled: tuple[str, ...]) -> None:
        of_row = np.array(given, np.int8)[np.arange(4_000) % len(given)]
        stock = inventory(plain(4_000), given_splits=of_row)
        assigned = splits.assign(stock, SETTINGS)
        assert assigned.filled == filled
        kept = of_row != TRAIN
        assert (assigned.indices[kept] == of_row[kept]).all()
        shares = np.bincount(assigned.indices[~kept], minlength=3) / (~kept).sum()
        for split in filled:
            assert shares[splits.SPLITS.index(split)] == pytest.approx(0.15, abs=0.03)

    def test_stay_empty_if_other_files_have_them(self) -> None:
        of_row = np.full(1_000, NOT_GIVEN, np.int8)
        of_row[:300] = TRAIN
        assigned = splits.assign(inventory(plain(1_000), given_splits=of_row), SETTINGS)
        assert assigned.filled == ()
        assert set(assigned.indices[:300]) == {TRAIN}


def test_what_the_fixed_test_set_shows_is_left_out() -> None:
    settings = DataSettings(data="folder", test_data="other")
    held_out = np.arange(300) < 100
    names = np.zeros(300, np.uint64)
    names[[0, 100, 101]] = 7
    assigned = splits.assign(inventory(plain(300), held_out=held_out, given_groups=names), settings)
    assert set(assigned.indices[:100]) == {TEST}
    assert assigned.num_left_out == 2
    assert set(assigned.indices[102:]) == {TRAIN, VAL}
