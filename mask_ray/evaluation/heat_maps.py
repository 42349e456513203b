"""Draw class activation maps: where in an image a model sees a class.

Zhou et al. 2016, "Learning Deep Features for Discriminative Localization",
https://arxiv.org/abs/1512.04150: the head is linear in the average of a feature map, so each
position of the map contributes a share to a logit.
"""

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_ray.models import onnx_edit
from mask_ray.models.predictor import FeatureMaps, Images

_COLOURS = matplotlib.colormaps["inferno"]
_OPACITY = 0.6


def overlay_heat_maps(onnx: Path, images: Images, classes: list[int]) -> list[Images] | None:
    """Colour what speaks for a class in warm colours, over the images.

    Args:
        onnx: Model file.
        images: uint8 (N, S, S, 3), N >= 1.
        classes: A class for each image.

    Returns:
        Images of the same shape; None if the model has no feature map before its head.
    """
    model = onnx_edit.with_feature_map(onnx.read_bytes())
    if model is None:
        return None
    features = FeatureMaps(model.onnx).extract(images)
    # A softmax depends only on differences of logits.
    kernel = model.kernel - model.kernel.mean(axis=1, keepdims=True)
    shares = np.einsum("ndyx,dn->nyx", features, kernel[:, classes])
    return [_overlay(*pair) for pair in zip(images, shares, strict=True)]


def _overlay(image: Images, shares: NDArray[np.float32]) -> Images:
    """Colour by share in the logit, from 0 (or less) to the largest."""
    heat = np.clip(shares, 0, None) / max(float(shares.max()), 1e-6)
    size = image.shape[1], image.shape[0]
    smooth = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    colours = 255 * _COLOURS(smooth)[..., :3]
    mixed = (1 - _OPACITY) * image + _OPACITY * colours
    return mixed.astype(np.uint8)
