"""Prometheus metrics of a replica.

Ray collects the metrics of all processes of a node and exports them at the node's metrics port
(`ray start --metrics-export-port`), with `ray_` before each name. The values of all labels are
bounded: routes, methods and statuses of this app, classes and versions of its models.
"""

import collections
import threading
import time
from collections.abc import Iterable, Mapping
from http import HTTPMethod

from ray.util.metrics import Counter, Gauge, Histogram

from mask_ray.config import CHALLENGER
from mask_ray.serving.observability.exchanges import Exchange
from mask_ray.serving.versions.events import Comparison, NotComparedReason, Refusal

# fmt: off
_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)
# fmt: on
_BATCH_SIZES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0, 128.0, 256.0)
# Finer towards 1, where most probabilities of a trained classifier are.
_CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)

_METHODS = frozenset(HTTPMethod)
_MODEL = ("model", "model_version")


class Metrics:
    """The metrics of one replica. Recording takes microseconds and never blocks.

    Args:
        replica: Labels of every metric: `application`, `deployment`, `replica`.
    """

    def __init__(self, replica: Mapping[str, str]) -> None:
        self._replica = dict(replica)
        self._model = ("", "")
        self._make_request_metrics()
        self._make_model_metrics()

    def _make_request_metrics(self) -> None:
        of_request = ("endpoint", "method", "status")
        self._requests = _Tally(
            self._counter(
                "mask_ray_requests_total", "Finished HTTP requests, by status.", of_request
            )
        )
        self._duration = self._histogram(
            "mask_ray_request_duration_seconds",
            "From the headers of a request in the replica to the end of its answer.",
            _SECONDS,
            of_request,
        )
        self._failed_logins = _Tally(
            self._counter(
                "mask_ray_failed_logins_total",
                "Requests without a valid token, by reason: missing, invalid.",
                ("reason",),
            )
        )
        self._decode = self._histogram(
            "mask_ray_decode_seconds", "Time to decode and resize one image.", _SECONDS
        )
        self._batch_size = self._histogram(
            "mask_ray_batch_size", "Images in one inference call.", _BATCH_SIZES
        )
        self._inference = self._histogram(
            "mask_ray_inference_seconds", "Time of one inference call, for a batch.", _SECONDS
        )
        self._samples_dropped = self._counter(
            "mask_ray_samples_dropped_total", "Sampled images that were not kept for labelling."
        )

    def _make_model_metrics(self) -> None:
        self._model_info = self._gauge(
            "mask_ray_model_info", "1 for the current model, 0 for earlier ones.", _MODEL
        )
        self._predictions = _Tally(
            self._counter(
                "mask_ray_predictions_total", "Images answered, by class.", ("label", *_MODEL)
            )
        )
        self._confidence = self._histogram(
            "mask_ray_prediction_confidence",
            "Probability of the answered class.",
            _CONFIDENCES,
            ("label", *_MODEL),
        )
        self._comparisons = self._counter(
            "mask_ray_challenger_comparisons_total",
            "Images that champion and challenger both classified, by whether their classes agree.",
            ("agrees", "champion_version", "challenger_version"),
        )
        self._difference = self._histogram(
            "mask_ray_challenger_difference",
            "Largest difference between champion's and challenger's probabilities of a class.",
            _CONFIDENCES,
        )
        self._not_compared = self._counter(
            "mask_ray_challenger_dropped_total",
            "Images that were to be compared but were not, by reason.",
            ("reason",),
        )
        self._switches = self._counter(
            "mask_ray_model_switches_total", "Switches to another version, by alias.", ("alias",)
        )
        self._refusals = self._counter(
            "mask_ray_model_refusals_total", "Rejected versions, by alias.", ("alias",)
        )

    def observe(self, exchange: Exchange) -> None:
        """Count a finished request; an observer of `Exchanges`."""
        labels = {
            "endpoint": exchange.endpoint,
            "method": exchange.method if exchange.method in _METHODS else "other",
            "status": str(exchange.status),
        }
        self._requests.inc(labels)
        self._duration.observe(exchange.duration_s, labels)
        if reason := exchange.notes.get("login"):
            self._failed_logins.inc({"reason": reason})

    def report(self) -> None:
        """Report the counts since the last call to Ray."""
        self._requests.report()
        self._failed_logins.report()
        self._predictions.report()

    def report_every(self, period_s: float) -> None:
        """Call `report` periodically, in a thread that ends with the process."""

        def run() -> None:
            while True:
                time.sleep(period_s)
                self.report()

        threading.Thread(target=run, name="metrics", daemon=True).start()

    def decoded(self, seconds: float) -> None:
        """Record the time to decode one image, even if decoding failed."""
        self._decode.observe(seconds)

    def inferred(self, batch_size: int, seconds: float) -> None:
        """Record one inference call."""
        self._batch_size.observe(batch_size)
        self._inference.observe(seconds)

    def answered(self, label: str, confidence: float, model: str, version: str | None) -> None:
        """Count one answered image.

        Args:
            label: The most likely class.
            confidence: Its probability, in 0..1.
            model: Name of the model.
            version: Its version, if it has one.
        """
        labels = {"label": label} | _model_labels(model, version)
        self._predictions.inc(labels)
        self._confidence.observe(confidence, labels)

    def serves(self, model: str, version: str | None) -> None:
        """Record which model answers from now on."""
        if all(self._model):
            self._model_info.set(0, _model_labels(*self._model))
        self._model = (model, _version_text(version))
        self._model_info.set(1, _model_labels(*self._model))

    def switched(self, alias: str, version: str | None) -> None:
        """Record that an alias means another version from now on; None: no version."""
        self._switches.inc(tags={"alias": alias})
        if alias != CHALLENGER and version is not None and self._model[0]:
            self.serves(self._model[0], version)

    def refused(self, refusal: Refusal) -> None:
        """Count a rejected version."""
        self._refusals.inc(tags={"alias": refusal.alias})

    def compared(self, comparison: Comparison) -> None:
        """Record the comparison of champion and challenger on one image."""
        labels = {
            "agrees": str(comparison.agrees).lower(),
            "champion_version": _version_text(comparison.champion),
            "challenger_version": _version_text(comparison.challenger),
        }
        self._comparisons.inc(tags=labels)
        self._difference.observe(comparison.difference)

    def not_compared(self, reason: NotComparedReason) -> None:
        """Count an image without a comparison."""
        self._not_compared.inc(tags={"reason": reason})

    def sample_dropped(self) -> None:
        """Count a sampled image that was not kept."""
        self._samples_dropped.inc()

    def _counter(self, name: str, description: str, labels: Iterable[str] = ()) -> Counter:
        counter = Counter(name, description, (*self._replica, *labels))
        counter.set_default_tags(self._replica)
        return counter

    def _gauge(self, name: str, description: str, labels: Iterable[str]) -> Gauge:
        gauge = Gauge(name, description, (*self._replica, *labels))
        gauge.set_default_tags(self._replica)
        return gauge

    def _histogram(
        self,
        name: str,
        description: str,
        boundaries: Iterable[float],
        labels: Iterable[str] = (),
    ) -> Histogram:
        histogram = Histogram(name, description, list(boundaries), (*self._replica, *labels))
        histogram.set_default_tags(self._replica)
        return histogram


class _Tally:
    """Adds up counts until `report`, since each call of Ray's counter takes 50 us."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._lock = threading.Lock()
        self._numbers: collections.Counter[tuple[tuple[str, str], ...]] = collections.Counter()

    def inc(self, labels: dict[str, str]) -> None:
        with self._lock:
            self._numbers[tuple(labels.items())] += 1

    def report(self) -> None:
        with self._lock:
            numbers, self._numbers = self._numbers, collections.Counter()
        for labels, number in numbers.items():
            self._counter.inc(number, dict(labels))


def _model_labels(model: str, version: str | None) -> dict[str, str]:
    return {"model": model, "model_version": _version_text(version)}


def _version_text(version: str | None) -> str:
    """Return `file` for a model without a version: Prometheus drops empty labels."""
    return version or "file"
