"""Each value on its own: bounds, choices and names."""

from typing import Any

import pytest

from mask_ray.config import (
    ALPHAS,
    BLOCKS,
    IMAGE_SIZES,
    DataSettings,
    DemoSettings,
    EvaluateSettings,
    ServeSettings,
    Settings,
    TrainSettings,
)
from tests.support.settings_classes import DATA, DATA_OF, mistake

LIMIT_BOUNDS = [
    ("max_image_bytes", 0, "greater than or equal to 1"),
    ("max_image_pixels", 0, "greater than or equal to 1"),
]
DATA_BOUNDS = [
    *LIMIT_BOUNDS,
    ("val_fraction", 0, "greater than 0"),
    ("val_fraction", 1, "less than 1"),
    ("test_fraction", 0, "greater than 0"),
    ("test_fraction", 1, "less than 1"),
    ("seed", -1, "greater than or equal to 0"),
]
TRAIN_BOUNDS = [
    *DATA_BOUNDS,
    ("num_workers", 0, "greater than or equal to 1"),
    ("num_workers", 5000, "less than or equal to 4096"),
    ("num_workers", "two", "a valid integer"),
    ("min_workers", 0, "greater than or equal to 1"),
    ("use_gpu", "maybe", "a valid boolean"),
    ("cpus_per_worker", 0, "greater than 0"),
    ("batch_size", 0, "greater than or equal to 1"),
    ("batch_size", 1.5, "a valid integer"),
    ("accumulate_steps", 0, "greater than or equal to 1"),
    ("learning_rate", 0, "greater than 0"),
    ("learning_rate", 1.01, "less than or equal to 1"),
    ("finetune_learning_rate", 0, "greater than 0"),
    ("finetune_learning_rate", 1.01, "less than or equal to 1"),
    ("scale_learning_rate", "maybe", "a valid boolean"),
    ("warmup_epochs", -0.1, "greater than or equal to 0"),
    ("head_epochs", -1, "greater than or equal to 0"),
    ("augmented_views", -1, "greater than or equal to 0"),
    ("augmented_views", 65, "less than or equal to 64"),
    ("feature_cache", "maybe", "a valid boolean"),
    ("finetune_epochs", -1, "greater than or equal to 0"),
    ("augmentation", -0.1, "greater than or equal to 0"),
    ("augmentation", 2.1, "less than or equal to 2"),
    ("patience", 0, "greater than or equal to 1"),
    ("fusion_threshold_mb", -1, "greater than or equal to 0"),
    ("cycle_time_ms", 0, "greater than 0"),
    ("quantize", "maybe", "a valid boolean"),
    ("timeline", "maybe", "a valid boolean"),
    ("max_failures", -2, "greater than or equal to -1"),
    ("image_size", 100, "one of 96, 128, 160, 192, 224"),
    ("alpha", 0.9, "one of 0.35, 0.5, 0.75, 1.0, 1.3, 1.4"),
]
SERVE_BOUNDS = [
    *LIMIT_BOUNDS,
    ("model_poll_s", -1, "greater than or equal to 0"),
    ("allow_other_classes", "maybe", "a valid boolean"),
    ("challenger_share", -0.1, "greater than or equal to 0"),
    ("challenger_share", 1.1, "less than or equal to 1"),
    ("max_batch_size", 0, "greater than or equal to 1"),
    ("max_batch_size", 257, "less than or equal to 256"),
    ("num_lone_threads", 0, "greater than or equal to 1"),
    ("max_ongoing_requests", 0, "greater than or equal to 1"),
    ("max_queued_requests", -2, "greater than or equal to -1"),
    ("max_queued_requests", 0, "at least 1, or -1 for no limit"),
    ("min_replicas", 0, "greater than or equal to 1"),
    ("max_replicas", 0, "greater than or equal to 1"),
    ("target_ongoing_requests", 0, "greater than 0"),
    ("num_threads", 0, "greater than or equal to 1"),
    ("request_timeout_s", 0, "greater than 0"),
]
DEMO_BOUNDS = [
    ("epochs", 0, "greater than or equal to 1"),
    ("num_workers", 0, "greater than or equal to 1"),
]


@pytest.mark.parametrize(
    ("settings_class", "field", "value", "allowed"),
    [
        *((DataSettings, *bound) for bound in DATA_BOUNDS),
        *((TrainSettings, *bound) for bound in TRAIN_BOUNDS),
        *((EvaluateSettings, *bound) for bound in DATA_BOUNDS),
        *((ServeSettings, *bound) for bound in SERVE_BOUNDS),
        *((DemoSettings, *bound) for bound in DEMO_BOUNDS),
    ],
)
def test_a_value_out_of_bounds_is_told_what_is_allowed(
    settings_class: type[Settings], field: str, value: Any, allowed: str
) -> None:
    message = mistake(settings_class, {**DATA_OF[settings_class], field: value})

    assert message.startswith(f"{field} must be {allowed}")
    assert message.endswith(f"; got {value!r}")


