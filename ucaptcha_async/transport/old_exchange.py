"""One JSON request in, one reply out; and, when there is none, whether the request was sent.

Whatever way it goes: `channels` and `fast` have the ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import anyio
import attrs

from ucaptcha_async.errors import UCaptchaError
from ucaptcha_async.pacing import Limiter
from ucaptcha_async.secrecy import SecretBytes, without_frames

from .lanes import MAX_ANSWER, AnswerTooLargeError, Lanes, LaneStatistics

LATE = 0.002
"""Seconds after which leave to depart is stale: the limiter allows for a little more."""

_HEADERS = {
    b"date",
    b"retry-after",
    b"x-ratelimit-limit",
    b"x-ratelimit-remaining",
    b"x-ratelimit-reset",
}


@attrs.frozen(kw_only=True)
class Reply:
    """An answer of the service, not yet understood.

    Attributes:
        status: The HTTP status.
        headers: The headers that pacing needs, names in lower case.
        content: The body.
        sent_at: When the request left, in seconds of the event loop's clock.
        received_at: When the answer was complete.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes = attrs.field(repr=False)
    sent_at: float
    received_at: float


class UnansweredError(Exception):
    """No reply came. Whether the request was sent, `Sending` knows.

    Attributes:
        reason: What happened, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@attrs.define(eq=False)
class Sending:
    """What a transport says of one request while it is under way: the proof of sending.

    Attributes:
        handed_over: Whether the transport has the request at all.
        proves_silence: Whether the transport is known to report, so that no report means that nothing was sent.
        started: Whether the first byte of the request was about to be written.
        heard: Whether anything was reported at all.
        withdrawn: Whether nobody wants it any more: what is not written yet is not to be written.
    """

    handed_over: bool = False
    proves_silence: bool = False
    started: bool = False
    heard: bool = False
    withdrawn: bool = False

    async def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """The `trace` extension of httpcore. Raises `UnansweredError` to stop a request that was withdrawn."""
        self.heard = True
        if _starts(name, info):
            if self.withdrawn:
                raise UnansweredError("withdrawn before it was sent")
            self.started = True

    @property
    def sent(self) -> bool:
        """Whether the request may have reached the service."""
        return self.handed_over and (self.started or not (self.heard or self.proves_silence))


def _starts(name: str, info: Mapping[str, Any]) -> bool:
    """Whether our request is about to be written. A proxy is sent a CONNECT of its own first."""
    return name.endswith(".send_request_headers.started") and info["request"].method == b"POST"


@attrs.define(eq=False)
class Departure:
    """One request's leave to depart, asked for as close to the departure as the way allows.

    Asked for again when the way was not ready when it was given: a pool was full, or had to connect.

    Attributes:
        limiter: Gives it.
        sending: Given for a submit: it learns whether the request was sent.
        told: Called whenever leave is given.
        given: Whether leave was given.
        at: When the request left, as far as the transport tells; else when it had leave to.
        scope: Bounds the request; it runs from the departure.
        timeout: Seconds for the answer.
    """

    limiter: Limiter
    sending: Sending | None = None
    told: Callable[[], None] | None = None
    given: bool = False
    at: float = 0.0
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    timeout: float = math.inf

    async def leave(self) -> None:
        """Wait for leave to depart."""
        if self.given:  # that turn is lost
            self.given, self.scope.deadline = False, math.inf
            self.limiter.lost()
        await self.limiter.acquire()
        self.given, self.at = True, anyio.current_time()
        self.scope.deadline = self.at + self.timeout
        if self.told is not None:
            self.told()

    def handed_over(self, *, prompt: bool, proves_silence: bool) -> dict[str, Any]:
        """A transport of httpcore takes the request over.

        Args:
            prompt: Whether it is written as soon as it has leave to depart.
            proves_silence: Whether the transport is known to report, so that no report means that nothing was sent.

        Returns:
            The extensions of the request that this needs.
        """
        extensions: dict[str, Any] = {} if prompt else {"trace": self.trace}
        if self.sending is not None:
            self.sending.handed_over, self.sending.proves_silence = True, proves_silence
            extensions.setdefault("trace", self.sending.trace)
        return extensions

    async def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """The `trace` extension of httpcore, for ways that are not prompt."""
        if _starts(name, info):
            if anyio.current_time() > self.at + LATE:
                await self.leave()
            self.at = anyio.current_time()
        if self.sending is not None:
            await self.sending.trace(name, info)


class Channel(Protocol):
    """A way for requests."""

    async def post(self, url: str, body: SecretBytes, departure: Departure) -> Reply:
        """Send one request. Raises whatever breaks: see `Http.post`."""
        ...

    async def aclose(self) -> None:
        """Close what is ours."""
        ...


@attrs.define(eq=False)
class Http:
    """Sends requests to one service.

    Submits and polls may take different ways: a submit needs a transport that proves whether it was sent.
    """

    base_url: str
    request_timeout: float
    submits: Channel
    polls: Channel
    lanes: Lanes | None

    async def post(self, path: str, body: SecretBytes, departure: Departure) -> Reply:
        """Send one POST and read the answer whole.

        Args:
            path: For example `"/createTask"`.
            body: The JSON text. It holds the API key.
            departure: Awaited before the request departs; the time for the answer runs from then.

        Raises:
            UnansweredError: If no answer came, or none that can be read.
        """
        channel = self.polls if departure.sending is None else self.submits
        departure.timeout = self.request_timeout
        try:
            with departure.scope:
                return await channel.post(self.base_url + path, body, departure)
        except AnswerTooLargeError:
            raise UnansweredError(f"an answer of more than {MAX_ANSWER} bytes") from None
        except UCaptchaError:
            raise  # of the limiter, which was asked on the way
        except Exception as error:
            # Whatever broke, broke after the request was built: what matters now is only whether it was sent.
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if departure.sending is not None and _queued(error):
                departure.sending.handed_over = False
            raise UnansweredError(reason) from without_frames(error)
        except BaseException as cancelled:
            without_frames(cancelled)
            raise
        raise UnansweredError(f"no answer within {self.request_timeout:g} s")

    def statistics(self) -> LaneStatistics | None:
        """The lanes, or `None` with an injected client."""
        return None if self.lanes is None else self.lanes.statistics()

    async def aclose(self) -> None:
        """Close what is ours. An injected client is left as it is."""
        for channel in {self.submits, self.polls}:
            await channel.aclose()


def relevant(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Those headers that pacing needs, with names in lower case."""
    lower = ((name.lower(), value) for name, value in headers)
    return {name.decode("ascii"): value.decode("latin-1") for name, value in lower if name in _HEADERS}


def _queued(error: BaseException) -> bool:
    """Whether the pool of an injected client gave up before it had a connection, as httpcore itself says."""
    cause = error.__cause__
    return type(cause).__name__ == "PoolTimeout" and type(cause).__module__.startswith("httpcore")
