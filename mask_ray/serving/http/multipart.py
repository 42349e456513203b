"""The files of a `multipart/form-data` body."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mask_ray.config import MAX_FORM_FIELDS, PayloadLimits
from mask_ray.serving.http.base64_text import decode_base64
from mask_ray.serving.http.limits import (
    PayloadError,
    check_num_images,
    check_total_bytes,
    quoted,
    reject_image_bytes,
)

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM_TYPE = "multipart/form-data"

# RFC 2045, section 6: encodings that leave the bytes as they are.
_IDENTITY = ("", "7bit", "8bit", "binary")
_BASE64 = "base64"


async def read_form(
    content_type: str, chunks: AsyncIterator[bytes], limits: PayloadLimits
) -> "FormFiles":
    """Read a form from the chunks of its body.

    Raises:
        PayloadError: 400, the form is malformed; 413, over `limits`; 415, a file is encoded in
            another way than base64; 422, its base64 is malformed.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise PayloadError(400, f"Content-Type {FORM_TYPE} must name a boundary; got none")
    form = FormFiles(limits)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for chunk in chunks:
            parser.write(chunk)
    except FormParserError as error:
        raise PayloadError(400, f"body is not {FORM_TYPE}: {quoted(str(error))}") from None
    return form


class FormFiles:
    """Collects the files of a form from the parser's callbacks.

    Starlette's form parser is not used because it does not limit the size of a file, and writes
    files of over 1 MB to disk.
    """

    def __init__(self, limits: PayloadLimits) -> None:
        self._limits = limits
        self._files: list[bytes] = []
        self._num_fields = 0
        self._num_bytes = 0
        self._is_list = False
        self._is_complete = False
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._file: bytearray | None = None
        self._encoding = ""

    def callbacks(self) -> "MultipartCallbacks":
        """Return the callbacks by python-multipart's names."""
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_to_header_name,
            "on_header_value": self._add_to_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    @property
    def is_list(self) -> bool:
        """Whether there are several files, or any under the name `images`."""
        return self._is_list or len(self._files) > 1

    def files(self) -> tuple[bytes, ...]:
        """Return all files, once the form has been read.

        Raises:
            PayloadError: 400, the form was cut off; 422, it has no file.
        """
        if not self._is_complete:
            raise PayloadError(400, f"{FORM_TYPE} is cut off: its last boundary is missing")
        if not self._files:
            raise PayloadError(
                422,
                f"{FORM_TYPE} must have at least one file; got {self._num_fields} fields that "
                "are not files (with curl, a file's name needs @ before it)",
            )
        return tuple(self._files)

    def _begin_part(self) -> None:
        self._headers = {}
        self._file = None

    def _add_to_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_to_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        disposition = parse_options_header(self._headers.get(b"content-disposition"))[1]
        # A browser sends a file with an empty name if the user chose none.
        is_file = bool(disposition.get(b"filename")) or self._has_encoded_file_name()
        if is_file or self._headers.get(b"content-type", b"").lower().startswith(b"image/"):
            self._begin_file(is_list=disposition.get(b"name") in (b"images", b"images[]"))
        else:
            self._count_field()

    def _has_encoded_file_name(self) -> bool:
        """Whether a name is given as `filename*=UTF-8''...`, which the parser leaves out.

        RFC 7578 forbids it in forms; clients send it for names that are not ASCII.
        """
        header = self._headers.get(b"content-disposition", b"").lower()
        return any(part.strip().startswith(b"filename*") for part in header.split(b";"))

    def _begin_file(self, is_list: bool) -> None:
        check_num_images(len(self._files) + 1, FORM_TYPE, self._limits)
        encoding = self._headers.get(b"content-transfer-encoding", b"").decode("latin-1")
        self._encoding = encoding.strip().lower()
        if self._encoding not in (*_IDENTITY, _BASE64):
            raise PayloadError(
                415,
                f"Content-Transfer-Encoding of file {len(self._files) + 1} must be base64 or "
                f"binary, or be left out; got {quoted(encoding)}",
            )
        self._file = bytearray()
        self._is_list |= is_list

    def _count_field(self) -> None:
        self._num_fields += 1
        if self._num_fields > MAX_FORM_FIELDS:
            raise PayloadError(
                413,
                f"{FORM_TYPE} must have at most {MAX_FORM_FIELDS} fields that are not files; "
                f"got {self._num_fields}",
            )

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            return
        if self._encoding != _BASE64:
            self._count_bytes(end - start)
        if len(self._file) + end - start > self._max_part_bytes():
            reject_image_bytes(f"file {len(self._files) + 1}", self._limits)
        self._file += memoryview(data)[start:end]

    def _max_part_bytes(self) -> int:
        # Base64 with line breaks takes up to 1.4 times the bytes.
        max_bytes = self._limits.max_image_bytes
        return max_bytes if self._encoding != _BASE64 else max_bytes * 3 // 2 + 100

    def _count_bytes(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        check_total_bytes(self._num_bytes, self._limits)

    def _end_part(self) -> None:
        if self._file is None:
            return
        image = bytes(self._file)
        if self._encoding == _BASE64:
            image = decode_base64(image, f"file {len(self._files) + 1}", self._limits)
            self._count_bytes(len(image))
        self._files.append(image)

    def _end(self) -> None:
        self._is_complete = True
