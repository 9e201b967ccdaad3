"""`ucaptcha serve`: the local service in the foreground."""

from __future__ import annotations

import errno
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeAlias, cast

import attrs
from cyclopts import Group, Parameter

from ucaptcha_async.testing import LocalService
from ucaptcha_async.testing.options import SolveTimes
from ucaptcha_async.testing.server import NotLoopbackError, make_server, open_socket, url_of
from ucaptcha_async.testing.timing import SolveTime, parse_solve_time

from .exits import CommandError, Exit
from .output import note, say

ANSWERS = Group("How it solves", sort_key=2)
LIMITS = Group("Limits and accounts", sort_key=3)
LISTENING = Group("Where it listens", sort_key=4)

Names: TypeAlias = list[str]
Dialect: TypeAlias = Literal["ucaptcha", "anticaptcha", "capsolver", "capmonster", "2captcha", "anysolver", "bare"]


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Behaviour:
    """What the local service does; see `ucaptcha_async.testing.LocalService`."""

    seed: Annotated[
        int | None,
        Parameter(
            group=ANSWERS,
            help="The seed of everything random: the same requests then get the same answers, ids included. "
            "Default: another one at each start, so that ids are never those of an earlier run.",
        ),
    ] = None
    speed: Annotated[float, Parameter(group=ANSWERS, help="Divide all solve times by this.")] = 1.0
    solve_time: Annotated[
        Names,
        Parameter(
            group=ANSWERS,
            help="`[TYPE=]SECONDS`. `12~0.5` is lognormal with median 12 s, `0.5*4~0.3+0.5*30~0.3` a mixture.",
            negative=(),
            consume_multiple=True,
            show_default=False,
        ),
    ] = attrs.field(factory=list)
    failure_rate: Annotated[float, Parameter(group=ANSWERS, help="The share of tasks that fail.")] = 0.0
    idle_for: Annotated[float, Parameter(group=ANSWERS, help="Seconds for which new tasks are idle.")] = 1.0
    latency: Annotated[float, Parameter(group=ANSWERS, help="Seconds that each answer takes.")] = 0.0
    immediate_types: Annotated[
        Names,
        Parameter(
            group=ANSWERS,
            help="Types that are solved at once. Default: ImageToTextTask.",
            negative=(),
            consume_multiple=True,
            show_default=False,
        ),
    ] = attrs.field(factory=lambda: ["ImageToTextTask"])
    extra_types: Annotated[
        Names,
        Parameter(
            group=ANSWERS, help="More task types to accept.", negative=(), consume_multiple=True, show_default=False
        ),
    ] = attrs.field(factory=list)
    dialect: Annotated[Dialect, Parameter(group=ANSWERS, help="Whose words to use.")] = "ucaptcha"
    keys: Annotated[
        Names,
        Parameter(
            group=LIMITS,
            help="The API keys that exist. Default: any is accepted.",
            negative=(),
            consume_multiple=True,
            show_default=False,
        ),
    ] = attrs.field(factory=list)
    balance: Annotated[Decimal, Parameter(group=LIMITS, help="What each account has, USD.")] = Decimal(100)
    lightning: Annotated[
        Names,
        Parameter(
            group=LIMITS,
            help="KEY=N: keys in Lightning mode, with their stock.",
            negative=(),
            consume_multiple=True,
            show_default=False,
        ),
    ] = attrs.field(factory=list)
    rate_limit: Annotated[int, Parameter(group=LIMITS, help="Requests per window.")] = 10_000
    rate_window: Annotated[float, Parameter(group=LIMITS, help="The window, seconds.")] = 10.0
    allow_private_callbacks: Annotated[
        bool,
        Parameter(group=LIMITS, help="Let callbacks go to private addresses.", negative=(), show_default=False),
    ] = False
    books_detail: Annotated[
        bool, Parameter(group=LIMITS, help="Keep each request and charge in the books, not only sums.")
    ] = True

    def service(self) -> LocalService:
        """The service that does so.

        Raises:
            CommandError: A value is wrong.
        """
        try:
            return LocalService(
                keys=self.keys or None,
                balance=self.balance,
                seed=secrets.randbits(32) if self.seed is None else self.seed,
                speed=self.speed,
                dialect=self.dialect,
                solve_time=_solve_times(self.solve_time),
                failure_rate=self.failure_rate,
                idle_for=self.idle_for,
                latency=self.latency,
                rate_limit=self.rate_limit,
                rate_window=self.rate_window,
                lightning=dict(map(_stock, self.lightning)),
                immediate_types=self.immediate_types,
                extra_types=self.extra_types,
                allow_private_callbacks=self.allow_private_callbacks,
                books_detail=self.books_detail,
            )
        except ValueError as error:
            raise CommandError(str(error)) from None


