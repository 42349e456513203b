"""Train and serve an image classifier on Ray."""
