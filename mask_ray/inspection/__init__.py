"""Report what a data set holds, before training on it."""