def serve(
    *,
    port: Annotated[int, Parameter(group=LISTENING, help="The port; 0 takes a free one.")] = 0,
    host: Annotated[str, Parameter(group=LISTENING, help="The address to listen on.")] = "127.0.0.1",
    any_host: Annotated[
        bool,
        Parameter(group=LISTENING, help="Allow addresses that others can reach.", negative=(), show_default=False),
    ] = False,
    idle_timeout: Annotated[
        float, Parameter(group=LISTENING, help="Seconds after which unused connections are closed.")
    ] = 60.0,
    behaviour: Behaviour | None = None,
    verbose: Annotated[
        bool,
        Parameter(
            name=["--verbose", "-v"], help="Log each request on standard error.", negative=(), show_default=False
        ),
    ] = False,
) -> int:
    """Run a uCaptcha of your own on this machine, for tests without key, money or network.

    Prints its address once it listens, and runs until Ctrl-C. Point a client to it with the environment variable
    UCAPTCHA_BASE_URL; any API key will do.
    """
    service = (behaviour or Behaviour()).service()
    listener = _listen(host, port, any_host=any_host)
    try:
        app = cast(LocalService, Logged(service)) if verbose else service
        server = _server(app, idle_timeout, lambda: _tell(url_of(listener)))
        # Also for after the end: uvicorn raises the signals that it has caught once more when it is done.
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, lambda *_: setattr(server, "should_exit", True)) for number in signals}
        try:
            server.run(sockets=[listener])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    finally:
        listener.close()
    return Exit.DONE


def _tell(url: str) -> None:
    say(f"listening on {url}")
    if sys.stderr.isatty():  # people, and not programs
        note(f"to use it: export UCAPTCHA_BASE_URL={url} UCAPTCHA_API_KEY=ucap_any")


def _listen(host: str, port: int, *, any_host: bool) -> socket.socket:
    if not 0 <= port < 65_536:
        raise CommandError("--port must be from 0 to 65535")
    try:
        return open_socket(host, port, any_host=any_host)
    except NotLoopbackError:
        raise CommandError(f"others can reach {host}: --any-host allows that", Exit.ADDRESS) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} of {host} is in use by another program: choose another --port, or 0 for a free one"
        else:
            message = f"port {port} of {host} cannot be listened on: {error.strerror}"
    raise CommandError(message, Exit.ADDRESS)


def _server(service: LocalService, idle_timeout: float, on_ready: Callable[[], None]) -> Any:
    try:
        return make_server(service, idle_timeout=idle_timeout, on_ready=on_ready)
    except ImportError as error:
        raise CommandError(str(error)) from None


def _solve_times(items: Sequence[str]) -> SolveTimes:
    """One time for all types, or times by type."""
    try:
        return _parsed(items)
    except ValueError as error:
        raise CommandError(f"--solve-time: {error}") from None


def _parsed(items: Sequence[str]) -> SolveTimes:
    if not items:
        return None
    if len(items) == 1 and "=" not in items[0]:
        return parse_solve_time(items[0])
    pairs = (item.partition("=") for item in items)
    by_type: dict[str, SolveTime | float] = {name: parse_solve_time(text) for name, _, text in pairs}
    return by_type


def _stock(item: str) -> tuple[str, int]:
    key, _, number = item.rpartition("=")
    if not key or not number.isdecimal():
        raise CommandError("--lightning must be KEY=N")
    return key, int(number)


Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Scope]]
Send: TypeAlias = Callable[[Scope], Awaitable[None]]


@attrs.frozen
class Logged:
    """A service that tells each request on standard error: method, path (without its query), status, time."""

    service: LocalService

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI protocol."""
        started, status = time.monotonic(), "no answer"

        async def listen(message: Scope) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.service(scope, receive, listen)
        finally:
            if scope["type"] == "http":
                took = (time.monotonic() - started) * 1000
                note(f"{time.strftime('%H:%M:%S')} {scope['method']} {scope['path']} {status} {took:.0f} ms")
