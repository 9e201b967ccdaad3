"""Reading requests and writing answers over ASGI."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol

import anyio
import attrs

from .books import TaskRecord

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ABORT = "ucaptcha.abort"
"""The name in `scope["extensions"]` under which a server offers a function that cuts the connection."""

LINE = "ucaptcha.line"
"""The name in `scope["extensions"]` under which a server offers its connection as a `Line`."""

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class ConnectionDroppedError(ConnectionError):
    """The service cuts the connection without (the rest of) an answer.

    `httpx.ASGITransport` raises it to the caller as it is; give `LocalService(drop_error=httpx.ReadError)` for what a
    socket would give. Over a real socket the connection is closed instead.
    """


class Line(Protocol):
    """A server's connection, for what ASGI has no words for."""

    def hold(self) -> None:
        """Keep what is written from now on."""
        ...

    def release(self) -> None:
        """Write what was kept, in one piece."""
        ...

    def write(self, data: bytes) -> None:
        """Write bytes as they are, if the connection is still open."""
        ...


@attrs.define(eq=False)
class Answer:
    """What the service is about to say; faults change it on its way.

    Attributes:
        status: The HTTP status.
        value: The JSON value of the body.
        body: The bytes of the body, in place of `value`.
        content_type: The media type.
        headers: Further headers.
        delay: How long to wait before it is sent, in seconds.
        cut: Where the connection is cut: `before` the answer, `during` it, or not at all.
        limits: Whether `Date` and the `X-RateLimit-*` headers are there.
        remaining: `X-RateLimit-Remaining`, in place of the true one.
        reset_in: The time until `X-RateLimit-Reset` in seconds, in place of the true one.
        delivers: The task whose outcome it tells.
        task_id: The id of the task that was created.
        wire_id: The id of the task that was created or asked for, as it stands in JSON.
        extra: A second answer that nobody asked for, on the same connection.
        extra_after: How long after the first it is sent, in seconds; 0 for the same packet.
    """

    status: int = 200
    value: object = None
    body: bytes | None = None
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0
    cut: str | None = None
    limits: bool = True
    remaining: int | None = None
    reset_in: float | None = None
    delivers: TaskRecord | None = None
    task_id: str | None = None
    wire_id: object = None
    extra: Answer | None = None
    extra_after: float = 0.0

    def payload(self) -> bytes:
        """Return the bytes of the body."""
        return _encode(self.value).encode("utf-8", "surrogatepass") if self.body is None else self.body


class Clock:
    """The wall clock of the service, and its text for the `Date` header.

    Args:
        epoch: The Unix time at which the clock of the event loop was zero; None takes the machine's clock.
        skew: How far the service's clock is ahead, in seconds.
    """

    def __init__(self, epoch: float | None, skew: float) -> None:
        self._epoch = epoch
        self._skew = skew
        self._second = -1
        self._date = b""

    def wall(self, now: float) -> float:
        """Return the Unix time at `now` on the clock of the event loop."""
        if self._epoch is None:
            self._epoch = time.time() - now
        return self._epoch + self._skew + now

    def date(self, wall: float) -> bytes:
        """Return the `Date` header for a Unix time."""
        second = int(wall)
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True).encode("ascii")
        return self._date


async def read_body(receive: Receive) -> bytes | None:
    """Read the body of a request; None if the client went away."""
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request":
        return bytes(message.get("body", b""))
    parts = [message.get("body", b"")]
    while message.get("more_body"):
        message = await receive()
        parts.append(message.get("body", b""))
    return None if message["type"] == "http.disconnect" else b"".join(parts)


async def send_answer(
    send: Send, answer: Answer, headers: Iterable[tuple[bytes, bytes]], *, half: bool = False
) -> None:
    """Send an answer, or only its first half."""
    body = answer.payload()
    start = _head(answer, body, headers)
    await send({"type": "http.response.start", "status": answer.status, "headers": start})
    await send({"type": "http.response.body", "body": body[: len(body) // 2] if half else body, "more_body": half})


def _head(answer: Answer, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    own = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    kind = answer.content_type.encode("latin-1")
    return [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *headers, *own]


async def send_with_extra(
    scope: Scope, send: Send, answer: Answer, extra: Answer, headers: list[tuple[bytes, bytes]]
) -> None:
    """Send an answer, and an unexpected second one on the same connection."""
    line: Line | None = (scope.get("extensions") or {}).get(LINE)
    if line is None:
        raise RuntimeError("a second answer needs a connection: use Server or running_service, not an ASGI transport")
    raw = as_bytes(extra, headers)
    if answer.extra_after:
        await send_answer(send, answer, headers)
        await anyio.sleep(answer.extra_after)
        line.write(raw)
        return
    line.hold()
    try:
        await send_answer(send, answer, headers)
        line.write(raw)
    finally:
        line.release()


def as_bytes(answer: Answer, headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """Return an answer as HTTP/1.1 writes it."""
    body = answer.payload()
    lines = [b"%b: %b\r\n" % pair for pair in _head(answer, body, headers)]
    phrase = HTTPStatus(answer.status).phrase.encode()
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (answer.status, phrase, b"".join(lines), body)


async def cut_connection(scope: Scope, receive: Receive, error: Callable[[str], Exception]) -> None:
    """Cut the connection: through the server if it can, else by an exception."""
    abort = (scope.get("extensions") or {}).get(ABORT)
    if abort is None:
        raise error("the service dropped the connection")
    abort()
    with anyio.move_on_after(1):
        while (await receive())["type"] != "http.disconnect":
            pass
