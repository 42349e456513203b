"""The look through a file before it is decoded. It refuses, predicts and strips; pixels stay."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from benchmarks.support import costly_files
from mask_ray.config import IMAGE_FORMATS, ImageLimits
from mask_ray.images import survey
from mask_ray.images.decode import (
    _SURVEYS,
    Examined,
    decode,
    decode_examined,
    decode_resized,
    examine,
)
from mask_ray.images.errors import ImageError, ImageFormatError, ImageTooCostlyError
from mask_ray.images.formats import _PLUGINS
from mask_ray.images.survey_jpeg import survey_jpeg
from tests.support import image_files

UNBOUNDED = ImageLimits(
    max_decode_s=1e9, max_decode_bytes=2**60, max_image_bytes=2**40, max_image_pixels=2**40
)
LARGE = ImageLimits(max_image_bytes=100 * 2**20)

COSTLY: dict[str, tuple[Callable[[], bytes], str]] = {
    "arithmetic scans": (
        lambda: costly_files.progressive_jpeg(7_071, 7_071, 99, is_arithmetic=True),
        r"would take about \d+\.\d s to decode \(7071 x 7071 pixels in 99 scans with arithmetic "
        r"coding\); at most 3 s are allowed",
    ),
    "Huffman scans": (
        lambda: costly_files.progressive_jpeg(7_000, 7_000, 99),
        r"would take about \d+\.\d s .* 99 scans with Huffman coding",
    ),
    "few scans of all colours": (
        lambda: costly_files.progressive_jpeg(7_000, 7_000, 40, num_components=3),
        r"would take about \d+\.\d s",
    ),
    "Exif segments": (costly_files.exif_segments, "JPEG image has over 4096 segments"),
    "tiny chunks": (costly_files.png_of_tiny_chunks, "PNG image has over 4096 chunks"),
    "comments": (costly_files.gif_of_comments, "GIF image has over 4096 blocks before"),
    "empty comments": (
        lambda: b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\0" * 4_097 + b",",
        "GIF image has over 4096 blocks before",
    ),
    "empty extensions": (
        costly_files.gif_of_empty_extensions,
        "GIF image has over 4096 blocks before",
    ),
    "canvas": (
        costly_files.animated_webp,
        r"about \d{9,10} bytes of memory to decode \(7000 x 7000 pixels in 2 frames\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), COSTLY.values(), ids=COSTLY)
@pytest.mark.parametrize("is_resized", [True, False])
def test_what_costs_too_much_is_refused_and_says_why(
    make: Callable[[], bytes], message: str, is_resized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = make()
    # Nothing is opened.
    monkeypatch.setattr(ImageFile.ImageFile, "__init__", None)
    with pytest.raises(ImageTooCostlyError, match=message):
        decode_resized(encoded, 96, LARGE) if is_resized else decode(encoded, LARGE)


def test_groups_of_codes_of_a_lossless_webp_count() -> None:
    encoded = costly_files.webp_of_groups()
    surveyed = survey.survey_webp(encoded, True)
    assert surveyed.num_bytes > 373 * 10**6
    assert surveyed.reason == "1024 x 1024 pixels in up to 65536 groups of codes"
    with pytest.raises(ImageTooCostlyError, match="65536 groups of codes"):
        decode(encoded, ImageLimits(max_decode_bytes=300 * 2**20))
    # A file that is too short for them has none.
    assert survey.survey_webp(image_files.in_format("WEBP"), True).num_bytes < 2**20


def test_a_case_that_broke_the_service_is_refused(shared: Path) -> None:
    encoded = (shared / "cases" / "arithmetic_scans.jpg").read_bytes()
    with pytest.raises(ImageTooCostlyError, match="99 scans with arithmetic coding"):
        decode(encoded)


@pytest.mark.parametrize(
    ("make", "image_format"),
    [
        (costly_files.iccp_chunks, "PNG"),
        (costly_files.png_of_profiles, "PNG"),
        (costly_files.exif_of_overlapping_tags, "JPEG"),
    ],
)
def test_metadata_costs_nothing(
    make: Callable[[], bytes], image_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What unpacks or reads it is never called.
    monkeypatch.setattr(Image.Exif, "load", None)
    monkeypatch.setattr("PIL.PngImagePlugin.PngStream.chunk_iCCP", None)
    examined = examine(make())
    assert examined.format_name == image_format
    assert len(examined.contents) < 2_000
    assert decode(make()).size


@pytest.mark.parametrize("chunk", [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fooo"])
def test_pixels_do_not_depend_on_what_stands_beside_them(chunk: bytes) -> None:
    plain = image_files.png()
    wrong = image_files.png_chunk(chunk, b"a\0\0" + bytes(99))
    wrong = wrong[:-1] + bytes((wrong[-1] ^ 1,))
    assert (decode(plain[:33] + wrong + plain[33:]) == decode(plain)).all()


def test_a_jpeg_keeps_what_its_colours_depend_on() -> None:
    for encoded in (image_files.jpeg(), image_files.cmyk_jpeg(), image_files.jpeg(comment=b"c")):
        expected = np.asarray(JpegImageFile(io.BytesIO(encoded)).convert("RGB"))
        assert (decode(encoded) == expected).all()


@pytest.mark.parametrize(
    ("where", "encoded"),
    [
        ("JPEG", image_files.exif_rotated_jpeg(6)),
        (
            "PNG in text",
            image_files.png(image_files.picture().transpose(Image.Transpose.ROTATE_90)),
        ),
    ],
)
def test_orientation_is_found_without_reading_the_rest(where: str, encoded: bytes) -> None:
    if where == "PNG in text":
        exif = image_files.exif_orientation(6)
        text = b"\nexif\n%8d\n" % len(exif) + exif.hex().encode() + b"\n"
        added = image_files.png_chunk(b"tEXt", b"Raw profile type exif\0" + text)
        encoded = encoded[:33] + added + encoded[33:]
        assert PngImageFile(io.BytesIO(encoded)).getexif()[0x0112] == 6
    assert examine(encoded).orientation == 6
    assert decode(encoded).shape == (48, 64, 3)


def test_scans_are_counted_up_to_the_end_of_the_image_alone() -> None:
    progressive = image_files.jpeg(progressive=True)
    (number,) = re.findall(r"in (\d+) scans", survey_jpeg(progressive, None).reason)
    assert int(number) == progressive.count(b"\xff\xda")
    # A second picture behind the first is not decoded, nor is what only looks like a scan.
    comment = b"\xff\xfe" + struct.pack(">H", 402) + b"\xff\xda\0\x08" * 100
    at = progressive.rindex(b"\xff\xda")
    beside = progressive[:at] + comment + progressive[at:] + progressive * 20
    assert f"in {number} scans" in survey_jpeg(beside, None).reason
    assert (decode(beside) == decode(progressive)).all()


def test_padding_before_a_marker_hides_no_scan() -> None:
    plain = costly_files.progressive_jpeg(64, 64, 20)
    padded = plain.replace(b"\xff\xda", b"\xff\xff\xff\xda")
    assert "in 20 scans" in survey_jpeg(padded, None).reason
    many = costly_files.progressive_jpeg(64, 64, 101).replace(b"\xff\xda", b"\xff\xff\xda")
    with pytest.raises(ImageError, match="101 scans; at most 100"):
        decode(many)


@pytest.mark.parametrize("num_components", [1, 3])
@pytest.mark.parametrize("is_arithmetic", [True, False])
def test_cost_grows_with_scans_and_pixels(num_components: int, is_arithmetic: bool) -> None:
    def seconds(side: int, num_scans: int) -> float:
        options = {"num_components": num_components, "is_arithmetic": is_arithmetic}
        file = costly_files.progressive_jpeg(side, side, num_scans, **options)
        return examine(file, UNBOUNDED, at_least_px=64).seconds

    assert seconds(3_000, 90) > 2.5 * seconds(3_000, 30)
    assert seconds(3_000, 90) > 3.5 * seconds(1_500, 90)


def test_lossless_coding_costs_by_the_sample() -> None:
    file = costly_files.progressive_jpeg(3_000, 3_000, 30, is_refined=False)
    files = (file.replace(b"\xff\xc2", frame) for frame in (b"\xff\xc0", b"\xff\xc3"))
    by_block, by_sample = (examine(each, UNBOUNDED, at_least_px=64).seconds for each in files)
    assert by_sample > 10 * by_block


def test_only_the_first_of_many_profiles_in_text_is_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def unpack(packed: memoryview) -> bytes:
        calls.append(len(packed))
        return b""

    monkeypatch.setattr(survey, "_unpacked", unpack)
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\n" * 65_536)
    plain = image_files.png()
    examine(plain[:33] + image_files.png_chunk(b"zTXt", text) * 1_000 + plain[33:])
    assert len(calls) == 1


def test_what_is_kept_of_all_blocks_is_counted_as_memory() -> None:
    one_scan = image_files.jpeg(image_files.picture(1_600, 1_600))
    progressive = image_files.jpeg(image_files.picture(1_600, 1_600), progressive=True)
    few, many = (examine(e, at_least_px=96).num_bytes for e in (one_scan, progressive))
    assert many - few >= 3 * 200 * 200 * 128


REAL = [
    image_files.jpeg(),
    image_files.jpeg(progressive=True),
    image_files.exif_rotated_jpeg(6),
    image_files.cmyk_jpeg(),
    costly_files.progressive_jpeg(64, 48, 5, num_components=3),
    image_files.png(),
    image_files.png(exif=image_files.exif_orientation(6)),
    image_files.palette_png_with_transparency(),
    image_files.webp(exif=image_files.exif_orientation(6)),
    image_files.webp(save_all=True, append_images=[image_files.picture(seed=1)]),
    image_files.animated_gif(),
    image_files.bmp(),
    image_files.rle_bmp(),
    image_files.tiff(),
    image_files.tiff(compression="jpeg", exif=image_files.exif_orientation(6)),
    image_files.avif(exif=image_files.exif_orientation(6)),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file with some bytes replaced, repeated, or left out."""
    body = bytearray(draw(st.sampled_from(REAL)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(body) - 1))
        change = draw(st.sampled_from(("set", "marker", "repeat", "drop")))
        if change == "set":
            body[at] = draw(st.integers(0, 255))
        elif change == "marker":
            body[at : at + 2] = bytes((0xFF, draw(st.integers(0, 255))))
        elif change == "repeat":
            end = draw(st.integers(at, min(len(body), at + 300)))
            body[at:at] = body[at:end] * draw(st.integers(1, 20))
        else:
            del body[at : draw(st.integers(at, min(len(body) - 1, at + 300)))]
    return bytes(body)


