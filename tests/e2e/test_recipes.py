"""The recipes that ask the service, of README and guides, run as written, on another port."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mask_ray.serving.http.app import http_app
from mask_ray.serving.http.auth import TOKENS_VARIABLE
from tests.support import image_files
from tests.support.local_backend import LocalBackend
from tests.support.onnx_files import write_classifier
from tests.support.prediction_server import running
from tests.support.project import ROOT

URL = "http://127.0.0.1:8000"
TOKEN = "s3cret-of-22-characters"

PAGES = [
    ROOT / "README.md",
    ROOT / "docs/quickstart.md",
    *sorted((ROOT / "docs/guides").glob("*.md")),
]


def blocks(page: Path, language: str) -> list[str]:
    """The code in fences of a language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return fence.findall(page.read_text())


def commands(page: Path) -> list[str]:
    """Commands that run curl, each with the lines that it continues from or into."""
    lines = re.sub(r"(\||\\)\n", r"\1 ", "\n".join(blocks(page, "bash"))).splitlines()
    joined = [re.sub(r"\\ +", "", line.strip()) for line in lines]
    return [command for command in joined if re.search(r"(^|\| *)curl ", command)]


def answers_shown() -> Iterator[tuple[str, dict[str, Any]]]:
    """The predictions that pages show, by page."""
    for page in PAGES:
        for block in blocks(page, "json"):
            yield page.name, json.loads(block)


RECIPES = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
ANSWERS = list(answers_shown())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("needs curl and bash")
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "face.jpg").write_bytes(image_files.jpeg())
    (folder / "other.png").write_bytes(image_files.png(image_files.picture(seed=1)))
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    backend = LocalBackend(write_classifier(folder / "mask-detector.onnx"))
    with running(http_app(backend)) as url:
        yield url


@pytest.fixture(scope="module")
def guarded_url(folder: Path) -> Iterator[str]:
    backend = LocalBackend(write_classifier(folder / "mask-detector.onnx"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKENS_VARIABLE, TOKEN)
        app = http_app(backend)
    with running(app) as url:
        yield url


def run(recipe: str, folder: Path, url: str) -> Any:
    """What a recipe prints, which has to be JSON. curl fails where the answer is an error."""
    command = recipe.replace(URL, url).replace("curl ", "curl --fail-with-body -sS ", 1)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=os.environ | {"TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def test_there_is_a_recipe_for_each_way_in() -> None:
    kinds = ["Content-Type: image/jpeg", "-F image=", '"image":', "-F images=", '"images":']
    kinds += ["top_k", "/v2/models/mask-detector", '"datatype"', "Authorization: Bearer"]

    for kind in kinds:
        assert any(kind in recipe for recipe in RECIPES), kind
    assert all(URL in recipe for recipe in RECIPES)


def test_the_readme_shows_how_to_ask_and_what_is_answered() -> None:
    assert commands(ROOT / "README.md")
    assert "README.md" in [page for page, _ in ANSWERS]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_works(recipe: str, folder: Path, url: str, guarded_url: str) -> None:
    answer = run(recipe, folder, guarded_url if "Bearer" in recipe else url)

    if "/v2" in recipe:
        assert {tensor["name"] for tensor in answer["outputs"]} == {"label", "probabilities"}
        return
    predictions = answer if "images" in recipe else [answer]
    assert len(predictions) == max(1, recipe.count("-F "))
    for prediction in predictions:
        assert set(prediction) == {"label", "probability", "probabilities", "model"}
        assert len(prediction["probabilities"]) == (1 if "top_k=1" in recipe else 2)
        assert prediction["model"]["name"] == "mask-detector"


@pytest.mark.parametrize(("page", "documented"), ANSWERS)
def test_the_answer_shown_is_of_the_form_that_comes(
    page: str, documented: dict[str, Any], folder: Path, url: str
) -> None:
    answer = run(RECIPES[0], folder, url)

    assert documented.keys() == answer.keys(), page
    for key in ("probabilities", "model"):
        assert documented[key].keys() == answer[key].keys(), page


def test_without_its_token_the_guarded_recipe_fails(folder: Path, guarded_url: str) -> None:
    with pytest.raises(AssertionError, match="A bearer token is needed"):
        run(RECIPES[0], folder, guarded_url)


def test_the_recipe_of_the_client_classifies_files_and_folders(folder: Path, url: str) -> None:
    (recipe,) = re.findall(
        "^python -m mask_ray.client .*", (ROOT / "docs/guides/serve.md").read_text(), re.MULTILINE
    )
    (folder / "photos").mkdir()
    (folder / "photos" / "other.png").write_bytes((folder / "other.png").read_bytes())

    done = subprocess.run(
        ["bash", "-c", f"{recipe.replace('python', sys.executable, 1)} --url {url}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((folder / "answers.csv").open()))
    assert [row["path"] for row in rows] == ["photos/other.png", "face.jpg"]
    assert all(row["label"] and not row["error"] for row in rows)
