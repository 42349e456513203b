"""Weights that the backbone starts from: ImageNet's, downloaded by Keras, or a file."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mask_ray.config import MaskRayError
from mask_ray.files import sha256_of
from mask_ray.models import mobilenet


class WeightsError(MaskRayError):
    """The backbone's weights are missing or do not fit; the message says what would fit."""


def read(backbone_weights: str, alpha: float) -> list[NDArray[np.float32]]:
    """Read the backbone's weights, in the order of `mobilenet.read_h5`.

    Args:
        backbone_weights: `imagenet` or the path of an .h5 file.
        alpha: Width multiplier, one of `config.ALPHAS`.

    Raises:
        WeightsError: there is no such file, the download failed, or the weights do not fit.
    """
    path = find(backbone_weights, alpha)
    try:
        return mobilenet.read_h5(path.read_bytes(), alpha)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"backbone_weights must be of {mobilenet.NAME} without top and of width alpha {alpha}; "
            f"{path} does not fit: {error}"
        ) from error


def find(backbone_weights: str, alpha: float) -> Path:
    """Locate the .h5 file of the backbone's weights without top; download it if needed.

    Args:
        backbone_weights: `imagenet` (downloaded by Keras unless it has the file), or the path of
            an .h5 file.
        alpha: Width multiplier, one of `config.ALPHAS`.

    Raises:
        WeightsError: there is no such file, or the download failed.
    """
    if backbone_weights == "imagenet":
        return _find_imagenet(mobilenet.weights_file(alpha))
    path = Path(backbone_weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"backbone_weights must be imagenet, none or an existing .h5 file; got {path}. "
            "A submitted job runs in a copy of the working directory: give an absolute path"
        )
    return path


def _find_imagenet(name: str) -> Path:
    folder = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"
    path = folder / name
    if not path.is_file():
        path = _downloaded(name, folder)
    _check_digest(path)
    return path


def _check_digest(path: Path) -> None:
    """Reject a file that is not the one whose digest is pinned; widths without one are accepted.

    Raises:
        WeightsError: the file has another digest.
    """
    pinned = mobilenet.WEIGHTS_SHA256.get(path.name)
    if pinned is None:
        return
    digest = sha256_of(path)
    if digest != pinned:
        raise WeightsError(
            f"backbone_weights imagenet: {path} must have the SHA-256 {pinned}; got {digest}. "
            "Delete the file to download it again, or pass the path of other weights"
        )


def _downloaded(name: str, folder: Path) -> Path:
    import keras  # seconds, needed only for the download

    try:
        url = mobilenet.WEIGHTS_URL + name
        return Path(keras.utils.get_file(name, url, cache_subdir="models"))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"backbone_weights imagenet: the download failed ({reason}). Put the file into "
            f"{folder}, or pass its path as --backbone-weights, or train without it by "
            "--backbone-weights none"
        ) from error