@pytest.mark.filterwarnings("ignore")
@given(damaged())
@settings(max_examples=300, deadline=None)
def test_any_file_is_refused_or_decoded_within_the_limits(encoded: bytes) -> None:
    limits = ImageLimits(max_image_pixels=4_000_000)
    try:
        examined = examine(encoded, limits, at_least_px=32)
    except ImageError as error:
        assert len(str(error)) > 20
        return
    assert isinstance(examined, Examined)
    assert 0 < examined.seconds <= limits.max_decode_s
    assert 0 <= examined.num_bytes <= limits.max_decode_bytes
    # A TIFF gets a table of its own tags.
    assert len(examined.contents) <= len(encoded) + 400
    with suppress(ImageError):
        assert decode_examined(examined, 32).shape == (32, 32, 3)


@pytest.mark.parametrize("encoded", [each for each in REAL if not each.startswith(b"II")])
def test_a_survey_of_what_it_has_left_leaves_the_same(encoded: bytes) -> None:
    once = examine(encoded)
    twice = examine(once.contents)
    assert twice.contents == once.contents
    assert (decode(once.contents).shape == decode(encoded).shape) or once.orientation > 4


def test_photos_are_far_below_the_limits(shared: Path) -> None:
    photos = [p for p in sorted((shared / "data" / "wild").rglob("*")) if p.is_file()][::20]
    for photo in photos:
        try:
            examined = examine(photo.read_bytes(), at_least_px=128)
        except ImageError as error:
            assert not isinstance(error, ImageTooCostlyError)
        else:
            assert examined.seconds < ImageLimits().max_decode_s / 3


