"""Lines of a file or a pipe, read without blocking the event loop and without holding more than one long line."""

from __future__ import annotations

import os
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


@attrs.define(eq=False)
class Reader:
    """Reads a descriptor line by line, until its end or until `stop`.

    Attributes:
        fd: The descriptor; it is not closed.
    """

    fd: int
    _stopped: bool = False
    _waiting: anyio.CancelScope | None = None

    def stop(self) -> None:
        """Read no more. What waits for input wakes up."""
        self._stopped = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def lines(self) -> AsyncIterator[Line]:
        """The lines, without those after `stop`."""
        number, head, skipping = 0, b"", False
        while chunk := await self._chunk():
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
    count, last = 0, b"\n"
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            count += chunk.count(b"\n")
            last = chunk[-1:]
    return count + (last != b"\n")
