"""Reads an answer of HTTP/1.1 whole, within bounds.

`httptools` parses it where it is installed, else `h11`, which httpx brings along: `with_httptools`, `with_h11`.
"""

from __future__ import annotations

import zlib

from ucaptcha_async.secrecy import SecretBytes

from .exchange import HEADERS, MAX_BODY

MAX_HEAD = 65_536
"""Bytes of the headers that are read, interim answers included."""

MAX_INTERIM = 32
"""Interim answers (HTTP 1xx) that are read before the real one."""

MAX_RECEIVED = 4 * MAX_BODY
"""Bytes of an answer with all its framing."""

MAX_MEMBERS = 64
"""Pieces of which a compressed answer may be made. Each costs as much as all that is left."""

MALFORMED = "the answer is not HTTP/1.1"
NO_ANSWER = "the service closed the connection without an answer"
CUT_OFF = "the answer was cut off"
TOO_LARGE = f"an answer of more than {MAX_BODY} bytes"
LARGE_HEAD = f"an answer with more than {MAX_HEAD} bytes of headers"
ENDLESS = "endless interim answers"
DAMAGED = "the answer's compression is damaged"
NOTHING = SecretBytes()


class Parser:
    """Reads answers, one after the other.

    It raises nothing: a traceback would show what was read.

    Attributes:
        status: The HTTP status.
        headers: Those headers that matter, with lower-case names.
        content: The whole body, decompressed.
        failure: Why the answer cannot be read.
        extra: Whether bytes came behind the end of the answer.
        reusable: Whether the connection may carry another request.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A request leaves."""
        self.status = self._received = self._head_size = self._size = self._interim = 0
        self.headers: dict[str, str] = {}
        self.content = NOTHING
        self._body: list[bytes] = []
        self.failure: str | None = None
        self.extra = self.reusable = False
        self._headed = self._complete = False

    def feed(self, data: bytes) -> bool:
        """Read what came; empty at the end. Returns whether the answer is over, well or not."""
        self._received += len(data)
        self._feed(data)
        if not self._complete and self.failure is None:
            if not self._headed and self._received > MAX_HEAD:
                self.failure = LARGE_HEAD
            elif self._received > MAX_RECEIVED:
                self.failure = TOO_LARGE
        return self._complete or self.failure is not None

    def finish(self) -> None:
        """The answer is over: put its body together."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        encoding = self.headers.get("content-encoding")
        content = SecretBytes(body) if encoding is None else decompressed(body, encoding)
        if isinstance(content, SecretBytes):
            self.content, self._body = content, []
        else:
            self.failure = content

    @property
    def partial(self) -> SecretBytes | None:
        """What has come of the body, if the answer cannot be read to its end."""
        if not self._body:
            return None
        return decompressed_part(b"".join(self._body), self.headers.get("content-encoding", ""))

    def _feed(self, data: bytes) -> None:
        raise NotImplementedError

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if self._headed:
            return
        if self._received > MAX_HEAD:
            self._head_size += len(name) + len(value)
        known = HEADERS.get(name.lower())
        if known is not None:
            self.headers[known] = value.decode("latin-1").strip()

    def _head(self, status: int, version: str, *, reusable: bool) -> None:
        """A head is whole."""
        if self._head_size > MAX_HEAD:
            self.failure = LARGE_HEAD
        elif version not in ("1.1", "1.0") or status == 101:
            self.failure = MALFORMED
        elif status < 200:
            self._interim += 1
            self.headers = {}
            if self._interim > MAX_INTERIM:
                self.failure = ENDLESS
        elif self._framed_twice():
            self.failure = MALFORMED
        else:
            self.status, self.reusable, self._headed = status, reusable, True

    def _framed_twice(self) -> bool:
        """Whether length and end of the body may be read in two ways."""
        coding = self.headers.get("transfer-encoding")
        return coding is not None and (coding.lower() != "chunked" or "content-length" in self.headers)

    def _piece(self, data: bytes) -> None:
        """A piece of the body."""
        self._size += len(data)
        if self._size > MAX_BODY:
            self.failure = TOO_LARGE
        elif not self._complete:
            self._body.append(data)

    def _cut_off(self) -> None:
        """The connection ended too early."""
        self.failure = CUT_OFF if self._received else NO_ANSWER


def decompressed(body: bytes, encoding: str) -> SecretBytes | str:
    """Undo a `Content-Encoding` in bounded steps. One that few know, and that nobody asked for, is left as it is.

    Returns:
        The body, or why there is none.
    """
    windows = _windows(encoding)
    if windows is None or not body:
        return SecretBytes(body)
    for window in windows:
        try:
            return _inflated(body, window)
        except zlib.error:
            continue
    return DAMAGED


def decompressed_part(body: bytes, encoding: str) -> SecretBytes:
    """As much as can be read of a body that is not whole; the body as it is, if it is not what `encoding` says."""
    for window in _windows(encoding) or ():
        try:
            if found := zlib.decompressobj(window).decompress(body, MAX_BODY):
                return SecretBytes(found)
        except zlib.error:
            continue
    return SecretBytes(body)


def _windows(encoding: str) -> tuple[int, ...] | None:
    return {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}.get(encoding.strip().lower())


def _inflated(body: bytes, window: int) -> SecretBytes | str:
    found = bytearray()
    for _ in range(MAX_MEMBERS):
        member = zlib.decompressobj(window)
        found += member.decompress(body, MAX_BODY + 1 - len(found))
        if len(found) > MAX_BODY:
            return TOO_LARGE
        if not member.eof:
            return DAMAGED
        body = member.unused_data.lstrip(b"\0")  # the format allows it to be filled up
        if not body:
            return SecretBytes(found)
    return DAMAGED
