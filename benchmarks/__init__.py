"""Measured claims about mask_ray, each a script that prints a table."""

import os

# Ray reads the first as it is imported, TensorFlow the other.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
