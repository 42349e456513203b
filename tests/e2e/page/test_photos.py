"""How photos reach the page: files, folders, paste, drop and camera."""

import base64
from pathlib import Path

import pytest

from tests.support.browser_page import Page
from tests.support.polling import wait_until
from tests.support.prediction_server import PredictionServer


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_photo_can_be_pasted_and_dropped(
    page: Page, server: PredictionServer, photos: list[Path], kind: str
) -> None:
    encoded = photos[0].read_bytes()

    page.send(kind, "image.png", "image/png", base64.b64encode(encoded).decode())

    (card,) = page.wait_for_states("done")
    assert card.name == "image.png"
    assert server.bodies == [encoded]
    assert server.received[0].headers["content-type"] == "image/png"


def test_a_folder_stands_for_the_images_below_it(
    page: Page, server: PredictionServer, photos: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "notes.txt").write_text("no photo")
    photos[0].rename(folder / "a.jpg")
    photos[1].rename(folder / "below" / "b.jpg")

    page.drag("dragEnter", "dragOver", paths=[folder, photos[2]])
    assert page.find("body").get_attribute("class") == "is-dropping"
    page.drag("drop", paths=[folder, photos[2]])

    cards = page.wait_for_states("done", "done", "done")
    assert [card.name for card in cards] == ["a.jpg", "b.jpg", "face 2.jpg"]
    assert page.find("body").get_attribute("class") == ""


@pytest.mark.parametrize(("kind", "told"), [("paste", "no picture"), ("drop", "no photo")])
def test_what_holds_no_photo_is_told(page: Page, kind: str, told: str) -> None:
    page.send(kind)
    wait_until(lambda: told in page.find("#notice").text, lambda: told)


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_file_that_is_no_photo_is_named_and_not_sent(
    page: Page, server: PredictionServer, kind: str
) -> None:
    page.send(kind, "table.csv", "text/csv", base64.b64encode(b"a,b").decode())

    wait_until(
        lambda: "table.csv is not a photo. Photos are JPEG" in page.find("#notice").text,
        lambda: page.find("#notice").text,
    )
    assert (page.cards, server.received) == ([], [])


def test_other_files_do_not_keep_photos_back(
    page: Page, server: PredictionServer, photos: list[Path], tmp_path: Path
) -> None:
    others = [tmp_path / f"{number}.pdf" for number in range(5)]
    for other in others:
        other.write_bytes(b"%PDF-1.7")

    page.choose(*others, photos[0])

    (card,) = page.wait_for_states("done")
    assert card.name == photos[0].name
    assert "0.pdf, 1.pdf, 2.pdf and 2 more are not photos." in page.find("#notice").text
    assert server.bodies == [photos[0].read_bytes()]


def test_the_camera_takes_a_photo(page: Page, server: PredictionServer) -> None:
    page.find("#open-camera").click()
    wait_until(lambda: page.find("#take-photo").is_enabled(), lambda: "the camera")
    page.find("#take-photo").click()

    (card,) = page.wait_for_states("done")

    assert card.name.startswith("camera-")
    assert server.bodies[0].startswith(b"\xff\xd8\xff"), "a JPEG"
    assert not page.find("#camera").is_displayed()
    assert page.focused == "open-camera"
    assert page.driver.execute_script("return document.querySelector('video').srcObject") is None


def test_a_camera_that_is_refused_is_told(page: Page) -> None:
    page.driver.execute_script(
        "navigator.mediaDevices.getUserMedia = async () => {"
        " throw new DOMException('no', 'NotAllowedError') }"
    )
    page.find("#open-camera").click()

    wait_until(lambda: "is not allowed" in page.find("#notice").text, lambda: "the notice")
    assert not page.find("#camera").is_displayed()


def test_escape_closes_the_camera(page: Page) -> None:
    page.find("#open-camera").send_keys("\ue007")
    wait_until(lambda: page.focused == "take-photo", lambda: "the camera")

    page.press("\ue00c")

    wait_until(lambda: not page.find("#camera").is_displayed(), lambda: "the dialog's end")
    assert page.focused == "open-camera"
