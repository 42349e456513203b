"""What a data set holds, reported before anything is trained on it."""
