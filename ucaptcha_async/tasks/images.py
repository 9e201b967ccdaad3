"""Pictures that a task shows to the service."""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path
from typing import Any, Self, TypeAlias

import attrs

from ucaptcha_async.checks import wrong
from ucaptcha_async.errors import InvalidTaskError

ImageSource: TypeAlias = "bytes | bytearray | memoryview | os.PathLike[str] | str | Image"
"""An image: its bytes, the path of a file (`pathlib.Path`), or text: base64, or a `data:` URI."""

_ALLOWED = (
    "a PNG, JPEG, GIF, WebP or BMP image as bytes, a pathlib.Path, or text in base64 or as a data: URI "
    "(for a file's name use pathlib.Path)"
)
_DATA_URI = re.compile(r"\Adata:[^,]{0,200},")
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
)


@attrs.frozen(repr=False)
class Image:
    """An image that was read and recognised.

    Attributes:
        data: The file's bytes.
        media_type: For example `"image/png"`, by the first bytes.
    """

    data: bytes = attrs.field(repr=False)
    media_type: str

    def to_base64(self) -> str:
        """Bare base64, in one line."""
        return base64.b64encode(self.data).decode("ascii")

    def to_data_uri(self) -> str:
        """A `data:` URI."""
        return f"data:{self.media_type};base64,{self.to_base64()}"

    def __repr__(self) -> str:
        return f"<{self.media_type}, {len(self.data)} bytes>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def read_image(field: str, source: ImageSource) -> Image:
    """Read an image from any of its sources, or raise `InvalidTaskError`."""
    if isinstance(source, Image):
        return source
    data = _bytes(field, source)
    media_type = _media_type(data)
    if media_type is None:
        raise wrong(field, source, _ALLOWED)
    return Image(data, media_type)


def _bytes(field: str, source: object) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, os.PathLike):
        return _file(field, source)
    if isinstance(source, str):
        return _decoded(field, source)
    raise wrong(field, source, _ALLOWED)


def _file(field: str, path: os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError, TypeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        message = f"{field} must be a readable file: {os.fspath(path)!r} cannot be read ({reason})"
        raise InvalidTaskError(message, field=field) from None


def _decoded(field: str, text: str) -> bytes:
    bare = "".join(_DATA_URI.sub("", text.lstrip(), count=1).split())
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise wrong(field, text, _ALLOWED) from None


def _media_type(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((name for signature, name in _SIGNATURES if data.startswith(signature)), None)
