"""Telling clients by HTTP that a task is finished. Source: docs/api/callbacks."""

from __future__ import annotations

import heapq
import ipaddress
import random
import socket
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import anyio
import anyio.abc
import attrs

from .books import Books, CallbackRecord, TaskRecord
from .refusals import RefusalError

SEND_TIMEOUT = 10.0
"""After how long the sender gives up, in seconds. Source: docs/api/callbacks."""

MOST_AT_ONCE = 64

Sender = Callable[[str], Awaitable[int]]

_share = attrs.validators.and_(attrs.validators.ge(0.0), attrs.validators.le(1.0))


@attrs.frozen(kw_only=True)
class CallbackPlan:
    """What happens to callbacks on their way.

    Attributes:
        loss: The share that is not sent at all.
        delay: How late the others are, in seconds.
        repeat: How often each is sent.
        seed: The seed that decides which are lost.
    """

    loss: float = attrs.field(default=0.0, validator=_share)
    delay: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    repeat: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    seed: int = 0


def callback_url(url: str, task: TaskRecord) -> str:
    """Return the URL that tells of a task: `captcha_id`, `status`, and `code` if it is solved."""
    parts = urlsplit(url)
    fields = {"captcha_id": task.id, "status": "0" if task.error_code else "1"}
    if task.error_code is None:
        fields["code"] = task.code
    query = urlencode(fields, quote_via=quote)
    return parts._replace(query=f"{parts.query}&{query}" if parts.query else query, fragment="").geturl()


async def check_public(url: str) -> None:
    """Refuse a callback URL that does not lead to a public address, names included.

    Raises:
        RefusalError: If it does not. The page does not say with which code; `ERROR_BAD_PARAMETERS` is an assumption.
    """
    host = _split(url).hostname or ""
    addresses = [host] if _is_address(host) else await _resolve(host)
    if not addresses or not all(ipaddress.ip_address(address).is_global for address in addresses):
        raise RefusalError("ERROR_BAD_PARAMETERS", "callbackUrl must lead to a public address.")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass
    raise RefusalError("ERROR_BAD_PARAMETERS", "callbackUrl must be a fully qualified URL.")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _resolve(host: str) -> list[str]:
    if host == "localhost" or host.endswith(".localhost"):
        return ["127.0.0.1"]
    try:
        found = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(entry[4][0]) for entry in found]


async def send_get(url: str) -> int:
    """Send a GET and return the HTTP status of the answer. Redirects are not followed.

    Raises:
        OSError: If there is no connection.
        TimeoutError: If it takes longer than 10 s.
        ValueError: If the answer is not HTTP.
    """
    parts = urlsplit(url)
    host, tls = parts.hostname or "", parts.scheme == "https"
    target = f"{parts.path or '/'}?{parts.query}"
    request = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\nConnection: close\r\n\r\n"
    with anyio.fail_after(SEND_TIMEOUT):
        stream: anyio.abc.ByteStream
        if tls:
            stream = await anyio.connect_tcp(host, parts.port or 443, tls=True, tls_standard_compatible=False)
        else:
            stream = await anyio.connect_tcp(host, parts.port or 80)
        async with stream:
            await stream.send(request.encode("ascii"))
            return _status(await _first_line(stream))


async def _first_line(stream: anyio.abc.ByteReceiveStream) -> bytes:
    head = b""
    while b"\r\n" not in head and len(head) < 8192:
        head += await stream.receive()
    return head.partition(b"\r\n")[0]


def _status(line: bytes) -> int:
    words = line.split(b" ", 2)
    if not words[0].startswith(b"HTTP/") or len(words) < 2:
        raise ValueError("the answer is not HTTP")
    return int(words[1])


class Callbacks:
    """Sends callbacks when their tasks are finished, for as long as `run` runs.

    Args:
        books: The books to write in.
        plan: What happens to the callbacks.
        sender: Sends one.
    """

    def __init__(self, books: Books, plan: CallbackPlan | None, sender: Sender | None) -> None:
        self._books = books
        self._plan = plan or CallbackPlan()
        self._sender = sender or send_get
        self._rng = random.Random(f"{self._plan.seed}:callbacks")
        self._due: list[tuple[float, int, TaskRecord, str]] = []
        self._count = 0
        self._wake: anyio.Event | None = None

    @property
    def running(self) -> bool:
        """Whether callbacks can be sent."""
        return self._wake is not None

    def schedule(self, task: TaskRecord, url: str) -> None:
        """Send a callback when the task is finished."""
        if self._wake is None:
            raise RuntimeError("callbacks need `async with service:` around, or a server that speaks ASGI's lifespan")
        if self._rng.random() < self._plan.loss:
            self._books.callbacks.append(CallbackRecord(task.ready_at, task.id, "lost"))
            return
        for _ in range(self._plan.repeat):
            self._count += 1
            heapq.heappush(self._due, (task.ready_at + self._plan.delay, self._count, task, url))
        self._wake.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Send what is due, for ever."""
        limiter = anyio.CapacityLimiter(MOST_AT_ONCE)
        self._wake = anyio.Event()
        task_status.started()
        try:
            async with anyio.create_task_group() as group:
                while True:
                    self._wake = anyio.Event()
                    for task, url in self._take_due(anyio.current_time()):
                        group.start_soon(self._deliver, limiter, task, url)
                    with anyio.CancelScope(deadline=self._due[0][0] if self._due else float("inf")):
                        await self._wake.wait()
        finally:
            self._wake = None

    def _take_due(self, now: float) -> Iterable[tuple[TaskRecord, str]]:
        while self._due and self._due[0][0] <= now:
            _, _, task, url = heapq.heappop(self._due)
            yield task, url

    async def _deliver(self, limiter: anyio.CapacityLimiter, task: TaskRecord, url: str) -> None:
        async with limiter:
            try:
                status = await self._sender(callback_url(url, task))
            except Exception:
                status = 0
        outcome = "delivered" if 200 <= status < 300 else "failed"
        self._books.callbacks.append(CallbackRecord(anyio.current_time(), task.id, outcome))
