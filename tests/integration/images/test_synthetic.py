"""Classes cannot be told apart by colour alone."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from mask_ray.images.synthetic import draw


def test_the_mean_colour_does_not_tell_the_classes_apart() -> None:
    images, labels = zip(*map(draw, range(400)), strict=True)
    mean_colours = np.array([image.mean(axis=(0, 1)) for image in images]) / 255
    accuracies = cross_val_score(LogisticRegression(C=100), mean_colours, labels, cv=5)
    assert accuracies.mean() < 0.65
    fitted = LogisticRegression(C=100).fit(mean_colours, labels)
    assert fitted.score(mean_colours, labels) < 0.8
