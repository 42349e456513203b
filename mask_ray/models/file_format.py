"""Names in a model file: its tensors and its metadata."""

INPUT_NAME = "image"
FEATURES_NAME = "features"
FEATURE_MAP_NAME = "feature_map"
OUTPUT_NAME = "probabilities"

CLASS_NAMES_KEY = "class_names"
IMAGE_SIZE_KEY = "image_size"
TEMPERATURE_KEY = "temperature"