@pytest.mark.parametrize(
    ("settings_class", "field"),
    [
        (TrainSettings, "experiment"),
        (TrainSettings, "register_as"),
        (TrainSettings, "backbone_weights"),
        (EvaluateSettings, "model_uri"),
        (ServeSettings, "model_uri"),
        (DemoSettings, "backbone_weights"),
    ],
)
def test_a_name_cannot_be_empty(settings_class: type[Settings], field: str) -> None:
    message = mistake(settings_class, {**DATA_OF[settings_class], field: ""})
    assert message == f"{field} must have at least 1 character; got ''"


@pytest.mark.parametrize(
    "name",
    [
        "masks/v2",
        "masks:v2",
        "masks@v2",
        "mask's",
        'a "b"',
        "masks?",
        "a%20b",
        "a#1",
        "a$",
        "a ",
        ".",
    ],
)
def test_a_registered_name_has_nothing_that_means_something_in_a_uri(name: str) -> None:
    message = mistake(TrainSettings, {**DATA, "register_as": name})
    assert message.startswith("register_as must match pattern")
    assert message.endswith(f"; got {name!r}")


@pytest.mark.parametrize(
    "name", ["mask-detector", "Masken 2", "mask_v2.1 (old)", "маски", "a", "C++"]
)
def test_a_registered_name_may_have_letters_digits_and_spaces(name: str) -> None:
    assert TrainSettings.model_validate({**DATA, "register_as": name}).register_as == name


def test_evaluate_knows_its_splits() -> None:
    assert mistake(EvaluateSettings, {**DATA, "split": "dev"}) == (
        "split must be 'train', 'val', 'test' or 'all'; got 'dev'"
    )


@pytest.mark.parametrize("block", ["block_0", "block_17", "block_", "head"])
def test_fine_tuning_starts_at_a_block_of_the_network(block: str) -> None:
    assert mistake(TrainSettings, {**DATA, "finetune_from": block}) == (
        f"finetune_from must be one of {', '.join(BLOCKS)}; got {block}"
    )


@pytest.mark.parametrize(
    ("field", "allowed"),
    [
        ("precision", "'auto', 'float32' or 'bfloat16'"),
        ("gradient_compression", "'none' or 'fp16'"),
    ],
)
def test_a_choice_is_told_its_values(field: str, allowed: str) -> None:
    assert mistake(TrainSettings, {**DATA, field: "float16"}) == (
        f"{field} must be {allowed}; got 'float16'"
    )


@pytest.mark.parametrize("run_id", ["", "latest", "A" * 32, "a" * 31, "a" * 33, "a" * 31 + "/"])
def test_a_run_to_resume_is_named_by_its_id(run_id: str) -> None:
    message = mistake(TrainSettings, {**DATA, "resume": run_id})
    assert message.startswith("resume must match pattern")
    assert message.endswith(f"; got {run_id!r}")


@pytest.mark.parametrize(
    ("settings_class", "given"),
    [
        (TrainSettings, {"num_workers": 2, "min_workers": 2, "batch_size": 2}),
        (TrainSettings, {"head_epochs": 0, "finetune_epochs": 1}),
        (TrainSettings, {"max_failures": -1, "learning_rate": 1}),
        (TrainSettings, {"finetune_learning_rate": 1, "warmup_epochs": 0, "patience": 1}),
        (TrainSettings, {"augmentation": 0, "augmented_views": 0}),
        (TrainSettings, {"augmentation": 2, "augmented_views": 64}),
        (TrainSettings, {"fusion_threshold_mb": 0, "cycle_time_ms": 0.1}),
        (TrainSettings, {"resume": "0123456789abcdef" * 2}),
        (ServeSettings, {"max_batch_size": 16, "max_ongoing_requests": 16}),
        (ServeSettings, {"min_replicas": 2, "max_replicas": 2, "max_queued_requests": -1}),
        (ServeSettings, {"challenger_share": 1, "challenger_mode": "canary"}),
        (ServeSettings, {"challenger_share": 0, "model_poll_s": 0}),
        *((TrainSettings, {"image_size": image_size}) for image_size in IMAGE_SIZES),
        *((TrainSettings, {"alpha": alpha}) for alpha in ALPHAS),
        *((TrainSettings, {"finetune_from": block}) for block in BLOCKS),
    ],
)
def test_values_at_their_bounds_are_accepted(
    settings_class: type[Settings], given: dict[str, Any]
) -> None:
    settings = settings_class(**DATA_OF[settings_class] | given)
    assert given.items() <= settings.model_dump().items()
