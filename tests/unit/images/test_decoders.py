import os
import signal
import socket
import threading
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from benchmarks.support import costly_files
from mask_ray.config import ImageLimits
from mask_ray.images.decode import Examined, decode_resized, examine
from mask_ray.images.decoders import Decoder, Decoders
from mask_ray.images.errors import DecodingStoppedError, ImageError
from tests.support import image_files
from tests.support.polling import wait_until

SIZE = 32
UNBOUNDED = ImageLimits(max_decode_s=10_000)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(timeout_s=60)
    yield decoders
    decoders.close()


@pytest.fixture
def decoder(decoders: Decoders) -> Iterator[Decoder]:
    decoder = decoders.decoder()
    yield decoder
    decoder.close()


def examined(encoded: bytes, limits: ImageLimits = UNBOUNDED) -> tuple[Examined, int]:
    return examine(encoded, limits, at_least_px=SIZE), SIZE


def endless() -> tuple[Examined, int]:
    """A file of a kilobyte that decodes for a minute, on a machine however fast."""
    return examined(costly_files.progressive_jpeg(7_000, 7_000, 99, num_components=3))


def children(decoders: Decoders) -> list[psutil.Process]:
    assert decoders._server is not None
    return psutil.Process(decoders._server.pid).children()


def test_pixels_are_those_of_the_decoder(decoder: Decoder) -> None:
    files = [image_files.in_format(name) for name in image_files.ACCEPTED_FORMATS]
    files.append(image_files.exif_rotated_jpeg(6))
    for encoded, pixels in zip(files, decoder.decode([*map(examined, files)]), strict=True):
        assert isinstance(pixels, np.ndarray)
        assert (pixels == decode_resized(encoded, SIZE)).all()


def test_a_bad_image_fails_alone_with_the_decoders_error(decoder: Decoder) -> None:
    good = image_files.jpeg()
    files = [good, image_files.truncated_png(), image_files.truncated(good, 0.8), good]
    first, cut, short, last = decoder.decode([*map(examined, files)])
    assert isinstance(first, np.ndarray) and isinstance(last, np.ndarray)
    assert type(cut) is ImageError and "PNG image is truncated or corrupt" in str(cut)
    assert type(short) is ImageError and "its last lines are missing" in str(short)


def test_what_outlasts_its_time_is_ended_and_the_others_are_decoded() -> None:
    decoders = Decoders(timeout_s=600)
    decoder = decoders.decoder()
    photos = [image_files.jpeg(image_files.picture(seed=seed)) for seed in range(2)]
    try:
        decoder.decode([examined(photos[0])])
        (before,) = children(decoders)
        # Only the process that decodes it is in a hurry, so that no photo fails on a slow machine.
        assert decoder._process is not None
        decoder._process.connection.settimeout(3)
        batch = [examined(photos[0]), endless(), examined(photos[1])]
        first, stopped, last = decoder.decode(batch)
        for pixels, photo in zip((first, last), photos, strict=True):
            assert isinstance(pixels, np.ndarray)
            assert np.array_equal(pixels, decode_resized(photo, SIZE))
        assert isinstance(stopped, DecodingStoppedError)
        assert str(stopped) == "JPEG image took over 600 s to decode, which was then given up"
        wait_until(lambda: not before.is_running() or before.status() == psutil.STATUS_ZOMBIE)
    finally:
        decoder.close()
        decoders.close()


def test_a_decoder_says_that_an_image_is_within_its_time(decoders: Decoders) -> None:
    decoder = decoders.decoder()
    assert not decoder.is_in_time
    outcomes: list[object] = []
    thread = threading.Thread(target=lambda: outcomes.extend(decoder.decode([endless()])))
    thread.start()
    wait_until(lambda: decoder.is_in_time)
    for _ in range(2):
        kill_when_there(decoder)
    thread.join()
    assert not decoder.is_in_time
    (stopped,) = outcomes
    assert isinstance(stopped, DecodingStoppedError)
    assert str(stopped) == "JPEG image ended the process that decoded it"


def kill_when_there(decoder: Decoder) -> None:
    wait_until(lambda: decoder._process is not None)
    process = decoder._process
    assert process is not None
    os.kill(process.id, signal.SIGKILL)
    wait_until(lambda: decoder._process != process)


def test_no_other_process_inherits_a_connection(decoder: Decoder) -> None:
    decoder.start()
    assert decoder._process is not None
    assert not decoder._process.connection.get_inheritable()


def test_an_image_whose_process_was_ended_once_is_decoded_by_another(decoder: Decoder) -> None:
    decoder.decode([examined(image_files.jpeg())])
    assert decoder._process is not None
    os.kill(decoder._process.id, signal.SIGKILL)
    (pixels,) = decoder.decode([examined(image_files.jpeg())])
    assert isinstance(pixels, np.ndarray)


