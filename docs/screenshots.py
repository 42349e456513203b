"""Make the pictures of the page and of both reports in docs/images, from drawn faces.

    python docs/screenshots.py [--faces 2000] [--epochs 14] [--backbone-weights FILE]

Trains a small model on a Ray of its own, inspects the images, evaluates and serves the model, and
takes pictures with headless Chromium (apt-get install chromium chromium-driver). Everything but the
pictures is kept in a temporary folder. Took 20 minutes on two busy cores. With ImageNet weights of
MobileNetV2 at hand, fewer faces do, and the last layer alone is trained, in seconds.
"""

import argparse
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mask_ray import processes  # noqa: E402
from mask_ray.images import synthetic  # noqa: E402

PICTURES = ROOT / "docs/images"
MAX_BYTES = 200_000
_WIDTH_PX = 1100
_BIN = Path(sys.executable).parent
_BROWSER_ARGUMENTS = (
    "--headless",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Its sandbox does not start as root, and the pages are our own.
    "--no-sandbox",
    "--disable-dev-shm-usage",
)


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=2000, help="faces to draw and train on")
    parser.add_argument("--epochs", type=int, default=14, help="epochs of training")
    parser.add_argument("--backbone-weights", default="none", help="path of ImageNet weights")
    arguments = parser.parse_args()
    _find_browser()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as started:
        work = Path(folder)
        environment = _start_ray(work, started)
        source = f"synthetic:{arguments.faces}"
        _train(source, arguments.epochs, arguments.backbone_weights, environment)
        reports = _make_reports(source, work, environment)
        url = _serve(work, environment, started)
        with _browser(work) as browser:
            _picture(browser, reports["inspection"], "inspection.png", height_px=1150)
            _picture(browser, reports["evaluation"], "evaluation.png", height_px=1250)
            _picture_page(browser, url, _photos(work, first=arguments.faces))


def _start_ray(work: Path, started: ExitStack) -> dict[str, str]:
    """Start a Ray beside any other on this machine; return the environment of its clients."""
    port = _free_port()
    environment = os.environ | {
        "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MASK_RAY_HOME": str(work / "home"),
        "MLFLOW_TRACKING_URI": "",
        "RAY_AUTH_MODE": "token",
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_ADDRESS": f"127.0.0.1:{port}",
    }
    subprocess.run(["ray", "get-auth-token", "--generate"], env=environment, capture_output=True)
    command = ["ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-port={_free_port()}", "--object-store-memory=1000000000"]

    def is_ready() -> bool:
        status = subprocess.run(["ray", "status"], env=environment, capture_output=True)
        return status.returncode == 0

    _start("ray", command, environment, work, started, is_ready)
    return environment


def _train(source: str, epochs: int, weights: str, environment: dict[str, str]) -> None:
    flags = ["--backbone-weights", weights, "--image-size", "96", "--batch-size", "32"]
    if weights == "none":
        # A network that two cores can train from nothing in minutes.
        flags += ["--alpha", "0.35", "--learning-rate", "0.004", "--finetune-epochs", str(epochs)]
    else:
        flags += ["--finetune-epochs", "0"]
    # The page is served whatever the number of epochs.
    flags += ["--min-recall", "0"]
    flags += ["--no-data-report", "--no-system-metrics", "--robustness-images", "0"]
    _job("jobs.train", environment, "--data", source, *flags)


def _make_reports(source: str, work: Path, environment: dict[str, str]) -> dict[str, Path]:
    inspection, evaluation = work / "inspection", work / "evaluation"
    _job("jobs.inspect_data", environment, "--data", source, "--output", str(inspection))
    _job("jobs.evaluate", environment, "--data", source, "--output", str(evaluation))
    return {
        "inspection": inspection / "report.html",
        "evaluation": evaluation / "evaluation.html",
    }


def _job(module: str, environment: dict[str, str], *flags: str) -> None:
    print(f"python -m {module} {' '.join(flags)}", flush=True)
    subprocess.run([sys.executable, "-m", module, *flags], env=environment, cwd=ROOT, check=True)


def _serve(work: Path, environment: dict[str, str], started: ExitStack) -> str:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    port = config["http_options"]["port"] = _free_port()
    copy = work / "serve_config.yaml"
    copy.write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    _start("serve", ["serve", "run", str(copy)], environment, work, started, is_ready)
    return url


def _start(
    name: str,
    command: list[str],
    environment: dict[str, str],
    work: Path,
    started: ExitStack,
    is_ready: Any,
) -> None:
    server = processes.start(
        command,
        environment,
        work / f"{name}.log",
        name=name,
        is_ready=is_ready,
        start_timeout_s=180,
        cwd=ROOT,
    )
    started.callback(processes.stop, server)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _photos(work: Path, first: int) -> list[Path]:
    """Faces that training has not seen."""
    paths = []
    for index in range(first, first + 6):
        paths.append(work / f"face {index - first + 1}.jpg")
        paths[-1].write_bytes(synthetic.encode(index, image_size=320)[0])
    return paths


def _find_browser() -> tuple[str, str]:
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        sys.exit("error: needs Chromium and ChromeDriver: apt-get install chromium chromium-driver")
    return binary, driver


@contextmanager
def _browser(work: Path) -> Iterator[Any]:
    from selenium import webdriver

    binary, driver = _find_browser()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (*_BROWSER_ARGUMENTS, f"--user-data-dir={work / 'profile'}"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def _picture_page(browser: Any, url: str, photos: list[Path]) -> None:
    browser.set_window_size(_WIDTH_PX, 1000)
    browser.get(url)
    browser.find_element("css selector", "#files").send_keys("\n".join(map(str, photos)))
    deadline = time.monotonic() + 60
    while len(browser.find_elements("css selector", ".card.is-done")) < len(photos):
        if time.monotonic() > deadline:
            sys.exit("error: the page has not classified the photos within 60 s")
        time.sleep(0.1)
    browser.execute_script("window.scrollTo(0, 0)")
    _save(browser.get_screenshot_as_png(), "page.png")


def _picture(browser: Any, page: Path, name: str, height_px: int) -> None:
    browser.set_window_size(_WIDTH_PX, height_px)
    browser.get(page.as_uri())
    _save(browser.get_screenshot_as_png(), name)


def _save(png: bytes, name: str) -> None:
    """Write a picture with a palette, smaller if it would be too many bytes."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for num_colours in (256, 128, 64, 32):
        reduced = reduce_colours(picture, num_colours)
        encoded = io.BytesIO()
        reduced.save(encoded, "PNG", optimize=True)
        if len(encoded.getvalue()) <= MAX_BYTES:
            break
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / name).write_bytes(encoded.getvalue())
    print(f"wrote docs/images/{name}: {len(encoded.getvalue()):,} bytes", flush=True)


def reduce_colours(picture: Image.Image, num_colours: int) -> Image.Image:
    """Give an RGB picture a palette.

    A quarter of it are the most frequent colours as they are, or those of a page would be mixed
    with the many of its photos.
    """
    counts = picture.getcolors(picture.width * picture.height)
    frequent = [colour for _, colour in sorted(counts, reverse=True)[: num_colours // 4]]
    others = picture.quantize(num_colours - len(frequent)).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(value for colour in frequent for value in colour), *others])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
