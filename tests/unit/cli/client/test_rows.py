"""Which files the client sends, and the rows that it writes."""

import csv
import io
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.client_runs import CLASSIFIED, Run, start
from tests.support.polling import wait_until
from tests.support.prediction_server import PredictionServer, prediction, problem


def test_each_file_has_a_row_with_its_prediction(
    run: Run, files: list[str], server: PredictionServer
) -> None:
    done = run(*files)

    assert done.rows == [{"path": name, **CLASSIFIED} for name in files]
    assert done.code == 0
    assert done.err.startswith("10 files: 10 classified, 0 failed, ")
    assert sorted(server.bodies) == [name.encode() for name in files]


def test_csv_parses_back(
    run: Run, files: list[str], tmp_path: Path, server: PredictionServer
) -> None:
    odd = 'a,b "c"\nd.jpg'
    (tmp_path / odd).write_text("odd")
    server.answers[b"odd"] = [problem(400, 'a, "b"')]

    done = run("--format=csv", files[0], odd)

    good, bad = csv.DictReader(io.StringIO(done.out, newline=""))
    assert list(good) == ["path", *CLASSIFIED]
    assert good["path"] == files[0]
    assert float(good["probability"]) == CLASSIFIED["probability"]
    assert json.loads(good["probabilities"]) == CLASSIFIED["probabilities"]
    assert (good["model"], good["version"], good["error"]) == ("mask-detector", "3", "")
    assert (bad["path"], bad["error"]) == (odd, '400 Bad Request: a, "b"')
    assert bad["label"] == bad["probability"] == bad["probabilities"] == ""


@pytest.mark.parametrize(
    ("output", "begins"), [("x.json", "{"), ("x.jsonl", "{"), ("x.csv", "path,"), ("x", "path,")]
)
def test_the_output_says_its_format(
    run: Run, files: list[str], tmp_path: Path, output: str, begins: str
) -> None:
    done = run("--format=auto", files[0], "--output", output)

    assert (done.code, done.out) == (0, "")
    assert (tmp_path / output).read_text().startswith(begins)


def test_rows_keep_the_order_of_the_files(
    files: list[str], server: PredictionServer, tmp_path: Path
) -> None:
    server.held = b"0.jpg".__eq__
    asked = ("--url", server.url, "--format=json", "--concurrency=2", *files)
    with start(tmp_path, *asked, stdout=subprocess.PIPE) as client:
        wait_until(lambda: len(server.received) == 10)
        server.released.set()
        out, _ = client.communicate(timeout=200)

    assert [json.loads(line)["path"] for line in out.splitlines()] == files
    assert server.most_at_once == 2


def test_a_folder_stands_for_the_images_below_it(run: Run, tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.jpg", ".cache/x.jpg", "sub/c.webp"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "empty").mkdir()

    done = run("photos", "empty", "photos/notes.txt")

    paths = ["photos/a.jpg", "photos/b.PNG", "photos/sub/c.webp", "empty", "photos/notes.txt"]
    assert [row["path"] for row in done.rows] == paths
    assert [row["error"] for row in done.rows if row["error"]] == [
        "folder without images: "
        ".avif, .bmp, .gif, .heic, .heif, .jpeg, .jpg, .png, .tif, .tiff, .webp"
    ]


def test_what_a_folder_holds_beside_images_is_counted_and_named(run: Run, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.HEIC", "notes.txt", "sub/list.csv", "@eaDir/a.jpg", "Thumbs.db"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "photos" / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "photos" / "more").symlink_to(tmp_path)

    done = run("photos")

    assert [row["path"] for row in done.rows] == ["photos/a.jpg", "photos/b.HEIC"]
    assert done.err.splitlines()[:3] == [
        "skipped links that lead nowhere: 1 (gone.jpg)",
        "skipped linked folders: 1 (more); give their own paths to include them",
        "skipped files that are not named as images: 2 (notes.txt, sub/list.csv)",
    ]


def test_a_name_may_be_anything(run: Run, tmp_path: Path) -> None:
    names = ["a,b.jpg", "[c].jpg", '"d".jpg', "é.jpg"]
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_text("x")

    done = run(*names, os.fsdecode(b"\xff.jpg"))

    assert [row["path"] for row in done.rows] == [*names, "\udcff.jpg"]


def test_the_threshold_is_the_servers(run: Run, files: list[str], server: PredictionServer) -> None:
    server.default = lambda: prediction(label="uncertain", model={"name": "x", "version": None})

    (row,) = run("--threshold=0.9", files[0]).rows

    assert (row["label"], row["version"]) == ("uncertain", None)
    assert server.received[0].query == "threshold=0.9"


def test_a_url_may_end_in_the_path(run: Run, files: list[str], server: PredictionServer) -> None:
    assert run(files[0], url=f"{server.url}/predict/").code == 0
