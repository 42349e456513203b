"""Where benchmarks look for the backbone's ImageNet weights, unless a flag names another file."""

from pathlib import Path

from mask_ray.models import mobilenet

WEIGHTS = Path("../shared/weights", mobilenet.weights_file(1.0))
DESCRIPTION = f"ImageNet weights of {mobilenet.NAME} without top, as .h5"
