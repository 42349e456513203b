"""Ask the service over HTTP: which version answers, and whether its answers are right."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from mask_ray import client, proxies
from mask_ray.config import DEFAULT_PORT, ImageLimits, MaskRayError
from mask_ray.config.client import ClientSettings
from mask_ray.images.decode import decode_resized
from mask_ray.models.predictor import Predictor

_POLL_S = 0.5
# Each replica polls the alias every model_poll_s, and not all at the same time.
_SWITCHED_WITHIN_S = 30

# The same ONNX file differs slightly between CPU types, and answers are rounded.
_TOLERANCE = 1e-3


class ServiceError(MaskRayError):
    """The service does not answer, or answers wrongly; the message says how."""


def address(serve_config: Path) -> str:
    """Return the URL at which a service started with this file answers on this machine.

    Raises:
        ServiceError: the file is not a Serve configuration.
    """
    try:
        http = yaml.safe_load(serve_config.read_text()).get("http_options") or {}
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise ServiceError(
            f"serve_config must be a file such as serve_config.yaml; got {serve_config}: {error}"
        ) from error
    host = http.get("host", "127.0.0.1")
    port = http.get("port", DEFAULT_PORT)
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"


def health(url: str) -> dict[str, Any] | None:
    """Return the answer of /healthz; None if there is no service, {} if it is not ready.

    Raises:
        ServiceError: something else answers there.
    """
    try:
        with proxies.client(timeout=30) as http:
            response = http.get(f"{url}/healthz")
    except httpx.TimeoutException:
        return {}
    except httpx.TransportError:
        return None
    if response.status_code in (404, 502):  # Serve runs, but no application
        return None
    if response.status_code in (408, 429, 503, 504):
        return {}
    try:
        answer = response.json()
        answer["model"]["version"]
    except (ValueError, LookupError, TypeError) as error:
        raise ServiceError(
            f"something else answers at {url}/healthz, with {response.status_code}"
        ) from error
    return dict(answer)


def serves(url: str, name: str, version: str) -> bool:
    """Return whether this version answers there now."""
    return (health(url) or {}).get("model") == {"name": name, "version": version}


def await_version(url: str, name: str, version: str, timeout_s: float) -> None:
    """Wait until the service answers with this version.

    Raises:
        ServiceError: it does not do so within `timeout_s`, serves another model, or rejects this
            version.
    """
    deadline = time.monotonic() + timeout_s
    answer: dict[str, Any] | None = None
    while time.monotonic() < deadline:
        answer = health(url)
        if answer:
            _check_model(answer, url, name, version)
            if answer["model"]["version"] == version:
                return
        time.sleep(_POLL_S)
    if not answer:
        raise ServiceError(f"nothing is ready to answer at {url} after {timeout_s:g} s")
    raise ServiceError(
        f"{url} still answers with version {answer['model']['version']} after {timeout_s:g} s, not "
        f"{version}: it follows the champion if its model_uri is models:/{name}@champion and its "
        "model_poll_s is above 0; otherwise deploy it again"
    )


def _check_model(answer: Mapping[str, Any], url: str, name: str, version: str) -> None:
    if answer["model"]["name"] != name:
        raise ServiceError(f"{url} serves {answer['model']['name']}, not {name}; see url")
    for refused in answer.get("refused", []):
        if refused["version"] == version:
            raise ServiceError(f"{url} refuses version {version}: {refused['reason']}")


@dataclass(frozen=True)
class LabelledImage:
    """An encoded image and the class that it is labelled with."""

    name: str
    encoded: bytes
    class_name: str


def check_answers(
    url: str,
    model: tuple[str, str],
    images: Sequence[LabelledImage],
    predictor: Predictor,
    limits: ImageLimits,
) -> dict[str, Any]:
    """Classify each image over HTTP, and compare the answers with those of the model file.

    Args:
        url: Address of the service.
        model: Name and version that must answer.
        images: Images to send.
        predictor: The file of that version.
        limits: Limits for decoding the images here.

    Returns:
        `num_images`, `num_correct` (answers that match the label) and `largest_difference` between
        a probability and the file's.

    Raises:
        ServiceError: a request failed, another version answered, or an answer is not the file's.
    """
    rows = _rows(url, images)
    deadline = time.monotonic() + _SWITCHED_WITHIN_S
    while any(_model_of(row) not in (model, None) for row in rows) and time.monotonic() < deadline:
        time.sleep(1)
        rows = _rows(url, images)
    differences = []
    for image, row in zip(images, rows, strict=True):
        if row["error"]:
            raise ServiceError(f"{url} does not classify {image.name}: {row['error']}")
        if _model_of(row) != model:
            raise ServiceError(
                f"{url} answers {image.name} with version {row['version']} of {row['model']}, not "
                f"with version {model[1]} of {model[0]}"
            )
        differences.append(_difference(row, image, predictor, limits))
    return {
        "num_images": len(images),
        "num_correct": sum(
            row["label"] == image.class_name for row, image in zip(rows, images, strict=True)
        ),
        "largest_difference": max(differences),
    }


def _model_of(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return name and version; None if there was no answer."""
    return None if row["error"] else (row["model"], row["version"])


def _rows(url: str, images: Sequence[LabelledImage]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        folder, output = Path(scratch, "images"), Path(scratch, "rows.jsonl")
        folder.mkdir()
        paths = [folder / f"{number}.jpg" for number in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            path.write_bytes(image.encoded)
        names = [str(path) for path in paths]
        client.run(ClientSettings(paths=names, url=url, output=output, timeout_s=60))
        return [json.loads(line) for line in output.read_text().splitlines()]


def _difference(
    row: Mapping[str, Any], image: LabelledImage, predictor: Predictor, limits: ImageLimits
) -> float:
    pixels = decode_resized(image.encoded, predictor.image_size, limits)
    (own,) = predictor.predict(pixels[None])
    answered = np.array([row["probabilities"][name] for name in predictor.class_names])
    difference = float(np.abs(own - answered).max())
    own_label = predictor.class_names[int(own.argmax())]
    if row["label"] != own_label and difference > _TOLERANCE:
        raise ServiceError(
            f"the service answers {row['label']} for {image.name}, its own model file {own_label}"
        )
    return round(difference, 6)
