"""The page in headless Chromium, before a server that answers as the test wants it."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from mask_ray.serving.http.app import http_app
from tests.support.browser_page import Page, check_classifies, chromium
from tests.support.image_files import jpeg, picture
from tests.support.local_backend import LocalBackend
from tests.support.onnx_files import write_classifier
from tests.support.polling import wait_until
from tests.support.prediction_server import (
    PREDICTION,
    PredictionServer,
    busy,
    prediction,
    prediction_server,
    problem,
    running,
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture
def server() -> Iterator[PredictionServer]:
    with prediction_server() as stub:
        yield stub


@pytest.fixture
def page(browser: Page, server: PredictionServer) -> Iterator[Page]:
    browser.open(server.url)
    yield browser
    assert browser.complaints == [], "no test may break the page's own policy, or its scripts"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"face {number}.jpg" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(jpeg(picture(seed=number)))
    return paths


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


def test_a_few_photos_are_sent_at_a_time(
    page: Page, server: PredictionServer, photos: list[Path]
) -> None:
    server.held = lambda body: True
    page.choose(*photos)
    page.wait_for_states("sending", "sending", "sending", "waiting", "waiting")
    wait_until(lambda: len(server.received) == 3, lambda: "three requests")

    server.released.set()

    page.wait_for_states(*["done"] * 5)
    assert server.most_at_once == 3


def test_whatever_answers_classifies(
    page: Page, server: PredictionServer, photos: list[Path]
) -> None:
    server.answers[b"not a photo"] = [problem(400, "not an image")]
    check_classifies(page, server.url, photos, {"with_mask", "without_mask"})


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


def test_browsers_without_recent_signals_classify(
    browser: Page, server: PredictionServer, photos: list[Path]
) -> None:
    script = "delete AbortSignal.any; delete AbortSignal.timeout;"
    command = "Page.addScriptToEvaluateOnNewDocument"
    added = browser.driver.execute_cdp_cmd(command, {"source": script})
    try:
        browser.open(server.url)
        browser.choose(photos[0])
        browser.wait_for_states("done")
    finally:
        browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


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


class TestToken:
    """A guarded server's."""

    @pytest.fixture(autouse=True)
    def _guarded(self, server: PredictionServer) -> None:
        server.token = "secret"

    def give(self, page: Page, token: str) -> None:
        wait_until(lambda: page.focused == "token", lambda: "the token's field")
        page.press(token, "\ue007")  # Enter

    def test_is_asked_for_once_and_nothing_is_lost(
        self, page: Page, server: PredictionServer, photos: list[Path]
    ) -> None:
        page.choose(*photos)
        self.give(page, "secret")

        page.wait_for_states(*["done"] * 5)

        assert not page.find("#token-form").is_displayed()
        page.choose(photos[0])
        page.wait_for_states(*["done"] * 6)
        assert server.received[-1].headers["authorization"] == "Bearer secret"

    def test_that_is_wrong_is_asked_for_again(self, page: Page, photos: list[Path]) -> None:
        page.choose(photos[0])
        self.give(page, "wrong")
        wait_until(lambda: "rejected" in page.find("#token-hint").text, lambda: "the refusal")
        self.give(page, "secret")

        page.wait_for_states("done")

    def test_stays_in_the_tab_alone(self, page: Page, photos: list[Path]) -> None:
        page.choose(photos[0])
        self.give(page, "secret")
        page.wait_for_states("done")

        kept = "return [Object.values(sessionStorage), localStorage.length, document.cookie]"
        assert page.driver.execute_script(kept) == [["secret"], 0, ""]
        assert "secret" not in page.driver.current_url
        page.driver.refresh()
        page.choose(photos[0])
        page.wait_for_states("done")

    def test_that_no_header_can_carry_is_not_sent(self, page: Page, photos: list[Path]) -> None:
        page.choose(photos[0])
        self.give(page, "zwölf")
        wait_until(lambda: "letters" in page.find("#token-hint").text, lambda: "the hint")


def test_a_busy_server_is_asked_again_when_it_said(
    page: Page, server: PredictionServer, photos: list[Path]
) -> None:
    server.answers[photos[0].read_bytes()] = [busy("1"), prediction()]

    page.choose(photos[0])
    wait_until(
        lambda: page.cards and "Trying again in 1 s" in page.cards[0].text, lambda: "the wait"
    )

    page.wait_for_states("done")
    first, second = server.received
    assert second.at_s - first.at_s >= 1


def test_a_server_that_stays_busy_is_given_up_and_can_be_asked_by_hand(
    page: Page, server: PredictionServer, photos: list[Path]
) -> None:
    server.answers[photos[0].read_bytes()] = [*[busy("0")] * 6, prediction()]
    page.choose(photos[0])
    (card,) = page.wait_for_states("failed")
    assert card.text == "All replicas are busy."

    page.find(".retry").click()

    page.wait_for_states("done")
    assert len(server.received) == 7


@pytest.mark.parametrize("wait", ["61", "Wed, 01 Jan 2200 00:00:00 GMT"])
def test_nobody_waits_longer_than_a_minute(
    page: Page, server: PredictionServer, photos: list[Path], wait: str
) -> None:
    server.default = lambda: busy(wait)
    page.choose(photos[0])
    page.wait_for_states("failed")
    assert len(server.received) == 1


def test_an_answer_that_is_no_prediction_fails(
    page: Page, server: PredictionServer, photos: list[Path]
) -> None:
    server.default = lambda: prediction(label=None)
    page.choose(photos[0])
    (card,) = page.wait_for_states("failed")
    assert card.text == "The server's answer is not a prediction."


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


def test_escape_closes_the_camera(page: Page) -> None:
    page.find("#open-camera").send_keys("\ue007")
    wait_until(lambda: page.focused == "take-photo", lambda: "the camera")

    page.press("\ue00c")

    wait_until(lambda: not page.find("#camera").is_displayed(), lambda: "the dialog's end")
    assert page.focused == "open-camera"


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


def test_the_stub_speaks_the_contract_of_serving() -> None:
    from mask_ray.serving.http.responses import Prediction

    assert Prediction.model_validate(PREDICTION).model_dump() == PREDICTION


def test_a_real_endpoint_answers_once_it_has_the_token(
    browser: Page, photos: list[Path], tmp_path: Path
) -> None:
    token_file = tmp_path / "tokens"
    token = "secret-of-22-characters"
    token_file.write_text(token)
    path = write_classifier(tmp_path / "tiny.onnx")

    with running(http_app(LocalBackend(path, token_file=token_file))) as url:
        browser.open(url)
        browser.choose(photos[0])
        wait_until(lambda: browser.focused == "token", lambda: "the token's field")
        browser.press(token, "\ue007")  # Enter
        (card,) = browser.wait_for_states("done")

    assert card.meta.endswith(" · tiny")
    assert browser.complaints == []
