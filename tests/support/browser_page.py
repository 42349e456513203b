"""The page in headless Chromium, driven as a person would: what is on its cards, and its keys."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.support.polling import wait_until

T = TypeVar("T")

ARGUMENTS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Chromium otherwise calls home at every start.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Its sandbox does not start as root, and the pages are our own.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    # A drawn picture instead of a camera, and nobody asked for permission.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--window-size=1200,1000",
)

# A real `DataTransfer`, which a script may fill and only a person may send.
SEND_FILE = """
const [kind, name, type, base64] = arguments;
const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
const data = new DataTransfer();
if (name) data.items.add(new File([bytes], name, { type }));
const options = { bubbles: true, cancelable: true };
document.body.dispatchEvent(kind === "paste"
  ? new ClipboardEvent("paste", { ...options, clipboardData: data })
  : new DragEvent(kind, { ...options, dataTransfer: data }));
"""


@dataclass(frozen=True)
class Card:
    """What a person reads on one."""

    name: str
    state: str
    text: str
    classes: dict[str, str]
    meta: str


READ_CARDS = """
return [...document.querySelectorAll(".card")].map((card) => ({
  name: card.querySelector("h3").textContent,
  state: card.className.replace("card is-", ""),
  text: card.querySelector(".state").textContent
    || card.querySelector(".class.is-label dt")?.textContent || "",
  classes: Object.fromEntries([...card.querySelectorAll(".class")].map((row) => [
    row.querySelector("dt").textContent, row.querySelector("dd").textContent])),
  meta: card.querySelector(".meta").textContent,
}));
"""


class Page:
    """The page at a base URL."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Load it in a tab that knows no token."""
        self.driver.get(url)
        self.driver.execute_script("sessionStorage.clear()")
        self.driver.refresh()
        self.driver.get_log("browser")  # which also empties it

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def choose(self, *paths: Path) -> None:
        self.find("#files").send_keys("\n".join(map(str, paths)))

    def send(self, kind: str, name: str = "", content_type: str = "", base64: str = "") -> None:
        """Let a `paste` or `drop` happen, with one file or none."""
        self.driver.execute_script(SEND_FILE, kind, name, content_type, base64)

    def drag(self, *events: str, paths: Sequence[Path] = ()) -> None:
        """Move files or folders over the page as a file manager does: dragEnter, drop ..."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for event in events:
            drag = {"type": event, "x": 300, "y": 200, "data": data}
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", drag)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def cards(self) -> list[Card]:
        return [Card(**card) for card in self.driver.execute_script(READ_CARDS)]

    @property
    def summary(self) -> str:
        return self.find("#summary").text

    @property
    def focused(self) -> str:
        """Id of the element that has the focus, or else its class."""
        return self.driver.execute_script(
            "return document.activeElement.id || document.activeElement.className"
        )

    @property
    def announced(self) -> list[str]:
        """What a screen reader says."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll('#announcements p')].map((p) => p.textContent)"
        )

    @property
    def complaints(self) -> list[str]:
        """The console's errors since they were last read, without those of failed requests."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if "the server responded with a status" not in entry["message"]
        ]

    def wait_for_states(self, *states: str) -> list[Card]:
        """The cards, once they are all in these states."""

        def reached() -> list[Card]:
            cards = self.cards
            return cards if [card.state for card in cards] == list(states) else []

        return wait_until(reached, lambda: f"{states}; cards are {self.cards}")


def check_classifies(page: Page, base_url: str, photos: list[Path], class_names: set[str]) -> None:
    """What holds before any server that can classify: a card for each photo, and one that fails."""
    page.open(base_url)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.jpg")
        text.write_text("not a photo")
        page.choose(*photos, text)
        *done, failed = page.wait_for_states(*["done"] * len(photos), "failed")
    assert [card.name for card in done] == [photo.name for photo in photos]
    for card in done:
        assert set(card.classes) == {name.replace("_", " ") for name in class_names}
        assert card.text in card.classes
        assert card.meta.partition(" · ")[0].endswith("s")
    assert failed.text
    assert page.summary == f"{len(photos) + 1} photos · {len(photos)} classified · 1 failed"
    assert page.complaints == []


@contextmanager
def chromium(*arguments: str) -> Iterator[Page]:
    """A browser with a profile of its own; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs Chromium and ChromeDriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}", *arguments):
            options.add_argument(argument)
        browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            yield Page(browser)
        finally:
            browser.quit()
