"""Batch prediction as a user runs it: bad files are rows, and a killed process loses none."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mask_ray.batch_prediction.output import OutputError
from mask_ray.batch_prediction.run import predict_files
from mask_ray.config import ImageLimits
from mask_ray.config.prediction import PredictSettings
from mask_ray.images import synthetic
from mask_ray.images.decode import decode_resized
from mask_ray.models.predictor import Predictor
from tests.support import commands
from tests.support.onnx_files import CLASS_NAMES, IMAGE_SIZE, write_classifier
from tests.support.polling import wait_until
from tests.support.project import ROOT
from tests.support.ray_jobs import run_here

NUM_LINKS = 9000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn faces, at two depths, with files between them that are none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep, er").mkdir()
    for index in range(20):
        encoded, _ = synthetic.encode(index, seed=0)
        (folder / ("deep, er" if index % 2 else "") / f"{index:02}.jpg").write_bytes(encoded)
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no image")
    (folder / "cut.jpg").write_bytes(encoded[:500])
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / ".hidden").write_text("not looked at")
    return folder


def probabilities_of(path: str, model: Path) -> list[float]:
    pixels = decode_resized(Path(path).read_bytes(), IMAGE_SIZE, ImageLimits())
    return Predictor(model).predict(pixels[None])[0].tolist()


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_every_file_is_a_row_bad_ones_with_the_reason(
    cluster: dict[str, str], photos: Path, model: Path, tmp_path: Path, ending: str
) -> None:
    output = tmp_path / f"out.{ending}"
    flags = [str(photos), "--model-uri", str(model), "--output", str(output)]
    result = run_here("jobs.predict", *flags, env=cluster).result

    rows = pd.read_parquet(output) if ending == "parquet" else pd.read_csv(output)
    columns = ["path", "label", "probability", *(f"probability_{name}" for name in CLASS_NAMES)]
    assert list(rows.columns) == [*columns, "error", "model_name", "model_version"]
    good, bad = rows[rows["error"].isna()], rows[rows["error"].notna()]
    assert {Path(p).name for p in bad["path"]} == {"empty.jpg", "notes.txt", "cut.jpg"}
    assert bad[columns[1:]].isna().all(axis=None)
    assert len(good) == 20 and set(good["model_name"]) == {"tiny"}
    for row in good.to_dict("records"):
        expected = probabilities_of(row["path"], model)
        assert [row[name] for name in columns[3:]] == pytest.approx(expected, abs=1e-5)
        assert row["label"] == CLASS_NAMES[expected.index(max(expected))]
        assert row["probability"] == pytest.approx(max(expected), abs=1e-5)
    assert (result["num_images"], result["num_errors"]) == (23, 3)
    assert sum(result["labels"].values()) == 20


def test_a_killed_prediction_goes_on_without_losing_or_repeating_a_row(
    cluster: dict[str, str], photos: Path, model: Path, tmp_path: Path
) -> None:
    source, output = tmp_path / "many", tmp_path / "out.parquet"
    source.mkdir()
    for number, face in zip(range(NUM_LINKS), itertools.cycle(photos.glob("*.jpg"))):
        if face.exists():
            os.link(face, source / f"{number}.jpg")
    flags = [str(source), "--model-uri", str(model), "--output", str(output)]

    commands.count("jobs.predict")
    first = subprocess.Popen([sys.executable, "-m", "jobs.predict", *flags], cwd=ROOT, env=cluster)
    wait_for_a_part(output, first)
    first.kill()
    first.wait()
    assert not output.exists()
    other = write_classifier(tmp_path / "other.onnx", seed=1)
    settings = PredictSettings(source=str(source), model_uri=str(model), output=output)
    with pytest.raises(OutputError, match="was started with model_name tiny; got other"):
        predict_files(settings.model_copy(update={"model_uri": str(other)}))
    done = run_here("jobs.predict", *flags, env=cluster)

    assert 0 < done.result["num_done_before"] < len(list(source.iterdir()))
    paths = pd.read_parquet(output)["path"]
    assert sorted(paths) == sorted(str(path) for path in source.iterdir())
    with pytest.raises(OutputError, match="output must not exist yet"):
        predict_files(settings)


def wait_for_a_part(output: Path, process: subprocess.Popen[bytes]) -> None:
    parts = output.with_name(f"{output.name}.parts")
    wait_until(lambda: list(parts.glob("*.parquet")) or process.poll() is not None, every_s=0.01)
    assert process.poll() is None
