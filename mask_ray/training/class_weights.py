"""How unequal and how small the classes of a data set are, and weights that make up for it.

Imports no Keras.
"""

from collections.abc import Mapping, Sequence

from mask_ray.config import SplitName

# With fewer images of a class in a split, a figure of it is rough, and a run says so: of 10, one
# image is 10 points of recall.
LEAST_HELD_OUT = 10

# Beyond this ratio of the largest class to the smallest, a run says so.
MAX_RATIO = 5


def balanced(counts: Mapping[str, int], class_names: Sequence[str]) -> tuple[float, ...]:
    """Return weights with which all classes together count alike; their mean over images is 1.

    The weight of a class of n images is N / (K n), for K classes and N images in all, as in
    scikit-learn: https://scikit-learn.org/stable/modules/generated/sklearn.utils.class_weight.compute_class_weight.html.

    Args:
        counts: Training images by class over all workers, at least one of each.
        class_names: Class names, in the order of the weights.
    """
    total = sum(counts[name] for name in class_names)
    return tuple(total / (len(class_names) * counts[name]) for name in class_names)


def imbalance(counts: Mapping[str, int], is_weighted: bool) -> str | None:
    """Return a line about classes of very unequal size; None if they are not.

    Args:
        counts: Training images by class, at least one of each.
        is_weighted: Whether the run weights its classes already.
    """
    most = max(counts, key=lambda name: counts[name])
    least = min(counts, key=lambda name: counts[name])
    if counts[most] <= MAX_RATIO * counts[least]:
        return None
    sizes = f"{counts[most]} {most} to {counts[least]} {least}"
    advice = "" if is_weighted else "; --class-weights balanced makes up for it"
    return f"the classes are unequal: {sizes}, {counts[most] / counts[least]:.1f} to 1{advice}"


def few_held_out(counts: Mapping[SplitName, Mapping[str, int]], has_test_data: bool) -> str | None:
    """Return a line about splits that are too small to judge by; None if there are none.

    Args:
        counts: Images by split and class.
        has_test_data: Whether the test split is a source of its own.
    """
    held_out: tuple[SplitName, ...] = ("test", "val")
    small, flags = [], []
    for split in held_out:
        least = min(counts[split], key=lambda name: counts[split][name])
        if counts[split][least] < LEAST_HELD_OUT:
            small.append(f"{split} {sum(counts[split].values())} ({counts[split][least]} {least})")
            is_own = split == "test" and has_test_data
            flags += [] if is_own else [f"--{split}-fraction"]
    if not small:
        return None
    advice = f", or raise {' and '.join(flags)}" if flags else ""
    return (
        f"few images to judge by: {', '.join(small)}; figures on them are rough. Add images{advice}"
    )
