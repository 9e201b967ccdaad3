"""Pictures that a task shows to the service."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias
from urllib.parse import unquote, unquote_to_bytes

import attrs

from ucaptcha_async.checks import wrong
from ucaptcha_async.errors import InvalidTaskError
from ucaptcha_async.secrecy import OwnCopy


class BinaryFile(Protocol):
    """A file object that is open for reading bytes, such as `open(path, "rb")` or `io.BytesIO`."""

    def read(self) -> bytes:
        """All that is left in it."""
        ...


class Savable(Protocol):
    """An image of Pillow, or whatever else can save itself as PNG."""

    def save(self, fp: Any, /, format: str | None = None) -> Any:
        """Write it to a file object."""
        ...


ImageSource: TypeAlias = "bytes | bytearray | memoryview | os.PathLike[str] | str | BinaryFile | Savable | Image"
"""An image: its bytes, the path of a file (`pathlib.Path`), an open file, an image of Pillow, or base64 or a `data:`
URL as text or bytes."""

_ALLOWED = (
    "a PNG, JPEG, GIF, WebP or BMP image: bytes, a pathlib.Path (not a file's name as text), an open file, "
    "an image of Pillow, or base64 or a data: URL"
)
_DATA_URL = re.compile(r"data:(?P<head>[^,]{0,200}),", re.IGNORECASE)
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
)


@attrs.frozen(repr=False)
class Image(OwnCopy):
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


def read_image(field: str, source: ImageSource) -> Image:
    """Read an image from any of its sources, or raise `InvalidTaskError`."""
    if isinstance(source, Image):
        return source
    for data in _readings(field, source):
        media_type = _media_type(data)
        if media_type is not None:
            return Image(data, media_type)
    raise wrong(field, source, _ALLOWED)


def _readings(field: str, source: Any) -> Iterator[bytes]:
    """What a source may stand for, one after the other."""
    if isinstance(source, str):
        yield from _decoded(source)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        yield data
        yield from _decoded(data.decode("ascii", errors="replace"))
    elif isinstance(source, os.PathLike):
        yield _file(field, source)
    elif callable(getattr(source, "read", None)):
        yield from _readings(field, _read(field, source))
    elif callable(getattr(source, "save", None)):
        yield _saved(field, source)


def _file(field: str, path: os.PathLike[str]) -> bytes:
    from pathlib import Path  # for those who pass a path

    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise _refused(field, f"a readable file: {os.fspath(path)!r} cannot be read", error) from None


def _read(field: str, file: Any) -> bytes:
    """All of an open file, from its start where it can go there: writing to it has left it at its end."""
    try:
        if getattr(file, "seekable", bool)():
            file.seek(0)
        data = file.read()
    except (OSError, ValueError) as error:
        raise _refused(field, "a readable file: it cannot be read", error) from None
    if not isinstance(data, bytes | bytearray | memoryview):
        raise wrong(field, data, "a file that gives bytes (open it with mode 'rb')")
    return bytes(data)


def _saved(field: str, image: Any) -> bytes:
    """An image as PNG, which loses nothing; as JPEG where its colours are those of print."""
    file = io.BytesIO()
    try:
        image.save(file, "JPEG" if getattr(image, "mode", None) == "CMYK" else "PNG")
    except Exception as error:
        raise _refused(field, "an image that can be saved as PNG", error) from None
    return file.getvalue()


def _refused(field: str, allowed: str, error: Exception) -> InvalidTaskError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)[:200] or type(error).__name__
    return InvalidTaskError(f"{field} must be {allowed} ({reason})", field=field)


def _decoded(text: str) -> Iterator[bytes]:
    """What a text stands for as base64 or as a `data:` URL."""
    text = text.strip()
    found = _DATA_URL.match(text)
    if found is not None:
        text = text[found.end() :]
        if not found["head"].lower().rstrip().endswith(";base64"):
            yield unquote_to_bytes(text)
    bare = "".join(unquote(text).split()).translate(_URL_SAFE).rstrip("=")
    with contextlib.suppress(binascii.Error, ValueError):
        yield base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)


_URL_SAFE = str.maketrans("-_", "+/")


def _media_type(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((name for signature, name in _SIGNATURES if data.startswith(signature)), None)
