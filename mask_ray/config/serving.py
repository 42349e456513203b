"""Settings of the endpoint."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from mask_ray.config.base import DEFAULT_MODEL_URI
from mask_ray.config.images import ImageLimits

# Port where clients look for the endpoint. `serve run` listens on that of serve_config.yaml.
DEFAULT_PORT = 8000
# Ports of the URLs of remote images.
PORTS_BY_SCHEME = {"http": 80, "https": 443}

# Names, not IP addresses in any notation. Underscores are not allowed in host names, but are used.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(
    rf"(?P<any>\*\.)?(?P<host>{_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[1-9]\d{{0,4}}))?"
)

# Pages send tokens and choices along: fields that are not files are counted and ignored.
MAX_FORM_FIELDS = 16
# More than the headers of a form's part, or the URL or data: prefix of an image in JSON.
_OVERHEAD_BYTES = 8 * 1024


@dataclass(frozen=True)
class AllowedHost:
    """One entry of `allowed_hosts`. Without a port it allows the default port of the scheme."""

    host: str
    port: int | None
    is_suffix: bool

    @classmethod
    def parse(cls, entry: str) -> Self:
        """Read `host`, `*.host`, `host:port` or `*.host:port`.

        Raises:
            ValueError: another form. IP addresses are not allowed: they do not say whose they are.
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
        """Whether a URL with this host (in lower case) and port is allowed."""
        if port != (self.port or PORTS_BY_SCHEME[scheme]):
            return False
        return host.endswith(f".{self.host}") if self.is_suffix else host == self.host


class RemoteImageSettings(ImageLimits):
    """Which URLs are fetched, for how long and how many bytes."""

    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts that images are fetched from: photos.example.org, *.example.org (not "
        "example.org itself), or either with a :port. Empty: nothing is fetched.",
    )
    fetch_timeout_s: float = Field(
        5, gt=0, description="Time limit of one fetch with its redirects, in seconds."
    )
    max_redirects: int = Field(3, ge=0, le=10, description="Most redirects in one fetch.")

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
        40 * 1024 * 1024, ge=1, description="Most encoded bytes in one request, over all images."
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


# Copies of a body's bytes in memory at the peak, while a batch is decoded: the request, the image
# without metadata, the message to the process that decodes it, what that has received, and what it
# unpacks. JSON has four before that: chunks, the joined body, its text, and the decoded base64.
BODY_COPIES = 5

# What a thread of a replica may take to decode an ordinary photo; what takes more waits its turn.
QUICK_DECODE_BYTES = 64 * 1024 * 1024
# Of a replica that serves nothing: the model twice, the libraries, the processes that decode.
_REPLICA_BYTES = 512 * 1024 * 1024
# Samples that wait for the disk, and the file that is made of them.
_SAMPLES_BYTES = 256 * 1024 * 1024


def _check_origin(origin: str) -> str:
    if origin != "*" and not re.fullmatch(r"https?://[^/?#\s,*@]+", origin):
        raise ValueError(f"must be origins such as https://app.example.org, or *; got {origin!r}")
    return origin


def _check_name(name: str) -> str:
    """Check a name of a trusted host: any, or as of an allowed host, but without a port."""
    if name != "*" and AllowedHost.parse(name).port is not None:
        raise ValueError(f"must be names without a port, which all are trusted; got {name!r}")
    return name.lower()


def _check_rate(rates: dict[str, float]) -> dict[str, float]:
    for name, rate in rates.items():
        if not rate > 0 or math.isinf(rate):
            raise ValueError(f"must be requests per second above 0; got {rate:g} of {name}")
    return rates


def _check_absolute(path: Path) -> Path:
    if not path.expanduser().is_absolute():
        raise ValueError(
            f"must be an absolute path, since replicas run in other folders; got {path}"
        )
    return path.expanduser()


