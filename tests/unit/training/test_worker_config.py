"""What workers are given can be shown: Ray does."""

from pathlib import Path

from mask_ray.config import TrainSettings
from mask_ray.training.worker_config import WorkerConfig


def test_its_text_has_no_secret() -> None:
    config = WorkerConfig(
        settings=TrainSettings(data="s3://key:s3cret@bucket/photos"),
        class_names=["a", "b"],
        num_train=1,
        run_id="0" * 32,
        tracking_uri="https://me:s3cret@mlflow.example.org",
        storage=Path("/shared"),
    )
    assert "s3cret" not in f"{config} {config!r}"
