"""Train a model and register it: the driver's side and the workers' side of a run."""