class ServeSettings(PayloadLimits, RemoteImageSettings):
    """Arguments of the Serve application (`args` in serve_config.yaml)."""

    model_uri: str = Field(
        DEFAULT_MODEL_URI, min_length=1, description="MLflow model URI or path of an ONNX file."
    )
    max_batch_size: int = Field(
        8,
        ge=1,
        le=256,
        description="Most images in one inference call. A free thread takes up to this many that "
        "wait; a replica's memory grows with it.",
    )
    max_ongoing_requests: int = Field(
        32, ge=1, description="Most requests in one replica, waiting for a batch or running."
    )
    max_queued_requests: int = Field(
        128, ge=-1, description="Most requests that wait for a replica; more get 429. -1: no limit."
    )
    min_replicas: int = Field(1, ge=1, description="Replicas of an idle service.")
    max_replicas: int = Field(2, ge=1, description="Most replicas under load.")
    target_ongoing_requests: float = Field(
        12, gt=0, description="Requests per replica that autoscaling aims at."
    )
    look_back_period_s: float = Field(
        15, gt=0, description="Period over which autoscaling averages the requests, in seconds."
    )
    upscale_delay_s: float = Field(
        5, ge=0, description="How long more replicas must be needed before they start, in seconds."
    )
    downscale_delay_s: float = Field(
        300,
        ge=0,
        description="How long fewer replicas must be enough before some stop, in seconds.",
    )
    downscaling_factor: float = Field(
        0.5, gt=0, le=1, description="Share of the surplus replicas that stops at a time."
    )
    health_check_period_s: float = Field(
        5, gt=0, description="Seconds between trial inferences in each replica."
    )
    health_check_timeout_s: float = Field(
        5,
        gt=0,
        description="Time limit of a trial inference, in seconds. A replica that fails three in a "
        "row is replaced.",
    )
    max_surge_percent: int = Field(
        100,
        ge=0,
        le=100,
        description="Extra replicas, in percent, while a deploy replaces the running ones. They "
        "wait for free CPUs and memory; with 0, old replicas stop before new ones start.",
    )
    num_threads: int = Field(
        1,
        ge=1,
        description="CPUs that a replica reserves, and its threads. Each decodes and classifies "
        "one batch at a time.",
    )
    num_lone_threads: int = Field(
        2,
        ge=1,
        description="Threads that classify an image that is alone in the replica: cores that "
        "would be idle halve the time to its answer.",
    )
    request_timeout_s: float = Field(
        10,
        gt=0,
        description="Time limit for a request to arrive (else 408), and then again for its answer "
        "(else 504), in seconds.",
    )
    decode_timeout_s: float = Field(
        6,
        gt=0,
        description="Time limit of decoding one image, in seconds, after which it is given up "
        "(422). For what takes longer than max_decode_s predicted.",
    )
    request_memory_bytes: int = Field(
        1280 * 1024 * 1024,
        ge=1024 * 1024,
        description="Memory for bodies and decoding of all requests in a replica, in bytes; what "
        "does not fit gets 429. Ray reserves it for each replica, with 512 MiB and 64 MiB a "
        "thread for the replica itself.",
    )
    token_file: Annotated[Path, AfterValidator(_check_absolute)] | None = Field(
        None,
        description="File of bearer tokens, one a line, each as name:token, read again when it "
        "changes. Tokens of MASK_RAY_TOKENS at the deploy are valid too.",
    )
    require_token: bool = Field(
        False,
        description="Refuse to start without tokens. Always so if Serve listens beyond loopback.",
    )
    rate_limits: Annotated[dict[str, float], AfterValidator(_check_rate)] = Field(
        {},
        description="Most requests per second of a token's name, in each replica; more get 429. A "
        "name that is not here has no limit.",
    )
    trusted_hosts: tuple[Annotated[str, AfterValidator(_check_name)], ...] = Field(
        (),
        description="Names that clients may ask for, beside localhost and IP addresses: "
        "masks.example.org, *.example.org, or * for all. Requests to any other name get 421.",
    )
    cors_origins: tuple[Annotated[str, AfterValidator(_check_origin)], ...] = Field(
        (),
        description="Origins of other sites whose pages may send requests: "
        "https://app.example.org, or * for all. Empty: only the service's own page.",
    )
    access_log: bool = Field(
        True, description="Write a line of JSON for each request to a file beside Serve's logs."
    )
    sample_share: float = Field(
        0,
        ge=0,
        le=1,
        description="Share of images kept with their answers for later labelling. They are photos "
        "of people: read the privacy note first (docs/guides/operate.md).",
    )
    sample_path: str | None = Field(
        None, min_length=1, description="Folder for kept images, on each replica's node."
    )
    model_poll_s: float = Field(
        10,
        ge=0,
        description="How often replicas check which version the alias of model_uri names, in "
        "seconds; 0: never.",
    )
    max_model_mb: int = Field(
        1024,
        ge=1,
        description="Most memory in MiB that a version may take with one full batch. One that "
        "takes more, or whose batch takes over 0.4 of health_check_timeout_s, is not switched to.",
    )
    allow_other_classes: bool = Field(
        False, description="Switch also to versions with other class names."
    )
    challenger_share: float = Field(
        0,
        ge=0,
        le=1,
        description="Share of requests that the version with the alias challenger also classifies.",
    )
    challenger_mode: Literal["shadow", "canary"] = Field(
        "shadow",
        description="Whose answer clients get for that share: shadow, the champion's; canary, the "
        "challenger's. Both are compared.",
    )

    @model_validator(mode="after")
    def _values_agree(self) -> Self:
        needed = self.max_batch_size * self.num_threads
        if self.max_ongoing_requests < needed:
            raise ValueError(
                "max_ongoing_requests must be at least max_batch_size * num_threads "
                f"({needed}), or batches never fill; got {self.max_ongoing_requests}"
            )
        self._check_times()
        self._check_memory()
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

    def _check_times(self) -> None:
        if self.decode_timeout_s >= self.request_timeout_s:
            raise ValueError(
                f"decode_timeout_s must be below request_timeout_s ({self.request_timeout_s:g}), "
                f"or requests end before images are given up; got {self.decode_timeout_s:g}"
            )
        if self.max_decode_s > self.decode_timeout_s:
            raise ValueError(
                f"max_decode_s must be at most decode_timeout_s ({self.decode_timeout_s:g}), or "
                f"images that are accepted are given up; got {self.max_decode_s:g}"
            )

    def _check_memory(self) -> None:
        """Check that the largest requests that are allowed fit: one image, and a list of photos."""
        image_bytes = self.max_decode_bytes + BODY_COPIES * self.max_image_bytes
        list_bytes = BODY_COPIES * max(self.max_json_bytes, self.max_form_bytes)
        for field, num_bytes, what in (
            ("max_decode_bytes", image_bytes, f"and {BODY_COPIES} times max_image_bytes"),
            ("max_total_bytes", list_bytes, f"as JSON {BODY_COPIES} times"),
        ):
            # Large requests may use three quarters of it.
            needed_bytes = -(-num_bytes * 4 // 3)
            if self.request_memory_bytes < needed_bytes:
                raise ValueError(
                    f"request_memory_bytes must be at least 4/3 of {field} {what} "
                    f"({needed_bytes}), or such a request never fits; "
                    f"got {self.request_memory_bytes}"
                )

    @property
    def replica_memory_bytes(self) -> int:
        """Memory that Ray reserves for a replica, in bytes."""
        samples_bytes = _SAMPLES_BYTES if self.sample_share else 0
        quick_bytes = self.num_threads * QUICK_DECODE_BYTES
        return _REPLICA_BYTES + quick_bytes + self.request_memory_bytes + samples_bytes
