"""What batch prediction refuses before it starts, and the format of its output."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mask_ray.batch_prediction.run import predict_files
from mask_ray.config import explain
from mask_ray.config.prediction import PredictSettings
from mask_ray.data import DataError
from tests.support.onnx_files import write_classifier


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"output": "a.csv"}, "csv"),
        ({"output": "a.parquet"}, "parquet"),
        ({"output": "a", "format": "csv"}, "csv"),
        ({"output": "a.csv", "format": "parquet"}, "parquet"),
    ],
)
def test_the_ending_says_the_format_where_no_flag_does(
    given: dict[str, Any], expected: str
) -> None:
    assert PredictSettings(source="photos", **given).output_format == expected


def test_an_unknown_ending_is_told_those_allowed() -> None:
    with pytest.raises(ValidationError) as caught:
        PredictSettings(source="photos", output="a.json")
    assert explain(caught.value) == (
        "output must end in .parquet or .csv if format is not given; got a.json"
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("model") / "tiny.onnx")


def test_a_source_that_is_not_there_is_one_line(model: Path, tmp_path: Path) -> None:
    nowhere, output = tmp_path / "nowhere", tmp_path / "out.csv"
    settings = PredictSettings(source=str(nowhere), model_uri=str(model), output=output)
    with pytest.raises(DataError) as told:
        predict_files(settings)
    assert str(told.value).startswith("a source must be synthetic[:N], a folder, ")
    assert f"; there is nothing at {nowhere}. A submitted job" in str(told.value)
    assert list(tmp_path.iterdir()) == []
