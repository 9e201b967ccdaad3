"""Lines of a file or a pipe, read without blocking the event loop and without holding more than one long line."""

from __future__ import annotations

import codecs
import os
import re
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import attrs

LONGEST = 8 * 1024 * 1024
"""Bytes of the longest line that is read; an image in base64 has some hundred thousand."""

CHUNK = 256 * 1024


@attrs.frozen
class Line:
    """One line.

    Attributes:
        number: From 1.
        text: Without the line's end; `None` if it is longer than `LONGEST`.
    """

    number: int
    text: bytes | None


_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@attrs.define(eq=False)
class Utf8:
    """Makes UTF-8 of text in pieces that begins with a byte order mark, as spreadsheets write it; keeps all other."""

    _begin: bytes = b""
    _decoder: codecs.IncrementalDecoder | None = None
    _known: bool = False

    def __call__(self, piece: bytes) -> bytes:
        """The piece as UTF-8; an empty one is the end."""
        if not self._known:
            self._begin += piece
            if piece and len(self._begin) < 4:
                return b""
            piece, self._known = self._begin, True
            encoding = next((name for bom, name in _BOMS if piece.startswith(bom)), None)
            if encoding == "utf-8":
                piece = piece.removeprefix(codecs.BOM_UTF8)
            elif encoding is not None:
                self._decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        return piece if self._decoder is None else self._decoder.decode(piece, final=not piece).encode(errors="replace")


@attrs.define(eq=False)
class Reader:
    """Reads a descriptor line by line, until its end or until `stop`.

    Attributes:
        fd: The descriptor; it is not closed.
    """

    fd: int
    _head: bytes = b""
    _utf8: Utf8 = attrs.field(factory=Utf8)
    _stopped: bool = False
    _waiting: anyio.CancelScope | None = None

    def stop(self) -> None:
        """Read no more. What waits for input wakes up."""
        self._stopped = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def begins_with(self, pattern: re.Pattern[bytes], enough: re.Pattern[bytes]) -> bool:
        """Whether the text begins so; it is read until there is `enough` to tell, and still comes in `chunks`."""
        async for chunk in self._chunks():
            self._head += chunk
            if enough.match(self._head):
                break
        return pattern.match(self._head) is not None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The text as UTF-8, in pieces of any size."""
        if self._head:
            yield self._head
            self._head = b""
        async for chunk in self._chunks():
            yield chunk

    async def _chunks(self) -> AsyncIterator[bytes]:
        while chunk := await self._chunk():
            if text := self._utf8(chunk):
                yield text
        if text := self._utf8(b""):
            yield text

    async def lines(self) -> AsyncIterator[Line]:
        """The lines, without those after `stop`."""
        number, head, skipping = 0, b"", False
        async for chunk in self.chunks():
            *whole, tail = (head + chunk).split(b"\n")
            for text in whole:
                number += 1
                yield Line(number, None if skipping or len(text) > LONGEST else text.removesuffix(b"\r"))
                skipping = False
            skipping = skipping or len(tail) > LONGEST
            head = b"" if skipping else tail
        if (head or skipping) and not self._stopped:
            yield Line(number + 1, None if skipping else head.removesuffix(b"\r"))

    async def _chunk(self) -> bytes:
        if self._stopped:
            return b""
        if stat.S_ISREG(os.fstat(self.fd).st_mode):
            return os.read(self.fd, CHUNK)
        with anyio.CancelScope() as self._waiting:
            return await self._when_there_is_some()
        return b""

    async def _when_there_is_some(self) -> bytes:
        if sys.platform == "win32":
            return await anyio.to_thread.run_sync(os.read, self.fd, CHUNK, abandon_on_cancel=True)
        await anyio.wait_readable(self.fd)
        return os.read(self.fd, CHUNK)


def count_lines(path: Path) -> int:
    """How many lines a file has."""
    count, last, utf8 = 0, b"\n", Utf8()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            text = utf8(chunk)
            count += text.count(b"\n")
            last = text[-1:] or last
    rest = utf8(b"")
    count += rest.count(b"\n")
    return count + ((rest[-1:] or last) != b"\n")
