"""One request and its answer: what every way of sending has in common.

`pool` sends over the client's own connections, `through_httpx` over an httpx client.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import attrs

from ucaptcha_async.pacing import Limiter
from ucaptcha_async.secrecy import SecretBytes, redact, spellings

Clock = Callable[[], float]
"""The event loop's clock, in seconds."""

PERMIT_LIFETIME = 0.002
"""Seconds after which a permit of the limiter is stale: the limiter allows for a little more."""

MAX_BODY = 1024 * 1024
"""Bytes of the largest answer that is read, before and after decompression. A solution takes kilobytes."""

HEADERS = {
    name: name.decode()
    for name in (
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"date",
        b"retry-after",
        b"transfer-encoding",
        b"x-ratelimit-limit",
        b"x-ratelimit-remaining",
        b"x-ratelimit-reset",
    )
}
"""The headers of an answer that mean something here."""


class UnansweredError(Exception):
    """No answer came, or none that can be read. Whether the request was sent, its `Exchange` knows.

    Attributes:
        reason: What happened, in words, free of secrets.
        permanent: Whether trying again cannot help, because a setting is wrong.
    """

    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.permanent = permanent


@attrs.define(eq=False)
class Exchange:
    """One request on its way: permit, departure, whether and when it was sent.

    Attributes:
        path: For example `"/createTask"`.
        body: The JSON text. It holds the API key.
        limiter: Gives the permit to depart. While `permitted`, it waits for one of `observe()` and `lost()`.
        clock: The event loop's clock.
        timeout: Seconds for the answer, from the departure.
        submit: Whether the connection must be fit for a submit.
        secrets: What no error text of this request may show.
        permitted: Whether the limiter gave a permit.
        sent: Whether the service may have received something of the request.
        sent_at: When it departed.
        withdrawn: Whether nobody waits for it any more: if it is not written yet, it must not be written.
        admitted: Whether it may leave, asked up to the moment when it does.
        on_departure: Called when it departs, or will not any more.
        recalled: Whether it did not leave because it was not admitted any more.
        task_id: The task that it asks for.
        status: The HTTP status of the answer, once there is one.
        code: The error code in the answer, in upper case.
        reply: The answer, once it has come whole.
        named: The task that the answer names.
        said: The status of the task in the answer.
        partial: What came of an answer's body that broke off: it may name the task.
        in_protocol: Whether the answer is the protocol's own, and not some page's or gateway's.
    """

    path: str
    body: SecretBytes = attrs.field(repr=False)
    limiter: Limiter
    clock: Clock = attrs.field(repr=False)
    timeout: float
    submit: bool = False
    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)
    permitted: bool = attrs.field(default=False, init=False)
    permitted_at: float = attrs.field(default=-math.inf, init=False)
    sent: bool = attrs.field(default=False, init=False)
    sent_at: float | None = attrs.field(default=None, init=False)
    withdrawn: bool = attrs.field(default=False, init=False)
    admitted: Callable[[], bool] | None = attrs.field(default=None, init=False, repr=False)
    on_departure: Callable[[], object] | None = attrs.field(default=None, init=False, repr=False)
    recalled: bool = attrs.field(default=False, init=False)
    task_id: str | None = attrs.field(default=None, init=False)
    status: int | None = attrs.field(default=None, init=False)
    code: str | None = attrs.field(default=None, init=False, repr=False)
    reply: Reply | None = attrs.field(default=None, init=False, repr=False)
    named: str | None = attrs.field(default=None, init=False)
    said: str | None = attrs.field(default=None, init=False, repr=False)
    partial: SecretBytes | None = attrs.field(default=None, init=False, repr=False)
    in_protocol: bool = attrs.field(default=False, init=False)

    async def permit(self) -> None:
        """Wait for a permit that is fresh. A stale one is given up. `depart` comes after it, in the same turn.

        Raises:
            UnansweredError: If it is not to be sent any more.
        """
        if self.permitted:
            if self.clock() <= self.permitted_at + PERMIT_LIFETIME:
                return
            self.permitted = False
            self.limiter.lost()
        self.check()
        await self.limiter.acquire()
        self.permitted, self.permitted_at = True, self.clock()
        self.check()

    def depart(self) -> bool:
        """Count the request as sent, right before its first byte is written.

        Returns:
            Whether it may be written now. If not, its permit went stale, and nothing was sent.

        Raises:
            UnansweredError: If it is not to be sent any more.
        """
        self.check()
        now = self.clock()
        if now > self.permitted_at + PERMIT_LIFETIME:
            return False
        self.sent, self.sent_at = True, now
        self.let_next_go()
        return True

    def let_next_go(self) -> None:
        """Call `on_departure`, once."""
        if self.on_departure is not None:
            call, self.on_departure = self.on_departure, None
            call()

    @property
    def deadline(self) -> float:
        """Until when the answer is waited for; known once it has departed."""
        return math.inf if self.sent_at is None else self.sent_at + self.timeout

    def check(self) -> None:
        """Raise `UnansweredError` if it is not to be sent any more."""
        if self.withdrawn:
            raise UnansweredError("withdrawn before it was sent")
        if self.admitted is not None and not self.admitted():
            self.recalled = True
            raise UnansweredError("held back before it was sent")

    def clean(self, text: str) -> str:
        """Take this request's secrets out of a text."""
        return redact(text, {spelling for secret in self.secrets for spelling in spellings(secret)})


@attrs.define(kw_only=True, eq=False)
class Reply:
    """An answer, not yet understood.

    Attributes:
        status: The HTTP status.
        headers: Those headers that matter, with lower-case names.
        content: The body, decompressed.
        sent_at: When the request departed, on the event loop's clock.
        received_at: When the answer was complete.
        first: Whether it was the connection's first request, so that the answer cannot be an earlier request's.
            `None` if it is not known.
        repeated: Whether it is, byte for byte, an answer that the connection gave before.
        discard: Close the connection: it gave another request's answer.
    """

    status: int
    headers: dict[str, str] = attrs.field(repr=False)
    content: SecretBytes
    sent_at: float
    received_at: float
    first: bool | None
    repeated: bool
    discard: Callable[[], None] = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class ConnectionStatistics:
    """What the connections do now.

    Attributes:
        limit: The most connections at once.
        busy: Connections that carry a request, or are being opened for one.
        idle: Connections kept for the next request.
        waiting: Requests that wait for a connection.
        opened: Connections opened since the start.
    """

    limit: int
    busy: int
    idle: int
    waiting: int
    opened: int


class Sender(Protocol):
    """A way for requests."""

    def send(self, exchange: Exchange) -> Awaitable[object]:
        """Send one request and read its answer: it is the exchange's `reply` then.

        Raises:
            UnansweredError: If no answer came, or none that can be read.
            ClientStateError: If the sender was closed; nothing was sent after that.
        """
        ...

    def statistics(self) -> ConnectionStatistics | None:
        """The connections, or `None` if they are not the client's own."""
        ...

    async def aclose(self) -> None:
        """Close what is the client's own, and send nothing any more."""
        ...


def relevant(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Those headers that matter, with lower-case names."""
    known = ((HEADERS.get(name.lower()), value) for name, value in headers)
    return {name: value.decode("latin-1") for name, value in known if name is not None}
