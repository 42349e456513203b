"""What the page's cards show, and how a person gets around them."""

from pathlib import Path

import pytest

from tests.support.browser_page import Page
from tests.support.image_files import jpeg
from tests.support.polling import wait_until
from tests.support.prediction_server import PredictionServer, prediction, problem


def test_a_photo_becomes_a_card(page: Page, server: PredictionServer, photos: list[Path]) -> None:
    page.choose(photos[0])

    (card,) = page.wait_for_states("done")

    assert (card.name, card.text) == ("face 0.jpg", "with mask")
    assert card.classes == {"with mask": "99.4 %", "without mask": "0.6 %"}
    time_taken, model = card.meta.split(" · ")
    assert time_taken.endswith(" ms")
    assert model == "mask-detector, version\N{NO-BREAK SPACE}3"
    assert page.announced == ["face 0.jpg: with mask, 99.4 %"]
    assert server.bodies == [photos[0].read_bytes()], "sent as it is"
    assert server.received[0].headers["content-type"] == "image/jpeg"


def test_a_bar_is_as_long_as_its_probability(
    page: Page, server: PredictionServer, photos: list[Path]
) -> None:
    server.default = lambda: prediction(probabilities={"with_mask": 0.75, "without_mask": 0.25})
    page.choose(photos[0])
    page.wait_for_states("done")

    shares = page.driver.execute_script(
        "return [...document.querySelectorAll('.class')].map((row) => "
        "parseFloat(getComputedStyle(row, '::after').width) / row.clientWidth)"
    )

    assert shares == pytest.approx([0.75, 0.25], abs=0.01)


def test_several_photos_keep_their_order_and_a_bad_one_fails_alone(
    page: Page, server: PredictionServer, photos: list[Path]
) -> None:
    server.answers[photos[1].read_bytes()] = [problem(400, "image is truncated")]

    page.choose(*photos)

    cards = page.wait_for_states("done", "failed", "done", "done", "done")
    assert [card.name for card in cards] == [photo.name for photo in photos]
    assert cards[1].text == "image is truncated"
    assert page.summary == "5 photos · 4 classified · 1 failed"
    assert "face 1.jpg failed: image is truncated" in page.announced


def test_an_answer_may_be_uncertain_and_without_version(
    page: Page, server: PredictionServer, photos: list[Path]
) -> None:
    server.default = lambda: prediction(
        label="uncertain", model={"name": "model.onnx", "version": None}
    )
    page.choose(photos[0])

    (card,) = page.wait_for_states("done")

    assert card.text == "uncertain"
    assert card.meta.endswith(" · model.onnx")
    assert page.driver.find_elements("css selector", ".is-label") == []


def test_of_many_classes_the_likeliest_are_shown(
    page: Page, server: PredictionServer, photos: list[Path]
) -> None:
    probabilities = {f"class_{number}": 0.01 * number for number in range(1, 14)}
    server.default = lambda: prediction(label="class_13", probabilities=probabilities)
    page.choose(photos[0])

    (card,) = page.wait_for_states("done")

    assert set(card.classes) == {"class 13", "class 12", "class 11", "class 10", "class 9"}
    assert card.meta.endswith("8 more classes")


def test_the_label_is_shown_once(page: Page, photos: list[Path]) -> None:
    page.choose(photos[0])
    page.wait_for_states("done")

    assert page.find(".card-body").text.count("with mask") == 1


def test_the_first_cards_end_above_the_fold(page: Page, photos: list[Path]) -> None:
    page.choose(*photos[:3])
    page.wait_for_states(*["done"] * 3)

    bottoms, height = page.driver.execute_script(
        "return [[...document.querySelectorAll('.card')].map("
        "(card) => card.getBoundingClientRect().bottom), innerHeight]"
    )
    assert max(bottoms) <= min(height, 720)


def test_a_name_is_text_and_nothing_else(
    page: Page, server: PredictionServer, tmp_path: Path
) -> None:
    name = "<img src=x onerror=alert(1)>.jpg"
    (tmp_path / name).write_bytes(jpeg())
    server.default = lambda: prediction(label="<b>bold</b>", probabilities={"<b>bold</b>": 1})

    page.choose(tmp_path / name)

    (card,) = page.wait_for_states("done")
    assert (card.name, card.text) == (name, "<b>bold</b>")
    assert card.classes == {"<b>bold</b>": "> 99.9 %"}


def test_what_the_browser_cannot_show_still_goes_to_the_server(
    page: Page, server: PredictionServer, tmp_path: Path
) -> None:
    (tmp_path / "phone.heic").write_bytes(b"heic")
    server.default = lambda: problem(415, "HEIC is not supported")

    page.choose(tmp_path / "phone.heic")

    (card,) = page.wait_for_states("failed")
    assert card.text == "HEIC is not supported"
    wait_until(lambda: page.find(".no-preview").is_displayed(), lambda: "the placeholder")


def test_a_card_that_is_removed_while_it_waits_is_forgotten(
    page: Page, server: PredictionServer, photos: list[Path]
) -> None:
    server.held = photos[0].read_bytes().__eq__
    page.choose(*photos[:2])
    page.wait_for_states("sending", "done")

    page.find(".remove").click()

    assert [card.name for card in page.cards] == ["face 1.jpg"]
    assert page.focused == "remove"
    page.choose(photos[2])
    page.wait_for_states("done", "done")


def test_all_can_be_cleared(page: Page, photos: list[Path]) -> None:
    page.choose(*photos)
    page.wait_for_states(*["done"] * 5)

    page.find("#clear").click()

    assert page.cards == []
    assert not page.find("#results").is_displayed()
    assert page.focused == "files"


def test_the_keyboard_reaches_everything_in_order(page: Page, photos: list[Path]) -> None:
    page.choose(photos[0])
    page.wait_for_states("done")
    page.driver.execute_script("document.activeElement.blur()")

    reached = []
    for _ in range(5):
        page.press("\ue004")  # Tab
        reached.append(page.focused)

    assert reached == ["", "files", "open-camera", "clear", "remove"], "the first links to the API"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.driver.execute_script(outline) == "solid", "focus can be seen"
    page.press(" ")
    assert page.cards == []
    assert page.focused == "files"


UNNAMED = """
return [...document.querySelectorAll("button, input, a, img, video, dialog, section, form")]
  .filter((element) => element.checkVisibility() && !(
    element.getAttribute("aria-label") || element.textContent.trim() || element.labels?.length ||
    element.hasAttribute("alt") || element.getAttribute("aria-labelledby")))
  .map((element) => element.outerHTML)
"""


def test_everything_has_a_name_for_a_screen_reader(page: Page, photos: list[Path]) -> None:
    page.choose(*photos[:2])
    page.wait_for_states("done", "done")
    assert page.driver.execute_script(UNNAMED) == []
    assert [
        button.accessible_name for button in page.driver.find_elements("css selector", ".remove")
    ] == [
        "Remove face 0.jpg",
        "Remove face 1.jpg",
    ]
    assert page.find("#files").accessible_name == "Choose photos"
    assert page.find("#announcements").aria_role == "log"
