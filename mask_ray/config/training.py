"""Settings of a training run."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mask_ray.config.base import DEFAULT_MODEL_NAME, MayChange, Settings, none_for_auto, one_of
from mask_ray.config.data import DataSettings, ReportSettings
from mask_ray.config.promotion import PromotionRule

# MobileNetV2's published ImageNet checkpoints: Sandler et al. 2018, https://arxiv.org/abs/1801.04381
IMAGE_SIZES = (96, 128, 160, 192, 224)
ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
BLOCKS = ("stem", *(f"block_{number}" for number in range(1, 17)), "top")


class TrackingSettings(Settings):
    """Where a run is recorded and under which name its model is registered."""

    experiment: str = Field("mask_ray", min_length=1, description="MLflow experiment of the run.")
    register_as: Annotated[str, MayChange()] = Field(
        DEFAULT_MODEL_NAME,
        min_length=1,
        pattern=r"^[^/:@]+$",
        description="Name of the registered model.",
    )


class RunSettings(DataSettings, ReportSettings, TrackingSettings, PromotionRule):
    """What a training run makes, and how."""

    num_workers: Annotated[int, MayChange()] = Field(
        1, ge=1, le=4096, description="Horovod workers, one process each."
    )
    min_workers: Annotated[int | None, MayChange()] = Field(
        None,
        ge=1,
        description="Go on with as few as this many workers when nodes are lost "
        "(default: always num_workers).",
    )
    use_gpu: Annotated[bool, MayChange()] = Field(False, description="Give each worker one GPU.")
    cpus_per_worker: Annotated[float | None, BeforeValidator(none_for_auto), MayChange()] = Field(
        None,
        gt=0,
        description="CPUs reserved by each worker (default: an equal share of what Ray Data "
        "does not need).",
    )
    image_size: int = Field(
        128, description=f"Side of the model's square input in pixels: {IMAGE_SIZES}."
    )
    alpha: float = Field(1.0, description=f"Width multiplier of MobileNetV2: {ALPHAS}.")
    backbone_weights: str = Field(
        "imagenet",
        min_length=1,
        description="imagenet (downloaded once by Keras), none, or the path of a .h5 file.",
    )
    precision: Annotated[Literal["auto", "float32", "bfloat16"], MayChange()] = Field(
        "auto",
        description="Numbers that the layers compute in; weights stay float32. auto: bfloat16 on "
        "GPUs of compute capability 8.0 or more, float32 elsewhere.",
    )
    batch_size: int = Field(64, ge=1, description="Images per step, over all workers.")
    accumulate_steps: int = Field(
        1, ge=1, description="Steps whose gradients are averaged into one update."
    )
    learning_rate: float = Field(
        1e-3,
        gt=0,
        le=1,
        description="Peak learning rate of the head, or of the whole network when it is trained "
        "from nothing. It falls to 0 along a cosine over each phase.",
    )
    finetune_learning_rate: Annotated[float | None, BeforeValidator(none_for_auto)] = Field(
        None,
        gt=0,
        le=1,
        description="Peak learning rate of fine-tuning (default: a tenth of learning_rate).",
    )
    scale_learning_rate: bool = Field(
        False,
        description="Multiply the learning rates by num_workers, for when batch_size grows with "
        "the workers (Goyal et al. 2017).",
    )
    warmup_epochs: float = Field(
        0, ge=0, description="Epochs over which each phase's learning rate rises to its peak."
    )
    head_epochs: int = Field(
        30,
        ge=0,
        description="Epochs of the head on features that are computed once (0 without backbone "
        "weights).",
    )
    augmented_views: int = Field(
        0,
        ge=0,
        le=64,
        description="Augmented views of each training image whose features are computed for the "
        "head, beside those of the image itself.",
    )
    feature_cache: Annotated[bool, MayChange()] = Field(
        True, description="Keep the features in MASK_RAY_HOME for the next run on the same images."
    )
    finetune_epochs: int = Field(
        3,
        ge=0,
        description="Epochs on augmented images with the backbone trained too (15 by default "
        "without backbone weights, where they train everything).",
    )
    finetune_from: str = Field(
        "block_13",
        description="First block of MobileNetV2 that fine-tuning trains: stem, block_1 to "
        "block_16, or top.",
    )
    augmentation: float = Field(
        1.0,
        ge=0,
        le=2,
        description="Strength of augmentation; 0 shows the images as they are.",
    )
    patience: int = Field(
        10,
        ge=1,
        description="Epochs without a lower validation loss before a phase ends early. Each "
        "phase ends with its best epoch.",
    )
    gradient_compression: Annotated[Literal["none", "fp16"], MayChange()] = Field(
        "none", description="How workers send gradients to each other."
    )
    fusion_threshold_mb: Annotated[float | None, MayChange()] = Field(
        None,
        ge=0,
        description="Largest buffer in MiB into which Horovod gathers gradients (default: "
        "Horovod's, 128).",
    )
    cycle_time_ms: Annotated[float | None, MayChange()] = Field(
        None,
        gt=0,
        description="Horovod's pause between looking for gradients, in ms (default: Horovod's, 1).",
    )
    data_report: Annotated[bool, MayChange()] = Field(
        True,
        description="Keep the report of jobs.inspect_data with the run. Left out where the decoded "
        "images do not fit into a fifth of Ray's object store, since it reads files anew.",
    )
    quantize: Annotated[bool, MayChange()] = Field(
        True,
        description="Register the model in 8-bit integers, if that costs at most 0.2 points of "
        "test accuracy and is faster on this machine.",
    )
    timeline: Annotated[bool, MayChange()] = Field(
        False, description="Keep Horovod's timeline as an artifact of the run; it slows steps."
    )
    system_metrics: Annotated[bool, MayChange()] = Field(
        True, description="Record how busy each node is, every 10 s, as metrics of the run."
    )
    tensorboard: Annotated[bool, MayChange()] = Field(
        False,
        description="Write each epoch's figures for TensorBoard, in MASK_RAY_HOME/tensorboard and "
        "as artifacts of the run.",
    )
    checkpoint_every_s: Annotated[float, MayChange()] = Field(
        5.0,
        ge=0,
        le=3600,
        description="Seconds between checkpoints, at least: one is written after the first epoch "
        "that ends later than that, and at the end of each phase.",
    )
    max_failures: Annotated[int, MayChange()] = Field(
        3, ge=-1, description="Restarts from the last checkpoint after a worker dies; -1: no limit."
    )
    promote: Annotated[bool, MayChange()] = Field(
        True,
        description="Compare the new version with the champion, and have it take its place if it "
        "is better by the rule; otherwise it stays the challenger.",
    )

    @model_validator(mode="before")
    @classmethod
    def _epochs_for_weights(cls, given: Any) -> Any:
        """Without backbone weights nothing is worth freezing: all epochs train everything."""
        if isinstance(given, dict) and given.get("backbone_weights") == "none":
            return {"head_epochs": 0, "finetune_epochs": 15} | given
        return given

    @field_validator("image_size")
    @classmethod
    def _known_image_size(cls, image_size: int) -> int:
        return one_of(image_size, IMAGE_SIZES)

    @field_validator("alpha")
    @classmethod
    def _known_alpha(cls, alpha: float) -> float:
        return one_of(alpha, ALPHAS)

    @field_validator("finetune_from")
    @classmethod
    def _known_block(cls, block: str) -> str:
        return one_of(block, BLOCKS)

    @model_validator(mode="after")
    def _values_agree(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers must be at most num_workers ({self.num_workers}); "
                f"got {self.min_workers}"
            )
        if self.batch_size < self.num_workers:
            raise ValueError(
                f"batch_size is over all workers and must be at least num_workers "
                f"({self.num_workers}); got {self.batch_size}"
            )
        if self.head_epochs + self.finetune_epochs == 0:
            raise ValueError("head_epochs + finetune_epochs must be at least 1; got 0")
        if self.backbone_weights == "none" and self.head_epochs:
            raise ValueError(
                "head_epochs must be 0 with backbone_weights none, since a random backbone is "
                f"not worth freezing; got {self.head_epochs}. Use finetune_epochs"
            )
        return self


class TrainSettings(RunSettings):
    """Train a classifier with Horovod on Ray, evaluate it and register it in MLflow."""

    resume: Annotated[str | None, MayChange()] = Field(
        None,
        pattern=r"^[0-9a-f]{32}$",
        description="Go on with this MLflow run from its last checkpoint. Its settings are taken "
        "from the run, but for flags that are given.",
    )
    from_run: Annotated[str | None, MayChange()] = Field(
        None,
        pattern=r"^[0-9a-f]{32}$",
        description="Make this MLflow run again, as a new one. Its settings are taken from the "
        "run, but for flags that are given; a line tells what else is not as it was.",
    )

    @model_validator(mode="after")
    def _one_earlier_run(self) -> Self:
        if self.resume is not None and self.from_run is not None:
            raise ValueError("resume and from_run exclude each other: give one of them")
        return self
