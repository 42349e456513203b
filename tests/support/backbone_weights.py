"""Random weights of the backbone, as a file that a run can start from."""

from pathlib import Path

import h5py
import numpy as np

from mask_ray.models import mobilenet


def write(path: Path, alpha: float) -> Path:
    """An .h5 file in Keras's old format whose features are neither constant nor very large."""
    rng = np.random.default_rng(0)
    layers = []
    for convolution in mobilenet.convolutions(alpha):
        height, width, channels, _ = convolution.kernel_shape
        fan_in = height * width * (1 if convolution.is_depthwise else channels)
        kernel = rng.normal(0, (2 / fan_in) ** 0.5, convolution.kernel_shape)
        zeros, ones = np.zeros(convolution.num_channels), np.ones(convolution.num_channels)
        layers += [[kernel], [ones, zeros, zeros, ones]]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [f"layer_{number}" for number in range(len(layers))]
        for number, weights in enumerate(layers):
            group = file.create_group(f"layer_{number}")
            group.attrs["weight_names"] = [f"weight_{index}" for index in range(len(weights))]
            for index, weight in enumerate(weights):
                group[f"weight_{index}"] = weight.astype(np.float32)
    return path
