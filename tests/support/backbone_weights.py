"""Random weights of the backbone, also as a file that a run can start from."""

from pathlib import Path

import h5py
import numpy as np

from mask_ray.models import mobilenet

ARRAYS_PER_CONVOLUTION = 5


def random_weights(alpha: float) -> list[np.ndarray]:
    """Of every layer, such that activations neither vanish nor explode."""
    rng = np.random.default_rng(0)
    weights = []
    for convolution in mobilenet.convolutions(alpha):
        shape, channels = convolution.kernel_shape, convolution.num_channels
        fan_in = shape[0] * shape[1] * (1 if convolution.is_depthwise else shape[2])
        weights.append(rng.normal(size=shape) * np.sqrt(2 / fan_in))
        weights += [np.ones(channels), np.zeros(channels), np.zeros(channels), np.ones(channels)]
    return [weight.astype(np.float32) for weight in weights]


def write(path: Path, alpha: float) -> Path:
    """An .h5 file of these weights in Keras's old format."""
    weights = iter(random_weights(alpha))
    layers = []
    for kernel, *norm in zip(*[weights] * ARRAYS_PER_CONVOLUTION, strict=True):
        layers += [[kernel], norm]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [f"layer_{number}" for number in range(len(layers))]
        for number, arrays in enumerate(layers):
            group = file.create_group(f"layer_{number}")
            group.attrs["weight_names"] = [f"weight_{index}" for index in range(len(arrays))]
            for index, array in enumerate(arrays):
                group[f"weight_{index}"] = array
    return path