def test_what_is_done_is_answered_while_a_later_image_takes_long(decoders: Decoders) -> None:
    decoder = decoders.decoder()
    done = threading.Semaphore(0)
    photo = examined(image_files.jpeg())
    # Long enough that its answer does not wait for the next one's.
    slow = examined(costly_files.progressive_jpeg(3_000, 3_000, 20))
    batch = [photo, slow, endless()]
    thread = threading.Thread(target=decoder.decode, args=(batch, lambda _: done.release()))
    thread.start()
    assert done.acquire(timeout=60) and done.acquire(timeout=60)
    assert decoder.is_in_time
    for _ in range(2):
        kill_when_there(decoder)
    thread.join()


def test_images_of_any_size_have_room(decoder: Decoder) -> None:
    photos = [image_files.jpeg(image_files.picture(seed=seed)) for seed in range(3)]
    sizes = (8, 1_000, 7)
    batch = [
        (examine(photo, at_least_px=size), size) for photo, size in zip(photos, sizes, strict=True)
    ]
    for pixels, photo, size in zip(decoder.decode(batch), photos, sizes, strict=True):
        assert isinstance(pixels, np.ndarray)
        assert np.array_equal(pixels, decode_resized(photo, size))


@pytest.mark.parametrize(
    "message", [b"\5\0\0\0p\np\np", b"\xff\xff\xff\xff"], ids=["more_answers", "too_long"]
)
def test_what_a_process_answers_beyond_its_batch_is_not_taken(
    decoder: Decoder, message: bytes
) -> None:
    photo = examined(image_files.jpeg())
    decoder.decode([photo])
    process = decoder._process
    assert process is not None
    ours, theirs = socket.socketpair()
    with theirs, process.connection:
        theirs.sendall(message)
        decoder._process = process._replace(connection=ours)
        (pixels,) = decoder.decode([photo])
        assert isinstance(pixels, np.ndarray)
        assert np.array_equal(pixels, decode_resized(image_files.jpeg(), SIZE))
        # It was ended.
        assert ours.fileno() == -1


def test_no_answer_is_left_for_the_next_batch(decoder: Decoder) -> None:
    files = [image_files.jpeg(image_files.picture(seed=seed)) for seed in range(3)]

    def fail(_: float) -> None:
        raise RuntimeError("cannot be counted")

    with pytest.raises(RuntimeError):
        decoder.decode([*map(examined, files[:2])], fail)
    (pixels,) = decoder.decode([examined(files[2])])
    assert np.array_equal(pixels, decode_resized(files[2], SIZE))


def test_a_server_that_was_ended_is_replaced(decoders: Decoders) -> None:
    decoder = decoders.decoder()
    assert isinstance(decoder.decode([examined(image_files.jpeg())])[0], np.ndarray)
    assert decoders._server is not None
    decoders._server.kill()
    decoders._server.wait()
    decoder.close()
    assert isinstance(decoder.decode([examined(image_files.jpeg())])[0], np.ndarray)
    decoder.close()


def test_a_file_that_takes_more_memory_than_predicted_is_an_error(decoder: Decoder) -> None:
    file, _ = examined(costly_files.animated_webp(3_000))
    (outcome,) = decoder.decode([(file._replace(max_bytes=1024 * 1024), SIZE)])
    assert isinstance(outcome, ImageError)


def test_a_file_that_takes_far_more_memory_than_predicted_is_an_error(decoder: Decoder) -> None:
    file, _ = examined(costly_files.webp_of_groups())
    (pixels,) = decoder.decode([(file, SIZE)])
    assert isinstance(pixels, np.ndarray)
    (outcome,) = decoder.decode([(file._replace(num_bytes=20 * 2**20), SIZE)])
    assert isinstance(outcome, ImageError)


def test_processes_inherit_neither_tokens_nor_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASK_RAY_TOKENS", "AWS_SECRET_ACCESS_KEY", "HOME"):
        monkeypatch.setenv(name, "secret")
    own = Decoders(timeout_s=60)
    decoder = own.decoder()
    try:
        decoder.decode([examined(image_files.jpeg())])
        assert own._server is not None
        processes = [psutil.Process(own._server.pid), *children(own)]
        assert len(processes) == 2
        for process in processes:
            assert "secret" not in process.environ().values()
            assert {"PATH", "PYTHONPATH"} <= process.environ().keys()
    finally:
        decoder.close()
        own.close()


def test_processes_end_with_their_owner() -> None:
    own = Decoders(timeout_s=60)
    decoder = own.decoder()
    decoder.decode([examined(image_files.jpeg())])
    (worker,) = children(own)
    own.close()
    decoder.close()
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
