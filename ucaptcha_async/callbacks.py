"""Results pushed instead of polled: a plain ASGI app that hears callbacks and wakes the solves that wait for them.

A callback is only a hint. Nothing but the secret in its path says who sent it, so what it claims is never used: the
woken solve asks the service itself. Source: docs/api/callbacks.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

import anyio
import attrs

from .checks import bare_url, wrong
from .errors import ConfigurationError
from .secrecy import SecretStr, masked

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

REMEMBERED_IDS = 10_000
"""How many ids that nobody waits for yet are remembered."""

REMEMBERED_FOR = 60.0
"""Seconds for which they are."""

LONGEST_QUERY = 65_536
"""Bytes; a reCAPTCHA token takes about 2 KB of them, and `code` is not read anyway."""

MOST_FIELDS = 16
"""Query fields that are looked at; a callback has three."""

_SECRET = re.compile(r"[A-Za-z0-9._~-]{22,200}")
_TASK_ID = re.compile(rb"[!-~]{1,128}")


@attrs.frozen(kw_only=True)
class CallbackStatistics:
    """What a receiver has received so far. `received` is `woken + repeated + unknown`.

    Attributes:
        received: Callbacks that came on the right path and named a task.
        woken: Those that were the first for a task that was expected.
        repeated: Those that said what another had said before.
        unknown: Those for a task that was not expected at that moment.
        early: Unknown ones that turned out to be for a task of ours: they had come before the submit's own answer, or
            while nobody was waiting.
        refused: Other requests: a wrong path or method, no usable id, an oversized query.
        expected: Tasks that are expected now.
        remembered: Ids that are remembered now, although they are not expected.
    """

    received: int
    woken: int
    repeated: int
    unknown: int
    early: int
    refused: int
    expected: int
    remembered: int


@attrs.define(eq=False)
class _Expectation:
    """A task that somebody wants to hear of."""

    kept: bool = False
    heard: bool = False
    waiting: int = 0
    bell: anyio.Event | None = None


@attrs.define(eq=False)
class _Memory:
    """Ids that were heard of while nobody expected them: bounded in number and in time, each step in O(1)."""

    _heard_at: OrderedDict[str, float] = attrs.field(factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._heard_at)

    def add(self, task_id: str, now: float) -> bool:
        """Remember an id. `False` if it was remembered already."""
        new = not self.take(task_id, now)
        self._heard_at[task_id] = now
        while len(self._heard_at) > REMEMBERED_IDS or now - next(iter(self._heard_at.values())) > REMEMBERED_FOR:
            self._heard_at.popitem(last=False)
        return new

    def take(self, task_id: str, now: float) -> bool:
        """Forget an id. `True` if it was remembered."""
        heard_at = self._heard_at.pop(task_id, None)
        return heard_at is not None and now - heard_at <= REMEMBERED_FOR


@attrs.define(eq=False)
class _Counts:
    woken: int = 0
    repeated: int = 0
    unknown: int = 0
    early: int = 0
    refused: int = 0


def _public_url(value: str) -> str:
    bare_url("public_url", value)
    if not (value.isascii() and value.isprintable()):
        raise wrong("public_url", value, "in printable ASCII (international names in punycode)", ConfigurationError)
    return value.rstrip("/")


def _path_secret(value: str | None) -> SecretStr:
    if value is None:
        return SecretStr(secrets.token_urlsafe(32))
    if not isinstance(value, str) or not _SECRET.fullmatch(value):
        allowed = "22 to 200 letters, digits or any of '._~-', not to be guessed: secrets.token_urlsafe(32)"
        raise wrong("path_secret", value, allowed, ConfigurationError)
    return SecretStr(value)


@attrs.define(eq=False, init=False, repr=False)
class CallbackReceiver:
    """An ASGI app to which the service pushes results, so that a solve costs one `getTaskResult` and no waiting.

    Mount it under any prefix, or serve it alone: only the last segment of the path counts. It must run in the event
    loop of the clients that use it. Polling goes on slowly beside it (`Polling.callback_net`), as callbacks get lost.

    The path holds a secret and the query a solution, so **switch off the access log** of the server and of the proxies
    before it for this path (uvicorn: `access_log=False`). The receiver itself neither keeps nor logs them.

    It understands uCaptcha's callbacks: a GET with `captcha_id`, `status` and `code`. Other services of the family send
    other ones, which are refused. Source: docs/api/callbacks.

    Args:
        public_url: Where the internet reaches this app, without the secret. Use `https`: over `http` the solutions
            travel in the clear. The service refuses names and addresses that are not public.
        path_secret: The last segment of the path. Default: a new one per process. Give one of your own (and keep it as
            safe as the API key) for tasks that must still receive callbacks after a restart.

    Raises:
        ConfigurationError: An argument is wrong; the message names it.

    Example:
        ```python
        from starlette.applications import Starlette
        from starlette.routing import Mount
        from ucaptcha_async import AsyncClient, CallbackReceiver

        receiver = CallbackReceiver("https://hooks.example.com/captcha")
        app = Starlette(routes=[Mount("/captcha", app=receiver)])
        client = AsyncClient(callbacks=receiver)
        ```
    """

    public_url: str = attrs.field(converter=_public_url, on_setattr=attrs.setters.frozen)
    _secret: SecretStr = attrs.field(converter=_path_secret)
    _expected: dict[str, _Expectation] = attrs.field(init=False, factory=dict)
    _memory: _Memory = attrs.field(init=False, factory=_Memory)
    _counts: _Counts = attrs.field(init=False, factory=_Counts)

    def __init__(self, public_url: str, *, path_secret: str | None = None) -> None:
        path_secret = masked(path_secret)
        self.__attrs_init__(public_url, path_secret)  # pyright: ignore[reportAttributeAccessIssue]  # attrs makes it

    def __repr__(self) -> str:
        # In a traceback with locals it may be shown half made.
        return f"<CallbackReceiver {getattr(self, 'public_url', '')}/…>"

    def __reduce__(self) -> Any:
        raise TypeError("a CallbackReceiver belongs to one event loop and holds a secret: it cannot be pickled")

    @property
    def url(self) -> str:
        """The `callbackUrl` for the service. It holds the secret, so its `repr` does not show it."""
        return SecretStr(f"{self.public_url}/{self._secret}")

    def statistics(self) -> CallbackStatistics:
        """What was received so far."""
        counts = self._counts
        return CallbackStatistics(
            received=counts.woken + counts.repeated + counts.unknown,
            **attrs.asdict(counts),
            expected=len(self._expected),
            remembered=len(self._memory),
        )

    # --- what a client asks -------------------------------------------------------------------------------------------

    def expect(self, task_id: str) -> None:
        """Keep what is heard of a task until `forget`, however much else is heard. Repeating it changes nothing."""
        self._expectation(task_id).kept = True

    def forget(self, task_id: str) -> None:
        """End `expect`, once or more often. Whoever is waiting for the task goes on waiting."""
        expectation = self._expected.get(task_id)
        if expectation is not None:
            expectation.kept = False
            self._release(task_id, expectation)

    async def wait_until(self, task_id: str, deadline: float) -> bool:
        """Wait for a callback, with or without `expect`. Any number of tasks may wait for the same one.

        Args:
            task_id: The task.
            deadline: When to stop waiting, in seconds of the event loop's clock (`anyio.current_time`).

        Returns:
            Whether one was heard: at once if that was so already, even shortly before it was expected.
        """
        expectation = self._expectation(task_id)
        expectation.waiting += 1
        try:
            if not expectation.heard:
                bell = expectation.bell = expectation.bell or anyio.Event()
                with anyio.CancelScope(deadline=deadline):
                    await bell.wait()
            return expectation.heard
        finally:
            expectation.waiting -= 1
            self._release(task_id, expectation)

    def _expectation(self, task_id: str) -> _Expectation:
        found = self._expected.get(task_id)
        if found is None:
            found = self._expected[task_id] = _Expectation(heard=self._memory.take(task_id, anyio.current_time()))
            self._counts.early += found.heard
        return found

    def _release(self, task_id: str, expectation: _Expectation) -> None:
        if expectation.kept or expectation.waiting:
            return
        del self._expected[task_id]
        if expectation.heard:
            # Another job may be waiting for the same task, and be busy polling just now.
            self._memory.add(task_id, anyio.current_time())

    # --- what the service sends ---------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI protocol. No body is ever read."""
        if scope["type"] == "http":
            await _answer(send, self._hear(scope))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            raise ValueError("this app speaks http and lifespan only")

    def _hear(self, scope: Scope) -> int:
        """Take a request, and return the status of its answer."""
        status = self._judge(scope)
        task_id = _task_id(scope.get("query_string") or b"") if status == 200 else None
        if task_id is None:
            self._counts.refused += 1
            return 404 if status == 200 else status
        self._note(task_id)
        return 200

    def _judge(self, scope: Scope) -> int:
        # Whoever does not know the path learns nothing, not even that it is the path that is wrong.
        segment = str(scope.get("path") or "").rpartition("/")[2]
        if not hmac.compare_digest(segment.encode("utf-8", "surrogatepass"), self._secret.encode()):
            return 404
        if scope.get("method") != "GET":
            return 405
        return 414 if len(scope.get("query_string") or b"") > LONGEST_QUERY else 200

    def _note(self, task_id: str) -> None:
        expectation, counts = self._expected.get(task_id), self._counts
        if expectation is None:
            new = self._memory.add(task_id, anyio.current_time())
            counts.unknown += new
            counts.repeated += not new
        elif expectation.heard:
            counts.repeated += 1
        else:
            counts.woken += 1
            expectation.heard = True
            if expectation.bell is not None:
                expectation.bell.set()


def _task_id(query: bytes) -> str | None:
    """The first `captcha_id`, if it looks like an id. The rest of the query stays unread."""
    for field in query.split(b"&", MOST_FIELDS)[:MOST_FIELDS]:
        name, _, value = field.partition(b"=")
        if name == b"captcha_id":
            task_id = unquote_to_bytes(value[:512])
            return task_id.decode("ascii") if _TASK_ID.fullmatch(task_id) else None
    return None


async def _answer(send: Send, status: int) -> None:
    headers = [(b"content-length", b"0")]
    if status == 405:
        headers.append((b"allow", b"GET"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        if kind in ("lifespan.startup", "lifespan.shutdown"):
            await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
