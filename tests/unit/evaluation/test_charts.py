"""Charts of the report show class names as they are."""

import pytest

from mask_ray.evaluation import charts

CURVE = {"roc": [[0, 0], [1, 1]], "roc_auc": 0.5, "precision_recall": [[0, 1], [1, 0.5]]}
NAMES = ["under_$5_$", r"$\frac{", "_other", "<b>&"]


@pytest.mark.parametrize("draw", [charts.roc, charts.precision_recall])
def test_any_class_name_is_in_the_legend(draw: object) -> None:
    curves = {name: CURVE | {"average_precision": 0.7} for name in NAMES}
    svg = draw(curves)  # type: ignore[operator]
    for name in ("under_$5_$", r"$\frac{", "_other", "&lt;b&gt;&amp;"):
        assert name in svg
