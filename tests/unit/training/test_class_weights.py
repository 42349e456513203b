"""Weights of unequal classes, and when a run says that its classes are unequal."""

import pytest

from mask_ray.training.class_weights import balanced, few_held_out, imbalance


def test_every_class_weighs_the_same_in_all() -> None:
    counts = {"cat": 30, "dog": 60, "owl": 10}
    weights = balanced(counts, ["owl", "cat", "dog"])
    assert weights == pytest.approx((100 / 30, 100 / 90, 100 / 180))
    assert sum(w * counts[n] for w, n in zip(weights, ["owl", "cat", "dog"], strict=True)) == 100


def test_equal_classes_weigh_one() -> None:
    assert balanced({"cat": 7, "dog": 7}, ["cat", "dog"]) == (1.0, 1.0)


def test_a_ratio_of_up_to_five_needs_no_line() -> None:
    assert imbalance({"cat": 50, "dog": 10}, is_weighted=False) is None


def test_a_larger_ratio_is_said_with_what_helps() -> None:
    counts = {"cat": 51, "dog": 10, "owl": 20}
    line = "the classes are unequal: 51 cat to 10 dog, 5.1 to 1"
    assert imbalance(counts, is_weighted=True) == line
    assert imbalance(counts, is_weighted=False) == (
        f"{line}; --class-weights balanced makes up for it"
    )


def test_splits_of_few_images_are_said_with_what_helps() -> None:
    counts = {"train": {"cat": 5}, "val": {"cat": 40, "dog": 10}, "test": {"cat": 5, "dog": 1}}
    line = "few images to judge by: test 6 (1 dog); figures on them are rough. Add images"
    assert few_held_out(counts, False) == f"{line}, or raise --test-fraction"
    assert few_held_out(counts, True) == line
    enough = counts | {"test": {"cat": 10, "dog": 10}}
    assert few_held_out(enough, False) is None
