"""What `make demo` does before it starts anything: it opens its data as jobs.train would."""

import shutil
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from mask_ray import demo, processes, ray_internals
from mask_ray.config import DemoSettings, MaskRayError
from mask_ray.data import sources
from mask_ray.images import synthetic


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty drawn faces a class, in folders."""
    root = tmp_path / "photos"
    for index in range(80):
        encoded, class_name = synthetic.encode(index, image_size=48)
        path = root / class_name / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
    return root


def archive(photos: Path) -> str:
    return shutil.make_archive(str(photos), "zip", photos)


def manifest(photos: Path) -> str:
    path = photos.with_suffix(".csv")
    files = sorted(photos.rglob("*.jpg"))
    rows = [f"photos/{file.relative_to(photos)},{file.parent.name}" for file in files]
    path.write_text("\n".join(["path,label", *rows]))
    return str(path)


def mirror(file: Path, copy: Path) -> None:
    ImageOps.mirror(Image.open(file)).save(copy, quality=95)


@pytest.mark.parametrize("source_of", [str, archive, manifest])
def test_a_question_of_each_class_comes_from_the_test_split(
    photos: Path, source_of: Callable[[Path], str]
) -> None:
    images = demo._open(source_of(photos))

    assert images.count == 80
    assert [name.partition("/")[0] for name in images.questions] == ["with_mask", "without_mask"]
    for name, encoded in images.questions.items():
        assert encoded == (photos / name).read_bytes()


def test_given_splits_count(photos: Path) -> None:
    path = Path(manifest(photos))
    header, *rows = path.read_text().splitlines()
    given = [f"{row},{'test' if '/7' in row else 'train'}" for row in rows]
    path.write_text("\n".join([f"{header},split", *given]))

    questions = demo._open(str(path)).questions

    assert [name.rpartition("/")[2][0] for name in questions] == ["7", "7"]


@pytest.mark.parametrize(
    ("copy", "named"),
    [
        (shutil.copy, r"copies of .*(0|copy)\.jpg are given (train and test|test and train)"),
        (mirror, r".*0\.jpg is given train, .*copy\.jpg test"),
    ],
)
def test_files_of_one_picture_in_two_splits_are_named(
    photos: Path, copy: Callable[[Path, Path], object], named: str
) -> None:
    copy(photos / "with_mask" / "0.jpg", photos / "with_mask" / "copy.jpg")
    path = Path(manifest(photos))
    header, *rows = path.read_text().splitlines()
    given = [f"{row},{'test' if 'copy' in row else 'train'}" for row in rows]
    path.write_text("\n".join([f"{header},split", *given]))

    with pytest.raises(MaskRayError, match=f"must be given one split; {named}"):
        demo._open(str(path))


def test_several_sources_are_trained_on_together(photos: Path) -> None:
    zipped = archive(photos)
    images = demo._open(f"{photos}\n{zipped}")

    flags = demo._train_flags(DemoSettings(data=str(photos)), images)

    assert images.count == 160
    assert flags[:4] == ["--data", str(photos), "--data", sources.fetch(zipped)]


def test_a_model_of_few_epochs_is_served_too(photos: Path) -> None:
    images = demo._open(str(photos))
    few = demo._train_flags(DemoSettings(data=str(photos), epochs=1), images)
    assert few[few.index("--min-recall") + 1] == "0"
    assert "--min-recall" not in demo._train_flags(DemoSettings(data=str(photos)), images)


def test_drawn_faces_are_asked_about_that_are_not_trained_on() -> None:
    images = demo._open("synthetic:10")
    assert images.questions == {
        "with_mask": synthetic.encode(10)[0],
        "without_mask": synthetic.encode(11)[0],
    }


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda folder: folder / "nowhere", "a source must be .*; there is nothing at .*/nowhere"),
        (lambda folder: folder, "data must hold at least 2 folders of images"),
    ],
)
def test_a_source_that_cannot_be_trained_on_is_rejected(
    tmp_path: Path, make: Callable[[Path], Path], error: str
) -> None:
    with pytest.raises(MaskRayError, match=error):
        demo._open(str(make(tmp_path)))


def test_a_class_without_a_test_image_is_named(photos: Path) -> None:
    for file in sorted((photos / "without_mask").iterdir())[1:]:
        file.unlink()
    with pytest.raises(MaskRayError, match="without_mask has too few images"):
        demo._open(str(photos))


def test_the_url_of_a_dashboard_is_not_the_ray_of_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, str]] = []
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")

    def succeed(command: list[str], environment: dict[str, str]) -> bool:
        asked.append(environment)
        return True

    monkeypatch.setattr(demo, "_succeeds", succeed)
    monkeypatch.setattr(ray_internals, "last_started_address", lambda: "127.0.0.1:6379")
    monkeypatch.setattr(processes, "answers", lambda address: address == "127.0.0.1:6379")
    monkeypatch.setattr(demo, "_check_nothing_is_served", asked.append)

    environment = demo._ray(DemoSettings(haproxy=False), ExitStack())

    assert "RAY_ADDRESS" not in environment
    assert asked == [environment] * 2
    assert "RAY_ADDRESS is the URL of a dashboard" in capsys.readouterr().out


@pytest.mark.parametrize("address", [None, "nothing", "127.0.0.1:{port}"])
def test_a_ray_that_has_ended_is_not_waited_for(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = address and address.format(port=processes.free_port())
    monkeypatch.setattr(ray_internals, "last_started_address", lambda: last)
    monkeypatch.setattr(demo, "_succeeds", lambda *_: pytest.fail("`ray status` was run"))

    assert not demo._runs({})


def test_a_ray_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_succeeds", lambda command, _: command == ["ray", "status"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert demo._runs({"RAY_ADDRESS": f"127.0.0.1:{server.getsockname()[1]}"})


def test_ports_of_another_ray_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    taken = [8265, 52365, 10001]
    monkeypatch.setattr(demo, "is_free", lambda port: port not in taken)
    monkeypatch.setattr(demo, "_runs", lambda _: False)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: None)
    monkeypatch.setattr(demo, "_start", lambda name, command, *_: commands.append(command))

    environment = demo._ray(DemoSettings(haproxy=False), ExitStack())

    ports = dict(flag.split("=") for flag in commands[0] if "port=" in flag)
    assert len(ports) == 6
    assert not set(map(int, ports.values())) & set(taken)
    assert environment["RAY_ADDRESS"] == f"127.0.0.1:{ports['--port']}"
    assert environment["RAY_DASHBOARD_ADDRESS"].endswith(f":{ports['--dashboard-port']}")
