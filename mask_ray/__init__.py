"""Train and serve an image classifier on Ray."""

__version__ = "0.2.0"
