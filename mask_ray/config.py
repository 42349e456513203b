"""Settings of every stage: typed, frozen, and checked once, where they enter.

Each job and the Serve application has one class here; its fields are the job's flags and the
keys of its YAML file. Nothing here reads files, talks to Ray or imports more than pydantic.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

DEFAULT_MODEL_NAME = "mask-detector"
DEFAULT_MODEL_URI = f"models:/{DEFAULT_MODEL_NAME}@champion"

# MobileNetV2's published ImageNet checkpoints: Sandler et al. 2018, https://arxiv.org/abs/1801.04381
IMAGE_SIZES = (96, 128, 160, 192, 224)
ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
BLOCKS = ("stem", *(f"block_{number}" for number in range(1, 17)), "top")

DEFAULT_PORTS = {"http": 80, "https": 443}

# Names, not numbers in the disguises of inet_aton. An underscore is no host's, but is used.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(
    rf"(?P<any>\*\.)?(?P<host>{_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[1-9]\d{{0,4}}))?"
)

# A form's other fields are counted and left out: pages send tokens and choices along.
MAX_FORM_FIELDS = 16
# More than the headers of one part, or than the URL or data: prefix of one image in JSON.
_OVERHEAD_BYTES = 8 * 1024

SplitName = Literal["train", "val", "test"]

T = TypeVar("T")


class MaskRayError(Exception):
    """Something that the user can mend; the message is all they need to know."""


def home() -> Path:
    """The folder that holds all state: `MASK_RAY_HOME`, or `~/.mask_ray`. Not created here."""
    return Path(os.environ.get("MASK_RAY_HOME") or "~/.mask_ray").expanduser().absolute()


def tracking_uri() -> str:
    """Where MLflow keeps runs: `MLFLOW_TRACKING_URI`, or an SQLite file under `home()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_tracking_uri()


def local_tracking_uri() -> str:
    """The SQLite file under `home()`."""
    return f"sqlite:///{home() / 'mlflow.db'}"


class Settings(BaseModel):
    """Base of all settings: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ImageLimits(Settings):
    """What the decoder accepts. Both bounds are checked before any pixel is decoded."""

    max_image_bytes: int = Field(
        10 * 1024 * 1024, ge=1, description="Largest encoded image, in bytes."
    )
    max_image_pixels: int = Field(
        50_000_000, ge=1, description="Largest image, in pixels (width times height)."
    )


def _check_source(source: str) -> str:
    if not source.strip():
        raise ValueError("must be a folder or synthetic[:N]; got an empty string")
    if source.partition(":")[0] == "synthetic" and not re.fullmatch(
        r"synthetic(:[1-9]\d*)?", source
    ):
        raise ValueError(f"must be a folder, synthetic or synthetic:N with N >= 1; got {source}")
    return source


Source = Annotated[str, AfterValidator(_check_source)]


class DataSettings(ImageLimits):
    """Where images come from and how they are split."""

    data: Source = Field(
        description="Folder with one sub-folder of images per class, or synthetic[:N] "
        "to draw N faces (default 2000)."
    )
    val_fraction: float = Field(
        0.15, gt=0, lt=1, description="Share of images held out to choose the best epoch."
    )
    test_fraction: float = Field(
        0.15, gt=0, lt=1, description="Share of images held out for the final figures."
    )
    seed: int = Field(0, ge=0, description="Seed of drawn images, initial weights and shuffling.")

    @model_validator(mode="after")
    def _fractions_leave_a_train_split(self) -> Self:
        held_out = self.val_fraction + self.test_fraction
        if held_out >= 1:
            raise ValueError(
                f"val_fraction + test_fraction must be below 1; got {held_out:g}, "
                "which leaves no images to train on"
            )
        return self


class TrackingSettings(Settings):
    """Where a run is recorded and under which name its model is registered."""

    experiment: str = Field("mask_ray", min_length=1, description="MLflow experiment of the run.")
    register_as: str = Field(
        DEFAULT_MODEL_NAME,
        min_length=1,
        pattern=r"^[^/:@]+$",
        description="Name of the registered model.",
    )


def _none_for_auto(value: Any) -> Any:
    return None if value == "auto" else value


class TrainSettings(DataSettings, TrackingSettings):
    """Train a classifier with Horovod on Ray, evaluate it and register it in MLflow."""

    num_workers: int = Field(1, ge=1, le=4096, description="Horovod workers, one process each.")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Go on with as few as this many workers when nodes are lost "
        "(default: always num_workers).",
    )
    use_gpu: bool = Field(False, description="Give each worker one GPU.")
    cpus_per_worker: Annotated[float | None, BeforeValidator(_none_for_auto)] = Field(
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
    precision: Literal["auto", "float32", "bfloat16"] = Field(
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
    finetune_learning_rate: Annotated[float | None, BeforeValidator(_none_for_auto)] = Field(
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
    feature_cache: bool = Field(
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
    gradient_compression: Literal["none", "fp16"] = Field(
        "none", description="How workers send gradients to each other."
    )
    fusion_threshold_mb: float | None = Field(
        None,
        ge=0,
        description="Largest buffer in MiB into which Horovod gathers gradients (default: "
        "Horovod's, 128).",
    )
    cycle_time_ms: float | None = Field(
        None,
        gt=0,
        description="Horovod's pause between looking for gradients, in ms (default: Horovod's, 1).",
    )
    quantize: bool = Field(
        False,
        description="Register the model in 8-bit integers, if that costs at most 0.2 points of "
        "test accuracy and is faster on this machine.",
    )
    timeline: bool = Field(
        False, description="Keep Horovod's timeline as an artifact of the run; it slows steps."
    )
    max_failures: int = Field(
        3, ge=-1, description="Restarts from the last checkpoint after a worker dies; -1: no limit."
    )
    resume: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{32}$",
        description="Go on with this MLflow run from its last checkpoint. Its settings are taken "
        "from the run, but for flags that are given.",
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
        return _one_of(image_size, IMAGE_SIZES)

    @field_validator("alpha")
    @classmethod
    def _known_alpha(cls, alpha: float) -> float:
        return _one_of(alpha, ALPHAS)

    @field_validator("finetune_from")
    @classmethod
    def _known_block(cls, block: str) -> str:
        return _one_of(block, BLOCKS)

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


# What a search draws from, evenly on a logarithmic scale.
SEARCH_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (1e-4, 1e-2),
    "finetune_learning_rate": (1e-5, 1e-3),
}
# What it chooses from. Factors, for the batch size.
SEARCH_CHOICES: dict[str, tuple[Any, ...]] = {
    "batch_size": (0.5, 1, 2),
    "finetune_from": ("block_16", "block_13", "block_10", "block_6"),
    "augmented_views": (0, 1, 3),
    "augmentation": (0.5, 1.0, 1.5),
    "warmup_epochs": (0, 1, 2),
}


class TuneSettings(TrainSettings):
    """Search the main settings of a training run by trials with Ray Tune; registers no model."""

    search: str | None = Field(
        None,
        min_length=1,
        description="Settings to search, with commas between (default: all of these that have an "
        "effect and are not given). "
        + "; ".join(f"{k}: {low:g} to {high:g}" for k, (low, high) in SEARCH_RANGES.items())
        + "; batch_size: half, same, double; "
        + "; ".join(
            f"{name}: {', '.join(map(str, values))}"
            for name, values in SEARCH_CHOICES.items()
            if name != "batch_size"
        )
        + ". The first trial takes all settings as they are without a search.",
    )
    num_trials: int = Field(16, ge=1, le=1000, description="Trials in all.")
    max_concurrent: Annotated[int | None, BeforeValidator(_none_for_auto)] = Field(
        None,
        ge=1,
        description="Trials at a time (default: as many as have two CPUs, or with --use-gpu one "
        "GPU, for each of their workers).",
    )
    grace_epochs: Annotated[int | None, BeforeValidator(_none_for_auto)] = Field(
        None,
        ge=1,
        description="Epochs that a trial is given before it can be stopped for falling behind the "
        "others (default: a fifth of all epochs).",
    )
    resume: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{32}$",
        description="Go on with the search of this MLflow run: with its unfinished trials, and "
        "those to come. Its settings are taken from the run, but for flags that are given.",
    )

    @property
    def num_epochs(self) -> int:
        """Epochs of a trial that is not stopped."""
        return self.head_epochs + self.finetune_epochs

    @property
    def searched(self) -> list[str]:
        """The settings that are searched."""
        if self.search is not None:
            return [name.strip().replace("-", "_") for name in self.search.split(",")]
        return [name for name in self._effective() if name not in self.model_fields_set]

    def _effective(self) -> list[str]:
        scratch = self.backbone_weights == "none"
        head, finetune = self.head_epochs > 0, self.finetune_epochs > 0 and not scratch
        views = head and self.augmented_views > 0
        effects = {
            "learning_rate": scratch or head,
            "finetune_learning_rate": finetune,
            "batch_size": True,
            "finetune_from": finetune,
            "augmented_views": head,
            "augmentation": scratch or finetune or views,
            "warmup_epochs": scratch,
        }
        return [name for name, has_effect in effects.items() if has_effect]

    @model_validator(mode="after")
    def _search_is_possible(self) -> Self:
        if unknown := [name for name in self.searched if name not in self._effective()]:
            raise ValueError(
                f"search must name settings that have an effect here: "
                f"{', '.join(self._effective())}; got {', '.join(unknown)}"
            )
        if not self.searched:
            raise ValueError(
                f"search must name a setting where all of them are given: "
                f"{', '.join(self._effective())}"
            )
        if self.grace_epochs is not None and self.grace_epochs > self.num_epochs:
            raise ValueError(
                f"grace_epochs must be at most head_epochs + finetune_epochs "
                f"({self.num_epochs}); got {self.grace_epochs}"
            )
        return self


class DemoSettings(Settings):
    """Train, register, serve and ask a model on this machine, then shut down what was started."""

    data: Source = Field(
        "synthetic:5000",
        description="Folder with one sub-folder of images per class, or synthetic[:N].",
    )
    backbone_weights: str = Field(
        "none", min_length=1, description="imagenet, none, or the path of an .h5 file."
    )
    epochs: int | None = Field(
        None,
        ge=1,
        description="Epochs of the whole network (default: as many as it takes to see about "
        "24,000 images without backbone weights, and 3 with them).",
    )
    num_workers: int = Field(2, ge=1, description="Horovod workers.")
    keep: bool = Field(False, description="Leave Ray and the service running at the end.")


class EvaluateSettings(DataSettings):
    """Evaluate a model file on labelled images and print its metrics."""

    model_uri: str = Field(
        DEFAULT_MODEL_URI, min_length=1, description="MLflow model URI or path of an ONNX file."
    )
    split: Literal["train", "val", "test", "all"] = Field(
        "test", description="Which images of the data set to evaluate on."
    )


@dataclass(frozen=True)
class AllowedHost:
    """One entry of the list. Without a port of its own it stands for that of the URL's scheme."""

    host: str
    port: int | None
    is_suffix: bool

    @classmethod
    def parse(cls, entry: str) -> Self:
        """Read `host`, `*.host`, `host:port` or `*.host:port`.

        Raises:
            ValueError: another form. Addresses are none: a name says whose they are.
        """
        match = _HOST.fullmatch(entry.lower())
        if match is None or match["host"].rpartition(".")[2].isdecimal():
            raise ValueError(
                f"must be names such as photos.example.org, *.example.org or "
                f"photos.example.org:8080, international ones in their xn-- form; got {entry!r}"
            )
        port = int(match["port"]) if match["port"] else None
        return cls(match["host"], port, is_suffix=match["any"] is not None)

    def matches(self, host: str, port: int, scheme: str) -> bool:
        """Whether a URL of this host, in lower case, and port is allowed."""
        if port != (self.port or DEFAULT_PORTS[scheme]):
            return False
        return host.endswith(f".{self.host}") if self.is_suffix else host == self.host


class RemoteImageSettings(ImageLimits):
    """Which URLs are fetched, and how long and how much."""

    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts that images are fetched from: photos.example.org, *.example.org (not "
        "example.org itself), or either with a :port. None is, if empty.",
    )
    fetch_timeout_s: float = Field(
        5, gt=0, description="Longest time for all of one fetch, in seconds."
    )
    max_redirects: int = Field(3, ge=0, le=10, description="Redirects followed in one fetch.")

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            AllowedHost.parse(entry)
        return entries


class PayloadLimits(ImageLimits):
    """What one request may carry."""

    max_images: int = Field(32, ge=1, description="Most images in one request.")
    max_total_bytes: int = Field(
        40 * 1024 * 1024, ge=1, description="All encoded images of one request together, in bytes."
    )

    @model_validator(mode="after")
    def _total_holds_an_image(self) -> Self:
        if self.max_total_bytes < self.max_image_bytes:
            raise ValueError(
                f"max_total_bytes must be at least max_image_bytes ({self.max_image_bytes}); "
                f"got {self.max_total_bytes}"
            )
        return self

    @property
    def max_form_bytes(self) -> int:
        """Longest multipart body: the images and the headers around them."""
        return self.max_total_bytes + (self.max_images + MAX_FORM_FIELDS) * _OVERHEAD_BYTES

    @property
    def max_json_bytes(self) -> int:
        """Longest JSON body: base64 spends four characters on three bytes."""
        return -(-self.max_total_bytes // 3) * 4 + self.max_images * _OVERHEAD_BYTES


def _check_origin(origin: str) -> str:
    if origin != "*" and not re.fullmatch(r"https?://[^/?#\s,*@]+", origin):
        raise ValueError(f"must be origins such as https://app.example.org, or *; got {origin!r}")
    return origin


def _check_absolute(path: Path) -> Path:
    if not path.expanduser().is_absolute():
        raise ValueError(f"must be an absolute path, since replicas run elsewhere; got {path}")
    return path.expanduser()


class ServeSettings(PayloadLimits, RemoteImageSettings):
    """Arguments of the Serve application (`args` in serve_config.yaml)."""

    model_uri: str = Field(
        DEFAULT_MODEL_URI, min_length=1, description="MLflow model URI or path of an ONNX file."
    )
    max_batch_size: int = Field(
        8, ge=1, le=256, description="Images per inference call; a replica's memory grows with it."
    )
    batch_wait_timeout_s: float = Field(
        0.002, ge=0, le=1, description="How long a batch waits for more images, in seconds."
    )
    max_concurrent_batches: int = Field(1, ge=1, le=16, description="Batches in flight a replica.")
    max_ongoing_requests: int = Field(
        32, ge=1, description="Requests a replica holds at once, queued in batches or running."
    )
    max_queued_requests: int = Field(
        128, ge=-1, description="Requests waiting for a replica before 429 is answered."
    )
    min_replicas: int = Field(1, ge=1, description="Replicas kept when idle.")
    max_replicas: int = Field(2, ge=1, description="Replicas at full load.")
    target_ongoing_requests: float = Field(
        12, gt=0, description="Requests a replica should hold; more starts another replica."
    )
    num_threads: int = Field(1, ge=1, description="Inference threads and CPUs of a replica.")
    request_timeout_s: float = Field(
        10,
        gt=0,
        description="Longest time for a request to arrive before 408, and then for its answer "
        "before 504, in seconds.",
    )
    token_file: Annotated[Path, AfterValidator(_check_absolute)] | None = Field(
        None,
        description="File of bearer tokens, one a line, which is read again when it changes; they "
        "count beside those of MASK_RAY_TOKENS.",
    )
    cors_origins: tuple[Annotated[str, AfterValidator(_check_origin)], ...] = Field(
        (),
        description="Origins whose pages may ask from a browser: https://app.example.org, or * "
        "for all. None but the endpoint's own page may, if empty.",
    )
    access_log: bool = Field(
        True, description="Write a line of JSON for each request to the replica's output."
    )
    sample_share: float = Field(
        0,
        ge=0,
        le=1,
        description="Share of images kept with their answers for later labelling. They are photos "
        "of people: see the privacy note in the README first.",
    )
    sample_path: str | None = Field(
        None, min_length=1, description="Folder for them on each replica's node."
    )
    model_poll_s: float = Field(
        10,
        ge=0,
        description="Seconds between looks at where the alias of model_uri points; 0: never. A "
        "URI without an alias always means the same model.",
    )
    allow_other_classes: bool = Field(
        False, description="Also switch to versions whose class names differ from those served."
    )
    challenger_share: float = Field(
        0,
        ge=0,
        le=1,
        description="Share of requests that the version with the alias challenger answers too.",
    )
    challenger_mode: Literal["shadow", "canary"] = Field(
        "shadow",
        description="Whose answer is sent for that share: shadow the champion's, canary the "
        "challenger's. Both are compared.",
    )

    @model_validator(mode="after")
    def _values_agree(self) -> Self:
        needed = self.max_batch_size * self.max_concurrent_batches
        if self.max_ongoing_requests < needed:
            raise ValueError(
                "max_ongoing_requests must be at least max_batch_size * max_concurrent_batches "
                f"({needed}), or batches never fill; got {self.max_ongoing_requests}"
            )
        if self.max_queued_requests == 0:
            raise ValueError("max_queued_requests must be at least 1, or -1 for no limit; got 0")
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas must be at most max_replicas ({self.max_replicas}); "
                f"got {self.min_replicas}"
            )
        if self.sample_share and self.sample_path is None:
            raise ValueError(
                f"sample_path must name a folder where sample_share is above 0; "
                f"got sample_share {self.sample_share:g} and no sample_path"
            )
        if self.challenger_share and (self.model_poll_s == 0 or "@" not in self.model_uri):
            raise ValueError(
                "challenger_share must be 0 unless model_uri has an alias (models:/name@alias) "
                f"and model_poll_s is above 0; got {self.challenger_share:g}"
            )
        return self


def _one_of(value: T, allowed: tuple[T, ...]) -> T:
    if value not in allowed:
        raise ValueError(f"must be one of {', '.join(map(str, allowed))}; got {value}")
    return value


def explain(error: ValidationError) -> str:
    """One clause per mistake: the field, what is allowed, what came."""
    return "; ".join(_clause(detail) for detail in error.errors(include_url=False))


def _clause(detail: Any) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"{field} is required"
    if detail["type"] == "extra_forbidden":
        return f"{field} is not a setting"
    if detail["type"] == "value_error":
        return f"{field} {message}".strip()
    return f"{field} {re.sub('^(Input|String) should', 'must', message)}; got {detail['input']!r}"
