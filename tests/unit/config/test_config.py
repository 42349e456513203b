"""Settings are checked once, where they enter, and say what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from mask_ray.config import (
    ALPHAS,
    BLOCKS,
    IMAGE_SIZES,
    DataSettings,
    DemoSettings,
    EvaluateSettings,
    ImageLimits,
    PipelineSettings,
    PromotionRule,
    ServeSettings,
    Settings,
    TrainSettings,
    explain,
    home,
)
from mask_ray.config.promote import PromoteSettings
from tests.support.project import ROOT

DATA = {"data": "photos"}

# What each class cannot do without.
DATA_OF: dict[type[Settings], dict[str, Any]] = {
    ImageLimits: {},
    DataSettings: DATA,
    TrainSettings: DATA,
    EvaluateSettings: DATA,
    ServeSettings: {},
    DemoSettings: {},
    PromotionRule: {},
    PromoteSettings: {"version": "3"},
    PipelineSettings: DATA,
}


def mistake(settings_class: type[Settings], given: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        settings_class(**given)
    return explain(caught.value)


@pytest.mark.parametrize("settings_class", DATA_OF)
def test_defaults_are_valid_and_cannot_be_changed(settings_class: type[Settings]) -> None:
    settings = settings_class(**DATA_OF[settings_class])

    for name, value in settings.model_dump().items():
        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings, name, value)


@pytest.mark.parametrize("settings_class", DATA_OF)
def test_unknown_keys_are_refused_by_name(settings_class: type[Settings]) -> None:
    given = {**DATA_OF[settings_class], "num_wokers": 2}
    assert mistake(settings_class, given) == "num_wokers is not a setting"


@pytest.mark.parametrize("settings_class", [DataSettings, TrainSettings, EvaluateSettings])
def test_data_is_required(settings_class: type[Settings]) -> None:
    assert mistake(settings_class, {}) == "data is required"


@pytest.mark.parametrize(
    "data", ["photos", "/a b/ü", "synthetic", "synthetic:1", "synthetic_faces"]
)
def test_data_may_be_a_folder_or_drawn(data: str) -> None:
    assert DataSettings(data=data).data == data


@pytest.mark.parametrize("data", ["synthetic:0", "synthetic:", "synthetic:many", "synthetic:-5"])
def test_a_wrong_number_of_drawn_images_is_told_the_form(data: str) -> None:
    assert mistake(DataSettings, {"data": data}) == (
        f"data must be a source of images, synthetic or synthetic:N with N >= 1; got {data}"
    )


def test_empty_data_is_told_the_form() -> None:
    assert mistake(DataSettings, {"data": " "}) == (
        "data must be a source of images or synthetic[:N]; got an empty string"
    )


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


def test_all_mistakes_are_told_at_once() -> None:
    message = mistake(TrainSettings, {"num_workers": 0, "nope": 1})
    assert message.split("; ") == [
        "data is required",
        "num_workers must be greater than or equal to 1",
        "got 0",
        "nope is not a setting",
    ]


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


def test_settings_come_back_from_json_as_they_were() -> None:
    """A resumed run reads those it began with."""
    settings = TrainSettings(
        data="photos", backbone_weights="none", num_workers=2, min_workers=1, alpha=0.35
    )
    assert TrainSettings(**json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


def test_home_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MASK_RAY_HOME", str(tmp_path / "state"))
    assert home() == tmp_path / "state"
    assert not home().exists()


def test_home_is_absolute_and_may_start_with_a_tilde(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MASK_RAY_HOME", "~/state")
    assert home() == tmp_path / "state"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASK_RAY_HOME", "here")
    assert home() == tmp_path / "here"


def test_home_is_in_the_users_folder_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MASK_RAY_HOME")
    assert home() == tmp_path / ".mask_ray"

    monkeypatch.setenv("MASK_RAY_HOME", "")
    assert home() == tmp_path / ".mask_ray"


@pytest.mark.parametrize("source", ["", "synthetic:", "synthetic:0", "synthetic:abc"])
def test_the_demo_takes_the_sources_that_training_takes(source: str) -> None:
    assert mistake(DemoSettings, {"data": source}) == mistake(TrainSettings, {"data": source})


def test_serve_config_explains_every_setting_and_has_the_defaults() -> None:
    text = (ROOT / "serve_config.yaml").read_text()
    (application,) = yaml.safe_load(text)["applications"]
    lines = text.split("    args:\n", 1)[1].splitlines()

    given = ServeSettings.model_validate(application["args"])

    assert given == ServeSettings.model_validate({})
    assert application["args"].keys() == ServeSettings.model_fields.keys()
    assert [line for line in lines if " # " not in line] == []


def test_several_sources_are_one_a_line() -> None:
    assert DataSettings(data=["a,b", "s3://c"]).data == "a,b\ns3://c"
    assert DataSettings(data="x", test_data=["y"]).test_data == "y"


def test_drawn_faces_are_a_source_alone() -> None:
    assert mistake(DataSettings, {"data": ["photos", "synthetic:9"]}) == (
        "data must be synthetic:9 alone, or sources of files; got both"
    )
