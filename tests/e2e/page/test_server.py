"""What the page asks of a server, and what it makes of each kind of answer."""

from pathlib import Path

import pytest

from mask_ray.serving.http.app import http_app
from tests.support.browser_page import Page, check_classifies
from tests.support.local_backend import LocalBackend
from tests.support.onnx_files import write_classifier
from tests.support.polling import wait_until
from tests.support.prediction_server import (
    PREDICTION,
    PredictionServer,
    busy,
    prediction,
    problem,
    running,
)


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
