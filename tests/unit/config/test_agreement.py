"""Values that must agree with each other, and defaults that depend on others."""

from typing import Any

import pytest

from mask_ray.config import DataSettings, PipelineSettings, ServeSettings, Settings, TrainSettings
from mask_ray.config.promote import PromoteSettings
from tests.support.settings_classes import DATA, DATA_OF, mistake


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either a version or --rollback; got neither"),
        ({"version": "3", "rollback": True}, "give either a version or --rollback; got both"),
        ({"version": "latest"}, "version must match pattern"),
        ({"version": "3", "promotion_margin": -1}, "promotion_margin must be greater than or"),
        ({"version": "3", "promotion_metric": "f1"}, "promotion_metric must be 'accuracy'"),
    ],
)
def test_a_promotion_that_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    assert mistake(PromoteSettings, given).startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resume": "0" * 32}, "resume is not a setting"),
        ({"url": "localhost:8000"}, "url must begin with http:// or https://; got localhost:8000"),
        ({"serve": True, "deploy": False}, "serve must be off with --no-deploy or --no-promote"),
        ({"serve": True, "promote": False}, "serve must be off with --no-deploy or --no-promote"),
    ],
)
def test_a_pipeline_that_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    assert mistake(PipelineSettings, DATA | given).startswith(message)


@pytest.mark.parametrize(
    ("settings_class", "given", "message"),
    [
        (
            DataSettings,
            {"val_fraction": 0.5, "test_fraction": 0.6},
            "val_fraction + test_fraction must be below 1; got 1.1, "
            "which leaves no images to train on",
        ),
        (
            TrainSettings,
            {"num_workers": 2, "min_workers": 3},
            "min_workers must be at most num_workers (2); got 3",
        ),
        (
            TrainSettings,
            {"num_workers": 4, "batch_size": 3},
            "batch_size is over all workers and must be at least num_workers (4); got 3",
        ),
        (
            TrainSettings,
            {"head_epochs": 0, "finetune_epochs": 0},
            "head_epochs + finetune_epochs must be at least 1; got 0",
        ),
        (
            TrainSettings,
            {"backbone_weights": "none", "head_epochs": 2},
            "head_epochs must be 0 with backbone_weights none, since a random backbone is not "
            "worth freezing; got 2. Use finetune_epochs",
        ),
        (
            ServeSettings,
            {"max_batch_size": 16, "num_threads": 2, "max_ongoing_requests": 31},
            "max_ongoing_requests must be at least max_batch_size * num_threads (32), "
            "or batches never fill; got 31",
        ),
        (
            ServeSettings,
            {
                "max_decode_bytes": 2_500_000,
                "max_image_bytes": 100_000,
                "max_total_bytes": 100_000,
                "max_images": 1,
                "request_memory_bytes": 3_999_999,
            },
            "request_memory_bytes must be at least 4/3 of max_decode_bytes and 5 times "
            "max_image_bytes (4000000), or such a request never fits; got 3999999",
        ),
        (
            ServeSettings,
            {"max_total_bytes": 300 * 2**20},
            "request_memory_bytes must be at least 4/3 of max_total_bytes as JSON 5 times "
            "(2797950294), or such a request never fits; got 1342177280",
        ),
        (
            ServeSettings,
            {"request_timeout_s": 6},
            "decode_timeout_s must be below request_timeout_s (6), or requests end before images "
            "are given up; got 6",
        ),
        (
            ServeSettings,
            {"decode_timeout_s": 2},
            "max_decode_s must be at most decode_timeout_s (2), or images that are accepted are "
            "given up; got 3",
        ),
        (
            ServeSettings,
            {"min_replicas": 3, "max_replicas": 2},
            "min_replicas must be at most max_replicas (2); got 3",
        ),
        *(
            (
                ServeSettings,
                {"challenger_share": 0.1} | given,
                "challenger_share must be 0 unless model_uri has an alias (models:/name@alias) "
                "and model_poll_s is above 0; got 0.1",
            )
            for given in (
                {"model_uri": "models:/mask-detector/3"},
                {"model_uri": "tiny.onnx"},
                {"model_poll_s": 0},
            )
        ),
    ],
)
def test_values_that_disagree_are_told_why(
    settings_class: type[Settings], given: dict[str, Any], message: str
) -> None:
    assert mistake(settings_class, DATA_OF[settings_class] | given) == message


def test_without_backbone_weights_all_epochs_train_everything() -> None:
    settings = TrainSettings(data="photos", backbone_weights="none")
    assert (settings.head_epochs, settings.finetune_epochs) == (0, 15)


def test_without_backbone_weights_the_number_of_epochs_can_be_given() -> None:
    settings = TrainSettings(data="photos", backbone_weights="none", finetune_epochs=3)
    assert (settings.head_epochs, settings.finetune_epochs) == (0, 3)


@pytest.mark.parametrize("field", ["cpus_per_worker", "finetune_learning_rate"])
def test_a_value_may_be_left_open(field: str) -> None:
    settings = TrainSettings.model_validate(DATA | {field: "auto"})
    assert getattr(settings, field) is None