def test_every_format_has_a_survey_and_a_decoder() -> None:
    names = {each.name for each in IMAGE_FORMATS}
    assert {*_SURVEYS, "JPEG"} == {*_PLUGINS} == names


PHONES = {
    "48 megapixels": (8_064, 6_048),
    "50 megapixels": (8_160, 6_144),
    "108 megapixels": (12_032, 9_024),
}


@pytest.mark.parametrize("image_size", [96, 128, 224])
@pytest.mark.parametrize("phone", PHONES)
def test_photos_of_phones_are_within_the_limits(phone: str, image_size: int) -> None:
    width, height = PHONES[phone]
    small = image_files.jpeg(subsampling=2, exif=image_files.exif_orientation(6))
    at = small.index(b"\xff\xc0") + 5
    head = small[:at] + struct.pack(">2H", height, width) + small[at + 4 : -2]
    # The codes are noise: a look counts them, and decodes none.
    photo = (head + costly_files.noise(24 * 2**20)).ljust(25 * 2**20 - 2, b"\1") + b"\xff\xd9"
    assert len(photo) == ImageLimits().max_image_bytes
    examined = examine(photo, at_least_px=image_size)
    assert examined.orientation == 6
    assert examined.seconds < ImageLimits().max_decode_s / 2


def test_a_jpeg_without_its_end_costs_twice_as_much() -> None:
    whole = image_files.jpeg()
    once, twice = (examine(each, at_least_px=32) for each in (whole, whole[:-2]))
    assert (once.is_endless, twice.is_endless) == (False, True)
    assert twice.seconds == pytest.approx(2 * once.seconds, rel=0.01)
    assert twice.num_bytes == 2 * once.num_bytes


