"""Values that settings allow for the backbone, MobileNetV2.

All else that is particular to it is in `mask_ray.models.mobilenet`.
"""

BACKBONE = "MobileNetV2"

# The published ImageNet checkpoints: Sandler et al. 2018, https://arxiv.org/abs/1801.04381
IMAGE_SIZES = (96, 128, 160, 192, 224)
ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)

# Where fine-tuning may begin, from the input up, and how flags describe that.
BLOCKS = ("stem", *(f"block_{number}" for number in range(1, 17)), "top")
BLOCKS_TEXT = "stem, block_1 to block_16, or top"
DEFAULT_BLOCK = "block_13"
SEARCHED_BLOCKS = ("block_16", "block_13", "block_10", "block_6")
