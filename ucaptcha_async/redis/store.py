"""The way to Redis, and the life of the objects that are kept there."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

import anyio
import anyio.abc
import attrs

from ucaptcha_async.checks import Seconds, seconds, wrong
from ucaptcha_async.errors import ClientStateError, ConfigurationError, UCaptchaError
from ucaptcha_async.pacing.event_loop import current

from .scripts import Stamp, new_token

try:
    import coredis
    from coredis.exceptions import ConnectionError as DisconnectedError
    from coredis.exceptions import RedisError, ResponseError
    from coredis.retry import ConstantRetryPolicy
except ImportError as error:
    raise ImportError("coredis is not installed: pip install 'ucaptcha_async[redis]'") from error

Client = coredis.Redis[Any] | coredis.RedisCluster[Any]
"""What may be given instead of a URL: a client that is open while the object is used."""

logger = logging.getLogger("ucaptcha_async")


class RedisUnavailableError(UCaptchaError):
    """Redis does not answer, or not in time, so it is unknown whether a request may leave. Nothing was sent."""

    retryable = True


class RedisStateLostError(RedisUnavailableError):
    """Redis has lost a part of what it was told. Nothing is sent until you accept the loss with `accept_loss()`."""

    retryable = False


@attrs.frozen(kw_only=True)
class RedisEvent:
    """Something happened between this process and Redis.

    Attributes:
        what: `"limit"`, `"in-flight"`, `"budget"` or `"journal"`.
        name: The object's name.
        at: When, in seconds of the event loop's clock.
    """

    what: str
    name: str
    at: float


@attrs.frozen(kw_only=True)
class RedisAway(RedisEvent):
    """Redis does not answer any more, or refuses.

    Attributes:
        error: What it said.
    """

    error: UCaptchaError


@attrs.frozen(kw_only=True)
class RedisBack(RedisEvent):
    """Redis answers again.

    Attributes:
        away_for: Seconds since the first failure.
    """

    away_for: float


@attrs.frozen(kw_only=True)
class RedisStateLost(RedisEvent):
    """Redis was restarted, another server took over, or it lost what it was told.

    Attributes:
        until: When the object goes on by itself, in seconds of the event loop's clock; infinite if it waits for
            `accept_loss()`.
    """

    until: float


RedisHook = Callable[[RedisEvent], object]
"""What `on_event` takes. It should return at once; one that raises is reported to the logger `ucaptcha_async`."""


@attrs.define(eq=False)
class Link:
    """One object's way to Redis: its keys, its calls, and whether Redis is away."""

    what: str
    name: str
    client: Client
    owned: bool
    timeout: float
    hook: RedisHook | None = None
    away_since: float | None = attrs.field(default=None, init=False)
    _failures: int = attrs.field(default=0, init=False)

    @classmethod
    def to(cls, what: str, redis: str | Client, name: str, timeout: Seconds, hook: RedisHook | None) -> Link:
        """Check the settings."""
        if not isinstance(name, str) or not name or "{" in name or "}" in name:
            raise wrong("name", name, "a str that is not empty, without braces", ConfigurationError)
        span = seconds("timeout", timeout)
        owned = isinstance(redis, str)
        return cls(what, name, client_of(redis, span) if isinstance(redis, str) else redis, owned, span, hook)

    def key(self, part: str = "") -> str:
        """A key of this object; all have the same hash tag."""
        return f"ucaptcha:{{{self.what}:{self.name}}}{part}"

    @property
    def retry_in(self) -> float:
        """Seconds to wait after a failure: 0.1 at first, 1 at the most."""
        return 0.1 * 2.0 ** min(self._failures - 1, 4) if self._failures < 5 else 1.0

    async def call(self, script: Any, keys: list[str], arguments: Sequence[str | int | float]) -> Any:
        """Run a script; not to be cancelled, for at most three times the timeout.

        Raises:
            RedisUnavailableError: It may have run, or not: the scripts can be run again.
        """
        try:
            # A lost answer is a second visit, and a connection that is cancelled half made is lost to coredis' pool.
            replies: list[Any] = []
            await current().uninterrupted(self._run(script, keys, arguments, replies))
        except (RedisError, TimeoutError, OSError) as error:
            if self.owned and isinstance(error, TimeoutError):
                self.client.connection_pool.disconnect()  # it may be a line that nobody answers any more
            problem = RedisUnavailableError(f"Redis {_reason(error)}")
            self._failed(problem)
            raise problem from error
        self._answered()
        return replies.pop()

    async def _run(
        self, script: Any, keys: list[str], arguments: Sequence[str | int | float], replies: list[Any]
    ) -> None:
        with anyio.fail_after(3 * self.timeout):
            replies.append(await script(keys=keys, args=arguments))

    def tell(self, make: type[RedisEvent], **details: Any) -> None:
        """Tell the hook."""
        if self.hook is None:
            return
        try:
            self.hook(make(what=self.what, name=self.name, at=anyio.current_time(), **details))
        except Exception:
            logger.exception("the hook for events of Redis failed")

    def _failed(self, error: RedisUnavailableError) -> None:
        self._failures += 1
        if self.away_since is None:
            self.away_since = anyio.current_time()
            self.tell(RedisAway, error=error)

    def _answered(self) -> None:
        self._failures = 0
        if self.away_since is not None:
            since, self.away_since = self.away_since, None
            self.tell(RedisBack, away_for=anyio.current_time() - since)


