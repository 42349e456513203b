"""Requests a second of this project and of other ways to serve the same model on the same cores.

Each server is started in turn, asked about a few photos to see that its answers are right, warmed
up, and put under load from wrk, which takes its share of the same cores from all of them alike.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import httpx
from pydantic import Field, model_validator

from benchmarks.serving import load, served_models, servers
from benchmarks.serving.load import Load
from benchmarks.serving.servers import Models, Server
from benchmarks.support import machine, script, table, weights
from mask_ray.config import ImageLimits, MaskRayError, Settings, TrainSettings, home
from mask_ray.images.decode import decode_resized
from mask_ray.models.predictor import Predictor

_PACKAGES = ("ray", "fastapi", "uvicorn", "onnxruntime", "pillow", "keras", "tensorflow")
_NAMES = ("mask_ray", "fastapi", "litserve", "bentoml", "keras")
_CONNECTIONS = (1, 8, 32)
_IMAGE_SIZE = 224
_DEFAULT_IMAGE_SIZE = TrainSettings(data="synthetic").image_size

_NUM_CHECKED = 16
_NUM_CALIBRATED = 256
# Pillow decodes to a smaller picture where a JPEG allows it, in this project only.
_TOLERANCE = 0.1


class ServingSettings(Settings):
    """Measure each server at 1, 8 and 32 connections."""

    data: Path = Field(
        Path("../shared/data/observations"),
        description="Folder with one sub-folder of photos per class.",
    )
    backbone_weights: Path = Field(weights.WEIGHTS, description=f"{weights.DESCRIPTION}.")
    servers: str = Field(",".join(_NAMES), description=f"Some of {', '.join(_NAMES)}.")
    num_photos: int = Field(500, ge=1, description="Different photos that are sent.")
    seconds: int = Field(20, ge=1, description="Of load at each number of connections.")
    warm_up_s: int = Field(5, ge=1, description="Of load before that.")
    peers: Path | None = Field(
        None,
        description="Virtual environment of LitServe and BentoML, made when missing (default: "
        "serving_peers in MASK_RAY_HOME).",
    )

    @property
    def names(self) -> list[str]:
        """Of the servers."""
        return self.servers.split(",")

    @model_validator(mode="after")
    def _servers_exist(self) -> Self:
        if unknown := set(self.names) - set(_NAMES):
            raise ValueError(
                f"servers must be some of {', '.join(_NAMES)}; got {', '.join(sorted(unknown))}"
            )
        return self


def _run(settings: ServingSettings) -> None:
    print(machine.describe(*_PACKAGES), flush=True)
    load.check_wrk()
    photos = load.photos(settings.data, settings.num_photos)
    chosen = _servers(settings)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        at_224 = {
            name: _measure(settings, server, _IMAGE_SIZE, photos, Path(folder, name))
            for name, server in chosen.items()
        }
        print("\n" + _table(f"The same model for all, {_IMAGE_SIZE} px", chosen, at_224))
        if {"mask_ray", "fastapi"} <= set(chosen):
            own = {
                kind: _measure(
                    settings, chosen["mask_ray"], _DEFAULT_IMAGE_SIZE, photos, Path(folder, kind)
                )
                for kind in ("int8", "float32")
            }
            print("\n" + _default_table(own, at_224["fastapi"]))


def _servers(settings: ServingSettings) -> dict[str, Server]:
    python = sys.executable
    if {"litserve", "bentoml"} & set(settings.names):
        python = servers.peers_environment(settings.peers or home() / "serving_peers")
    known = servers.all_servers(python)
    return {name: known[name] for name in settings.names}


def _measure(
    settings: ServingSettings, server: Server, image_size: int, photos: list[Path], folder: Path
) -> dict[int, Load]:
    """Load by number of connections."""
    folder.mkdir()
    models = write_models(settings, image_size, folder)
    if folder.name == "int8":
        int8 = served_models.write_int8(folder / "int8.onnx", models.onnx, photos[:_NUM_CALIBRATED])
        models = replace(models, onnx=int8)
    bodies = load.write_bodies(photos, server.form, folder / "bodies")
    measured = {}
    with server.run(models) as url:
        _check_answers(url, server, photos, models)
        for num_connections, seconds in _plan(settings):
            measured[num_connections] = load.drive(
                url, bodies, server.form, num_connections=num_connections, seconds=seconds
            )
    rates = ", ".join(f"{measured[n].per_second:.1f}" for n in _CONNECTIONS)
    print(f"{server.name}, {image_size} px: {rates} requests/s", flush=True)
    return measured


def _plan(settings: ServingSettings) -> Iterator[tuple[int, int]]:
    """The warm-up is measured too, and forgotten."""
    yield _CONNECTIONS[-1], settings.warm_up_s
    for num_connections in _CONNECTIONS:
        yield num_connections, settings.seconds


def write_models(settings: ServingSettings, image_size: int, folder: Path) -> Models:
    """The ONNX file, and for keras.predict the Keras file too."""
    onnx, keras = folder / "model.onnx", folder / "model.keras"
    backbone_weights = str(settings.backbone_weights.resolve())
    served_models.write_onnx(onnx, backbone_weights, image_size)
    if folder.name == "keras":
        command = [sys.executable, "-m", "benchmarks.serving.served_models"]
        command += [str(keras), backbone_weights, str(image_size)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise MaskRayError(f"the Keras model was not written: {done.stderr[-2000:]}")
    return Models(onnx, keras, served_models.CLASS_NAMES, folder)


def _check_answers(url: str, server: Server, photos: list[Path], models: Models) -> None:
    """Check that a server answers as the model does: a fast wrong answer does not count.

    Raises:
        MaskRayError: an answer is not that of the model.
    """
    predictor = Predictor(models.onnx, os.cpu_count() or 1)
    for path in photos[:_NUM_CHECKED]:
        encoded = path.read_bytes()
        response = httpx.post(
            url,
            content=server.form.wrap(encoded),
            headers={"Content-Type": server.form.content_type},
            timeout=60,
        )
        image = decode_resized(encoded, predictor.image_size, ImageLimits())
        expected = predictor.predict(image[None])[0][0]
        came = response.json() if response.status_code == 200 else {}
        answer = came[0] if isinstance(came, list) else came
        first = answer.get("probabilities", {}).get(predictor.class_names[0])
        if first is None or abs(first - expected) > _TOLERANCE:
            raise MaskRayError(
                f"{server.name} must answer {path} with {expected:.3f}; got {response.text[:500]}"
            )


_HEADER = ("server", "connections", "requests/s", "p50 ms", "p99 ms", "errors", "to bare FastAPI")


def _table(title: str, chosen: dict[str, Server], measured: dict[str, dict[int, Load]]) -> str:
    base = measured.get("fastapi")
    rows = [
        _row(f"{chosen[name].name} ({chosen[name].form.name})", n, loads[n], base)
        for n in _CONNECTIONS
        for name, loads in measured.items()
    ]
    return f"{title}\n\n{table.render(_HEADER, rows)}"


def _default_table(own: dict[str, dict[int, Load]], base: dict[int, Load]) -> str:
    rows = [
        row
        for n in _CONNECTIONS
        for row in (
            *(
                _row(f"this project, {_DEFAULT_IMAGE_SIZE} px, {kind}", n, loads[n], base)
                for kind, loads in own.items()
            ),
            _row(f"bare FastAPI, {_IMAGE_SIZE} px", n, base[n], base),
        )
    ]
    title = "The model as this project trains it by default, and in float32"
    return f"{title}\n\n{table.render(_HEADER, rows)}"


def _row(
    name: str, num_connections: int, measured: Load, base: dict[int, Load] | None
) -> list[str]:
    return [
        name,
        str(num_connections),
        f"{measured.per_second:.1f}",
        f"{measured.p50_ms:.1f}",
        f"{measured.p99_ms:.1f}",
        str(measured.num_errors),
        f"{measured.per_second / base[num_connections].per_second:.2f}" if base else "",
    ]


def main() -> None:
    """Run the benchmark with the flags of the command line."""
    script.main(ServingSettings, _run)
