"""From settings to a registered model: the driver's side and the workers' side of a run."""
