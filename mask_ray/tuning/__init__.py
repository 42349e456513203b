"""Search for hyperparameters with Ray Tune."""
