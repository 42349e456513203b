"""Other ways to serve the same model. Each is a program of its own, and imports no mask_ray."""
