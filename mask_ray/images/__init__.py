"""Pixels: decode encoded images, augment them, draw synthetic ones. The one pixel path."""