def client_of(url: str, timeout: float) -> Client:
    """A client for a URL, or `ConfigurationError`."""
    if urlsplit(url).scheme not in ("redis", "rediss", "unix"):
        raise wrong("redis", url, "a redis://, rediss:// or unix:// URL, or a coredis client", ConfigurationError)
    # Once more at once if the connection was lost: it may be an idle one that Redis has closed.
    again = ConstantRetryPolicy((DisconnectedError,), retries=1, delay=0.01)
    return coredis.Redis.from_url(url, connect_timeout=timeout, stream_timeout=timeout, retry_policy=again)


def _reason(error: Exception) -> str:
    """What may be said of an error: its class, and the code word of a refusal (`OOM`, `READONLY`, …)."""
    word = str(error).split(" ", 1)[0] if isinstance(error, ResponseError) else ""
    if word.isupper() and word.isalpha():
        return f"refuses ({word})"
    return f"does not answer ({type(error).__name__})"


class Shared(ABC):
    """An object in Redis: opened with `async with`, it visits Redis in a task of its own until it is left."""

    _what: ClassVar[str]

    def __init__(self, redis: str | Client, name: str, timeout: Seconds, on_event: RedisHook | None) -> None:
        self._link = Link.to(self._what, redis, name, timeout, on_event)
        self._stamp = Stamp()
        self._token = ""
        self._changed: anyio.Event | None = None
        self._stack: AsyncExitStack | None = None
        self._served: anyio.Event
        self._tasks: anyio.abc.TaskGroup

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._link.name!r}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} belongs to one process and cannot be pickled")

    async def __aenter__(self) -> Self:
        """Open the connection to Redis, if a URL was given, and begin to visit it."""
        if self._stack is not None:
            raise ClientStateError(f"the {type(self).__name__} is open already")
        async with AsyncExitStack() as stack:
            if self._link.owned:
                await stack.enter_async_context(self._link.client)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            self._changed, self._served = anyio.Event(), anyio.Event()
            self._token = new_token()
            self._begin()
            tasks.start_soon(self._serve)
            self._tasks, self._stack = tasks, stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell Redis what is left, and close what was opened."""
        stack, self._stack = self._stack, None
        if stack is None:
            return
        self._tasks.cancel_scope.cancel()
        try:
            with anyio.CancelScope(shield=True):
                await current().uninterrupted(self._say_farewell())
        finally:
            # Without the error, which the task group would wrap.
            await stack.__aexit__(None, None, None)

    @property
    def is_away(self) -> bool:
        """Whether Redis did not answer the last visit."""
        return self._link.away_since is not None

    def _check_open(self) -> None:
        if self._stack is None:
            raise ClientStateError(f"a {type(self).__name__} is used inside `async with` only")

    def _wake(self) -> None:
        """Let the task look at when it is due."""
        if self._changed is not None:
            self._changed.set()

    async def _serve(self) -> None:
        try:
            while True:
                while (due := self._due()) > (now := anyio.current_time()):
                    self._changed = anyio.Event()
                    with anyio.move_on_after(due - now if due < math.inf else None):
                        await self._changed.wait()
                await self._visit()
        finally:
            self._served.set()

    async def _say_farewell(self) -> None:
        """After a visit that is under way: Redis would take one that comes later for a new life."""
        with anyio.move_on_after(self._farewell()):
            await self._served.wait()
            await self._leave()

    @abstractmethod
    def _begin(self) -> None:
        """Forget an earlier life."""

    @abstractmethod
    def _due(self) -> float:
        """When the next visit is due, in seconds of the event loop's clock."""

    @abstractmethod
    async def _visit(self) -> None:
        """Go to Redis once. Raises nothing of Redis'."""

    def _farewell(self) -> float:
        """How long leaving may take, in seconds."""
        return 3 * self._link.timeout

    @abstractmethod
    async def _leave(self) -> None:
        """Say farewell. Raises nothing of Redis'."""