class TestTIFF:
    def test_nothing_but_the_tags_of_its_pixels_reaches_the_decoder(self) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        exif[ExifTags.Base.Make] = "a camera"
        page = image_files.picture(seed=1)
        encoded = image_files.tiff(exif=exif, save_all=True, append_images=[page])
        left = TiffImageFile(io.BytesIO(examine(encoded).contents))
        assert left.n_frames == 1
        assert {ExifTags.Base.Orientation, ExifTags.Base.Make}.isdisjoint(left.tag_v2)

    @staticmethod
    def _with_tag(tag: int, kind: int, count: int, value: int) -> bytes:
        encoded = bytearray(image_files.tiff(compression="packbits", tiffinfo={305: "x" * 99}))
        (at,) = struct.unpack_from("<I", encoded, 4)
        (number,) = struct.unpack_from("<H", encoded, at)
        for place in range(at + 2, at + 2 + 12 * number, 12):
            if struct.unpack_from("<H", encoded, place)[0] in (tag, 305):
                encoded[place : place + 12] = struct.pack("<2H2I", tag, kind, count, value)
                break
        return bytes(encoded)

    @pytest.mark.parametrize(
        ("tag", "kind", "count", "value", "message"),
        [
            (273, 4, 2_000_000, 8, "TIFF image has over 65536 values of tag 273"),
            (320, 3, 2_000_000, 8, "TIFF image has over 65536 values of tag 320"),
            (256, 4, 1, 9_000_000, "image has 9000000 x 48"),
            (258, 3, 1, 64, "64 bits a sample"),
            (262, 3, 1, 32_803, "a TIFF of colour space 32803; gray, RGB, CMYK and YCbCr are"),
        ],
    )
    def test_what_its_tags_claim_is_checked(
        self, tag: int, kind: int, count: int, value: int, message: str
    ) -> None:
        with pytest.raises(ImageError, match=message):
            decode(self._with_tag(tag, kind, count, value))

    def test_scans_of_jpeg_within_it_count(self) -> None:
        jpeg = costly_files.progressive_jpeg(7_000, 7_000, 99)
        tags = [(256, 7_000), (257, 7_000), (258, 8), (259, 7), (262, 1), (273, 8), (277, 1)]
        tags += [(278, 7_000), (279, len(jpeg))]
        table = b"".join(struct.pack("<2H2I", tag, 4, 1, value) for tag, value in tags)
        head = b"II*\0" + struct.pack("<I", 8 + len(jpeg))
        encoded = head + jpeg + struct.pack("<H", len(tags)) + table + bytes(4)
        with pytest.raises(ImageTooCostlyError, match=r"would take about \d+\.\d s to decode"):
            decode(encoded)


class TestBoxes:
    def test_too_many_are_refused(self) -> None:
        encoded = image_files.avif() + struct.pack(">I4s", 8, b"free") * 5_000
        with pytest.raises(ImageTooCostlyError, match="AVIF image has over 4096 boxes"):
            decode(encoded)

    def test_exif_never_reaches_the_decoder(self) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Make] = "a camera"
        encoded = image_files.avif(exif=exif, xmp=b"<x:xmpmeta/>")
        assert AvifImageFile(io.BytesIO(encoded)).info.keys() >= {"exif", "xmp"}
        left = AvifImageFile(io.BytesIO(examine(encoded).contents))
        assert left.info.keys().isdisjoint({"exif", "xmp"})
        assert (decode(encoded) == decode(image_files.avif())).all()

    def test_an_animation_alone_is_refused_by_name(self) -> None:
        encoded = image_files.avif(save_all=True, append_images=[image_files.picture(seed=1)])
        with pytest.raises(ImageFormatError, match="animated AVIF without a still picture"):
            decode(encoded.replace(b"meta", b"free"))
