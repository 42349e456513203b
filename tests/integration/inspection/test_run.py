"""A data set is reported on before anything is trained on it."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mask_ray.config import InspectSettings
from mask_ray.images import synthetic
from mask_ray.inspection.run import inspect_data
from tests.support import image_files


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty drawn faces; of them twelve copies, a turned one, one under both labels; three bad
    files.
    """
    root = tmp_path_factory.mktemp("photos")
    for index in range(20):
        encoded, class_name = synthetic.encode(index, image_size=96)
        path = root / class_name / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded)
    with_mask, without = root / "with_mask", root / "without_mask"
    for number in range(12):
        shutil.copy(with_mask / "0.jpg", with_mask / f"copy_{number}.jpg")
    Image.open(with_mask / "6.jpg").rotate(15).save(with_mask / "turned.png")
    shutil.copy(without / "1.jpg", with_mask / "wrong.jpg")
    (with_mask / "notes.jpg").write_bytes(image_files.text())
    (with_mask / "cut.jpg").write_bytes(image_files.truncated_jpeg())
    (without / "empty.jpg").touch()
    return root


@pytest.mark.usefixtures("ray_local")
def test_tells_what_a_folder_holds(photos: Path, tmp_path: Path) -> None:
    figures = inspect_data(InspectSettings(data=str(photos), output=tmp_path / "report"))
    assert figures["num_images"] == 34
    assert figures["classes"] == {"with_mask": 24, "without_mask": 10}
    assert figures["formats"]["PNG"] == {"with_mask": 1, "without_mask": 0}
    assert figures["sizes"] == {"64 to 127 px": figures["classes"]}
    assert figures["num_unreadable"] == 3
    assert figures["unreadable"]["image is empty"] == 1
    assert figures["num_exact_copies"] == 13
    assert figures["num_near_groups"] == 3
    assert figures["num_groups_under_two_labels"] == 1
    assert figures["num_files_under_two_labels"] == 1
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    copied = max(report["largest_groups"], key=lambda group: group["num_files"])
    assert (copied["num_files"], len(copied["files"])) == (13, 8)
    (conflict,) = report["conflicts"]
    assert {Path(file["path"]).name for file in conflict["files"]} == {"1.jpg", "wrong.jpg"}
    page = (tmp_path / "report" / "report.html").read_text()
    assert "turned.png" in page
    assert "http" not in page.replace("http-equiv", "")
