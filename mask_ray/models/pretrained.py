"""The weights that the backbone starts from: Keras's download of ImageNet's, or a file."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mask_ray.config import MaskRayError
from mask_ray.models import mobilenet

# Where Keras itself takes them from. The 224 px checkpoint serves every image size: the
# weights of convolutions do not depend on it, and there is one file to fetch or mirror.
_URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
_FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5"


class WeightsError(MaskRayError):
    """The backbone's weights cannot be had or do not fit; the message says what would."""


def read(backbone_weights: str, alpha: float) -> list[NDArray[np.float32]]:
    """The backbone's weights, in the order of its layers; see `mobilenet.read_h5`.

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
            f"backbone_weights must be of MobileNetV2 without top and of width alpha {alpha}; "
            f"{path} does not fit: {error}"
        ) from error


def find(backbone_weights: str, alpha: float) -> Path:
    """The .h5 file of MobileNetV2's weights without top.

    Args:
        backbone_weights: `imagenet` (downloaded by Keras unless it has them), or the path of an
            .h5 file.
        alpha: Width multiplier, one of `config.ALPHAS`.

    Raises:
        WeightsError: no such file, or the download failed.
    """
    if backbone_weights == "imagenet":
        return _downloaded(_FILE.format(alpha=float(alpha)))
    path = Path(backbone_weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"backbone_weights must be imagenet, none or an existing .h5 file; got {path}. "
            "A submitted job runs in a copy of the working directory: give an absolute path"
        )
    return path


def _downloaded(name: str) -> Path:
    folder = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"
    if (folder / name).is_file():
        return folder / name
    import keras  # seconds, needed once

    try:
        return Path(keras.utils.get_file(name, _URL + name, cache_subdir="models"))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"backbone_weights imagenet: the download failed ({reason}). Put the file into "
            f"{folder}, or pass its path as --backbone-weights, or train without it by "
            "--backbone-weights none"
        ) from error
