"""HTTP/1.1 on one wire: one write for a request, then its answer, read whole.

`httptools` parses the answer where it is installed, else `h11`, which httpx brings along.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

import anyio

from ucaptcha_async.secrecy import SecretBytes

from .exchange import HEADERS, MAX_BODY
from .wires import Wire, expirer

try:
    httptools: Any = importlib.import_module("httptools")
except ImportError:  # the other parser runs the same tests
    httptools = None

MAX_HEAD = 65_536
"""Bytes of the headers that are read, interim answers included."""

MAX_INTERIM = 32
"""Interim answers (HTTP 1xx) that are read before the real one."""

MAX_RECEIVED = 4 * MAX_BODY
"""Bytes of an answer with all its framing."""

MAX_MEMBERS = 64
"""Pieces of which a compressed answer may be made. Each costs as much as all that is left."""

REMEMBERED = 8
"""Answers of a connection that are known again when they come once more."""

LARGE = 65_536
"""Bytes of a request that a peer may not take in one piece: its answer may come before the end of it."""

MALFORMED = "the answer is not HTTP/1.1"
NO_ANSWER = "the service closed the connection without an answer"
LATE = "no answer in time"
CUT_OFF = "the answer was cut off"
TOO_LARGE = f"an answer of more than {MAX_BODY} bytes"
LARGE_HEAD = f"an answer with more than {MAX_HEAD} bytes of headers"
ENDLESS = "endless interim answers"
DAMAGED = "the answer's compression is damaged"
NOTHING = SecretBytes()
_NO_SCOPE = contextlib.nullcontext()


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
        self._body = []
        encoding = self.headers.get("content-encoding")
        content = SecretBytes(body) if encoding is None else decompressed(body, encoding)
        if isinstance(content, SecretBytes):
            self.content = content
        else:
            self.failure = content

    @property
    def partial(self) -> SecretBytes | None:
        """What has come of the body, if the answer broke off."""
        return SecretBytes(b"".join(self._body)) if self._body else None

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


class HttptoolsParser(Parser):
    """Reads answers with `httptools`."""

    def __init__(self) -> None:
        super().__init__()
        self._parser = httptools.HttpResponseParser(self)

    def _feed(self, data: bytes) -> None:
        if not data:
            return self._end()
        try:
            # The answer must end with the last byte. If it ends before, more came than one answer.
            if len(data) > 1:
                self._parser.feed_data(data[:-1])
            if self._complete:
                self.extra = True
            else:
                self._parser.feed_data(data[-1:])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self._complete:
                self.extra = True
            else:
                self.failure = self.failure or MALFORMED
        return None

    def _end(self) -> None:
        if self._headed and not self.headers.keys() & {"content-length", "transfer-encoding"}:
            self._complete = True
        else:
            self._cut_off()

    def on_headers_complete(self) -> None:
        """A callback of the parser."""
        if not self._complete:
            parser = self._parser
            self._head(parser.get_status_code(), parser.get_http_version(), reusable=parser.should_keep_alive())

    def on_body(self, data: bytes) -> None:
        """A callback of the parser."""
        self._piece(data)

    def on_message_complete(self) -> None:
        """A callback of the parser: an answer is over; an interim one is followed by another."""
        self._complete = self._complete or self._headed


_LINE_ENDS = re.compile(rb"\r?\n([ \t]|\r?\n)")
"""Where a header goes on in the next line, or a head ends."""


class H11Parser(Parser):
    """Reads answers with `h11`, which is imported here: with the other parser nothing needs it."""

    def __init__(self) -> None:
        import h11

        self._request = h11.Request(method="POST", target="/", headers=[("Host", "h"), ("Content-Length", "0")])
        self._dialogue = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        super().__init__()

    def begin(self) -> None:
        """A request leaves. What it is does not matter to its answer."""
        import h11

        super().begin()
        self._raw = bytearray()
        if self._dialogue.our_state is h11.DONE:
            self._dialogue.start_next_cycle()
        self._dialogue.send(self._request)
        self._dialogue.send(h11.EndOfMessage())

    def _feed(self, data: bytes) -> None:
        import h11

        if not self._headed:
            self._raw += data
        try:
            self._dialogue.receive_data(data)
            while not self._complete and self.failure is None:
                event = self._dialogue.next_event()
                if event is h11.NEED_DATA:
                    break
                self._take(event)
        except h11.ProtocolError:
            if data:
                self.failure = MALFORMED
            else:
                self._cut_off()

    def _take(self, event: Any) -> None:
        import h11

        if isinstance(event, h11.Data):
            self._piece(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            self._complete = True
            left, ended = self._dialogue.trailing_data
            self.extra = bool(left)
            self.reusable = self._dialogue.their_state is h11.DONE and not ended
        elif isinstance(event, h11.InformationalResponse | h11.Response):
            if self._folded():
                self.failure = MALFORMED
                return
            for name, value in event.headers:
                self.on_header(name, value)
            self._head(event.status_code, event.http_version.decode(), reusable=False)
        else:  # the connection was closed
            self._cut_off()

    def _folded(self) -> bool:
        """Whether a header goes on in the next line: h11 allows what the standard took back."""
        heads = self._interim + 1
        for found in _LINE_ENDS.finditer(self._raw):
            if found[1] in (b" ", b"\t"):
                return True
            heads -= 1
            if not heads:
                break
        return False


def new_parser() -> Parser:
    """The best parser that is installed."""
    return H11Parser() if httptools is None else HttptoolsParser()


class Connection:
    """One wire and what is known of it.

    Attributes:
        wire: The wire.
        answer: The answer that was read last.
        requests: How many requests it has carried.
        used_at: When the last answer was complete, or when it was opened.
        doomed: Whether its answers cannot be trusted any more.
        repeated: Whether the last answer is, byte for byte, one of those before it.
    """

    __slots__ = ("_answers", "_expire_at", "answer", "doomed", "repeated", "requests", "used_at", "wire")

    def __init__(self, wire: Wire, now: float, parser: Callable[[], Parser] = new_parser) -> None:
        self.wire = wire
        self.answer = parser()
        self.requests = 0
        self.used_at = now
        self.doomed = self.repeated = False
        self._answers: deque[int] = deque(maxlen=REMEMBERED)
        self._expire_at = expirer(wire)

    async def ask(self, request: SecretBytes, deadline: float) -> str | None:
        """Write a request in one piece, and read its answer. Returns why there is none, if there is none."""
        if self.requests:
            self.answer.begin()
        self.requests += 1
        with self._limit(deadline):
            if len(request) > LARGE:
                return await self._ask_at_length(request)
            # A service that closed early may have answered before: what came, the reading tells.
            with contextlib.suppress(OSError):
                await self.wire.send(request)
            return await self._read()
        return LATE

    def _limit(self, deadline: float) -> contextlib.AbstractContextManager[object]:
        if self._expire_at is None:
            return anyio.CancelScope(deadline=deadline)
        self._expire_at(deadline)
        return _NO_SCOPE

    async def _ask_at_length(self, request: SecretBytes) -> str | None:
        failure: str | None = NO_ANSWER
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write, request)
            failure = await self._read()
            tasks.cancel_scope.cancel()
        return failure

    async def _write(self, request: SecretBytes) -> None:
        with contextlib.suppress(OSError):
            await self.wire.send(request)

    async def _read(self) -> str | None:
        answer = self.answer
        try:
            while not answer.feed(await self.wire.receive()):
                pass
        except TimeoutError:
            return LATE
        except OSError as error:
            return f"the connection broke: {error.strerror or error}"
        if answer.failure is None:
            answer.finish()
            known = hash(answer.content)
            self.repeated = known in self._answers
            self._answers.append(known)
        return answer.failure


def decompressed(body: bytes, encoding: str) -> SecretBytes | str:
    """Undo a `Content-Encoding` in bounded steps. One that few know, and that nobody asked for, is left as it is.

    Returns:
        The body, or why there is none.
    """
    windows = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}.get(encoding.strip().lower())
    if windows is None or not body:
        return SecretBytes(body)
    for window in windows:
        try:
            return _inflated(body, window)
        except zlib.error:
            continue
    return DAMAGED


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
