"""Settings of a training run."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mask_ray.config.backbone import (
    ALPHAS,
    BACKBONE,
    BLOCKS,
    BLOCKS_TEXT,
    DEFAULT_BLOCK,
    IMAGE_SIZES,
)
from mask_ray.config.base import (
    DEFAULT_MODEL_NAME,
    MODEL_NAME,
    MayChange,
    Settings,
    none_for_auto,
    one_of,
)
from mask_ray.config.data import DataSettings
from mask_ray.config.evaluation import ReportSettings
from mask_ray.config.promotion import PromotionRule


class TrackingSettings(Settings):
    """MLflow experiment of a run, and name of its registered model."""

    experiment: str = Field("mask_ray", min_length=1, description="MLflow experiment of the run.")
    register_as: Annotated[str, MayChange()] = Field(
        DEFAULT_MODEL_NAME,
        min_length=1,
        pattern=MODEL_NAME,
        description="Name of the registered model: letters, digits, spaces and _ . - + ( ).",
    )


class RunSettings(DataSettings, ReportSettings, TrackingSettings, PromotionRule):
    """Settings of a training run and of what follows it."""

    num_workers: Annotated[int, MayChange()] = Field(
        1, ge=1, le=4096, description="Horovod workers, one process each."
    )
    min_workers: Annotated[int | None, MayChange()] = Field(
        None,
        ge=1,
        description="Fewest workers to continue with when nodes are lost (default: num_workers).",
    )
    use_gpu: Annotated[bool, MayChange()] = Field(False, description="Give each worker one GPU.")
    cpus_per_worker: Annotated[float | None, BeforeValidator(none_for_auto), MayChange()] = Field(
        None,
        gt=0,
        description="CPUs that each worker reserves (default: an equal share of the CPUs that Ray "
        "Data does not need).",
    )
    image_size: int = Field(
        128, description=f"Side of the model's square input in pixels: {IMAGE_SIZES}."
    )
    alpha: float = Field(1.0, description=f"Width multiplier of {BACKBONE}: {ALPHAS}.")
    backbone_weights: str = Field(
        "imagenet",
        min_length=1,
        description="imagenet (downloaded once by Keras), none, or the path of a .h5 file.",
    )
    precision: Annotated[Literal["auto", "float32", "bfloat16"], MayChange()] = Field(
        "auto",
        description="Data type that layers compute in; weights stay float32. auto: bfloat16 on "
        "GPUs of compute capability 8.0 or more, float32 elsewhere.",
    )
    batch_size: int = Field(64, ge=1, description="Images per training step over all workers.")
    accumulate_steps: int = Field(
        1, ge=1, description="Training steps per update, which averages their gradients."
    )
    learning_rate: float = Field(
        1e-3,
        gt=0,
        le=1,
        description="Peak learning rate of the head, or of the whole network when training from "
        "scratch. It falls to 0 along a cosine over each phase.",
    )
    finetune_learning_rate: Annotated[float | None, BeforeValidator(none_for_auto)] = Field(
        None,
        gt=0,
        le=1,
        description="Peak learning rate of fine-tuning (default: a tenth of learning_rate).",
    )
    scale_learning_rate: bool = Field(
        False,
        description="Multiply the learning rates by num_workers, for a batch_size that grows with "
        "the workers (Goyal et al. 2017).",
    )
    warmup_epochs: float = Field(
        0, ge=0, description="Epochs in which each phase's learning rate rises to its peak."
    )
    head_epochs: int = Field(
        30,
        ge=0,
        description="Epochs of the head alone, on features that are computed once (0 without "
        "backbone weights).",
    )
    augmented_views: int = Field(
        0,
        ge=0,
        le=64,
        description="Augmented views of each training image that the head also trains on.",
    )
    feature_cache: Annotated[bool, MayChange()] = Field(
        True, description="Cache the features in MASK_RAY_HOME for later runs on the same images."
    )
    finetune_epochs: int = Field(
        3,
        ge=0,
        description="Epochs on augmented images that also train the backbone (without backbone "
        "weights: 15 by default, and all layers are trained).",
    )
    finetune_from: str = Field(
        DEFAULT_BLOCK,
        description=f"First block of {BACKBONE} that fine-tuning trains: {BLOCKS_TEXT}.",
    )
    augmentation: float = Field(
        1.0,
        ge=0,
        le=2,
        description="Strength of augmentation; 0: none.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="balanced: weight the loss of an image by N / (K n), for n of N training "
        "images in its class, of K classes, so that rare classes count as much as common ones. "
        "Applies to the training and the validation loss.",
    )
    patience: int = Field(
        10,
        ge=1,
        description="Epochs without a lower validation loss after which a phase ends early. Each "
        "phase ends with the weights of its best epoch.",
    )
    gradient_compression: Annotated[Literal["none", "fp16"], MayChange()] = Field(
        "none", description="Compression of the gradients that workers exchange."
    )
    fusion_threshold_mb: Annotated[float | None, MayChange()] = Field(
        None,
        ge=0,
        description="Largest buffer in MiB in which Horovod collects gradients (default: "
        "Horovod's, 128).",
    )
    cycle_time_ms: Annotated[float | None, MayChange()] = Field(
        None,
        gt=0,
        description="Interval in ms at which Horovod looks for gradients (default: Horovod's, 1).",
    )
    data_report: Annotated[bool, MayChange()] = Field(
        True,
        description="Log the report of jobs.inspect_data as an artifact. Skipped if the decoded "
        "images do not fit into a fifth of Ray's object store, since it reads all files again.",
    )
    quantize: Annotated[bool, MayChange()] = Field(
        True,
        description="Register the model in 8-bit integers if that costs at most 0.2 points of test "
        "accuracy and is faster on this machine.",
    )
    timeline: Annotated[bool, MayChange()] = Field(
        False, description="Log Horovod's timeline as an artifact; it slows training."
    )
    system_metrics: Annotated[bool, MayChange()] = Field(
        True,
        description="Log CPU, memory, disk and network use of each node as metrics, every 10 s.",
    )
    tensorboard: Annotated[bool, MayChange()] = Field(
        False,
        description="Write metrics for TensorBoard, to MASK_RAY_HOME/tensorboard and as artifacts.",
    )
    checkpoint_every_s: Annotated[float, MayChange()] = Field(
        5.0,
        ge=0,
        le=3600,
        description="Shortest time between two checkpoints, in seconds. Each is written at the end "
        "of an epoch; the end of a phase always writes one.",
    )
    max_failures: Annotated[int, MayChange()] = Field(
        3, ge=-1, description="Restarts from the last checkpoint after workers die; -1: no limit."
    )
    promote: Annotated[bool, MayChange()] = Field(
        True,
        description="Compare the new version with the champion, and promote it if it is better; "
        "otherwise it stays the challenger.",
    )

    @model_validator(mode="before")
    @classmethod
    def _epochs_for_weights(cls, given: Any) -> Any:
        """Without backbone weights train all layers in all epochs: nothing is worth freezing."""
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
        description="Resume this MLflow run from its last checkpoint, with its settings; flags "
        "override those that may change.",
    )
    from_run: Annotated[str | None, MayChange()] = Field(
        None,
        pattern=r"^[0-9a-f]{32}$",
        description="Repeat this MLflow run as a new run, with its settings; flags override them. "
        "Prints what else differs: data, code, libraries, platform.",
    )

    @model_validator(mode="after")
    def _one_earlier_run(self) -> Self:
        if self.resume is not None and self.from_run is not None:
            raise ValueError("resume and from_run exclude each other: give one of them")
        return self
