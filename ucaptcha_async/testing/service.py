"""The local service: a uCaptcha that runs on your own machine, as a plain ASGI app.

Source: docs/api/overview, docs/api/ucaptcha/create-task, docs/api/ucaptcha/get-task-result,
docs/api/ucaptcha/get-balance, docs/api/ucaptcha/feedback-task, docs/api/error-codes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from decimal import Decimal
from types import TracebackType
from typing import Self

import anyio
import anyio.abc
import attrs

from .books import Books
from .callbacks import Callbacks
from .control import control
from .desk import Desk
from .endpoints import Endpoint, JsonApi, Office, parse_json
from .faults import Fault
from .options import Options
from .refusals import RefusalError
from .scripts import Faults
from .wire import Answer, Clock, Receive, Scope, Send, cut_connection, read_body, send_answer, send_with_extra

JSON = Mapping[str, object]

_BACK_DOORS = frozenset({"books", "control", "favicon.ico"})


@attrs.define(eq=False, kw_only=True)
class LocalService(Options):
    """A uCaptcha of your own: an ASGI app that answers as the documentation says, and keeps books.

    Use it in-process with `httpx.ASGITransport(app=service)`, or on a real socket with `Server`, `running_service` or
    `python -m ucaptcha_async.testing`. All options are keywords; `Options` describes them. Time is that of the event
    loop (`anyio.current_time()`), so virtual clocks work.

    Attributes:
        faults: The faults that wait for requests.
    """

    faults: Faults = attrs.field(init=False, repr=False)
    _books: Books = attrs.field(init=False, repr=False)
    _desk: Desk = attrs.field(init=False, repr=False)
    _clock: Clock = attrs.field(init=False, repr=False)
    _windows: dict[str, list[int]] = attrs.field(init=False, factory=dict, repr=False)
    _seen: list[float] = attrs.field(init=False, factory=lambda: [0, 0.0], repr=False)
    _callbacks: Callbacks = attrs.field(init=False, repr=False)
    _endpoints: dict[str, Endpoint] = attrs.field(init=False, repr=False)
    _unknown: Endpoint = attrs.field(init=False, repr=False)
    _group: anyio.abc.TaskGroup = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._books = Books(detail=self.books_detail, clock=self._now)
        self._desk = Desk(self, self._books)
        self._clock = Clock(self.epoch, self.clock_skew)
        self._callbacks = Callbacks(self._books, self.callback_plan, self.callback_sender)
        office = Office(self, self._books, self._desk, self._callbacks)
        api = JsonApi(office)
        self._endpoints = {**api.endpoints(), **self.more_endpoints(office)}
        self.faults = Faults(self.fault_rates, self._endpoints)
        every = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
        self._unknown = Endpoint(run=self._no_such_method, parse=parse_json, refuse=api.refuse, methods=every)

    def more_endpoints(self, office: Office) -> Mapping[str, Endpoint]:
        """Return further endpoints, for a service that is built on this one."""
        return {}

    # What a test says and asks

    @property
    def books(self) -> Books:
        """The books: what was asked, charged and refunded."""
        return self._books

    def script(self, endpoint: str, *faults: Fault, task_id: str | None = None, task_type: str | None = None) -> None:
        """Let the next matching requests meet these faults, one after the other; see `Faults.script`."""
        self.faults.script(endpoint, *faults, task_id=task_id, task_type=task_type)

    def solve_next(
        self,
        *,
        type: str | None = None,
        solution: Mapping[str, object] | None = None,
        after: float | None = None,
        times: int = 1,
    ) -> None:
        """Decide how the next tasks are solved.

        Args:
            type: Only tasks of this kind, by any name of it.
            solution: The solution; None for one as usual.
            after: The solve time, in seconds; None for one as usual.
            times: How many tasks.
        """
        self._desk.plan(type=type, solution=solution, after=after, times=times)

    def fail_next(
        self,
        error_code: str = "ERROR_CAPTCHA_UNSOLVABLE",
        *,
        type: str | None = None,
        after: float | None = None,
        times: int = 1,
    ) -> None:
        """Let the next tasks fail.

        Args:
            error_code: The error code that they fail with.
            type: Only tasks of this kind, by any name of it.
            after: When, in seconds after they were created; None for a time as usual.
            times: How many tasks.
        """
        self._desk.plan(type=type, error=error_code, after=after, times=times)

    def get_balance(self, key: str) -> Decimal:
        """Return what is on the account of a key, in USD."""
        return self._desk.balance(key)

    def set_balance(self, key: str, balance: Decimal | int | str) -> None:
        """Set what is on the account of a key, in USD."""
        self._desk.set_balance(key, Decimal(balance))

    def fingerprint(self, key: str) -> str:
        """Return the text that stands for an API key in the books."""
        return self._desk.fingerprint(key) or ""

    def _now(self) -> float:
        """The time; where no event loop of ours runs, that of the last request."""
        thread, last = self._seen
        if thread != threading.get_ident():
            return last
        try:
            return anyio.current_time()
        except RuntimeError:
            return last

    # ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI protocol: `http` or `lifespan`."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise ValueError(f"this app does not speak {scope['type']}")

    async def __aenter__(self) -> Self:
        """Begin to send callbacks; only those need it."""
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        await self._group.start(self._callbacks.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(None, None, None)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_body(receive)
        if raw is None:
            return
        name = scope["path"].strip("/")
        if name in _BACK_DOORS:
            await send_answer(send, self._back_door(name, scope, raw), ())
            return
        now = anyio.current_time()
        self._seen[:] = threading.get_ident(), now
        wall = self._clock.wall(now)
        remaining = self._count(scope, wall)
        answer = await self._answer(name, scope, raw, now, allowed=remaining >= 0)
        latency = self.latency(name) if callable(self.latency) else self.latency
        if latency + answer.delay > 0:
            await anyio.sleep(latency + answer.delay)
        await self._send(scope, receive, send, answer, self._limits(answer, wall, max(remaining, 0)))

    def _back_door(self, name: str, scope: Scope, raw: bytes) -> Answer:
        if name == "control":
            return Answer(200, control(self, raw))
        if name == "books":
            return Answer(200, self._books.as_json(full=b"full=1" in scope.get("query_string", b"")))
        return Answer(404, body=b"")

    async def _send(
        self, scope: Scope, receive: Receive, send: Send, answer: Answer, headers: list[tuple[bytes, bytes]]
    ) -> None:
        if answer.cut is not None:
            if answer.cut == "during":
                await send_answer(send, answer, headers, half=True)
            await cut_connection(scope, receive, self.drop_error)
            return
        if answer.extra is not None:
            await send_with_extra(scope, send, answer, answer.extra, headers)
        else:
            await send_answer(send, answer, headers)
        task = answer.delivers
        if task is not None and task.first_delivered_at is None:
            task.first_delivered_at = anyio.current_time()

    # The rate limit

    def _count(self, scope: Scope, wall: float) -> int:
        """Count a request in its address's window and return how many are left; negative if it is one too many."""
        client = scope.get("client")
        window = self._windows.setdefault(client[0] if client else "", [0, 0])
        index = int(wall // self.rate_window)
        if window[0] != index:
            window[:] = [index, 0]
        window[1] += 1
        return self.rate_limit - window[1]

    def _limits(self, answer: Answer, wall: float, remaining: int) -> list[tuple[bytes, bytes]]:
        if not answer.limits:
            return []
        reset = (int(wall // self.rate_window) + 1) * self.rate_window
        if answer.reset_in is not None:
            reset = wall + answer.reset_in
        return [
            (b"date", self._clock.date(wall)),
            (b"x-ratelimit-limit", b"%d" % self.rate_limit),
            (b"x-ratelimit-remaining", b"%d" % (remaining if answer.remaining is None else answer.remaining)),
            (b"x-ratelimit-reset", b"%d" % math.ceil(reset)),
        ]

    # The way of a request

    async def _answer(self, name: str, scope: Scope, raw: bytes, now: float, *, allowed: bool) -> Answer:
        endpoint = self._endpoints.get(name, self._unknown)
        body = endpoint.parse(scope, raw)
        asked = _task_id(body)
        fault: Fault | None = None
        if allowed:
            fault = self.faults.pick(name, asked, self._type_of(body, asked))
            processed = fault is None or fault.processed
            answer = await _process(endpoint, scope["method"], body, now) if processed else Answer()
        else:
            answer = endpoint.refuse(body, "ERROR_TOO_MUCH_REQUESTS", None)
        task_id = asked or answer.task_id
        if asked is not None and body is not None:
            answer.wire_id = body["taskId"]
        if fault is not None:
            answer = fault.spoil(answer)
            answer.delay += fault.delay
        key = self._desk.fingerprint(body.get("clientKey")) if body is not None else None
        self._books.note_request(now, name, 0 if answer.cut == "before" else answer.status, task_id, key)
        return answer

    async def _no_such_method(self, body: JSON, now: float) -> Answer:
        raise RefusalError("ERROR_NO_SUCH_METHOD")

    def _type_of(self, body: JSON | None, task_id: str | None) -> str | None:
        if task_id is not None and task_id in self._books.tasks:
            return self._books.tasks[task_id].type
        task = body.get("task") if body is not None else None
        name = task.get("type") if isinstance(task, dict) else None
        return name if isinstance(name, str) else None


async def _process(endpoint: Endpoint, method: str, body: JSON | None, now: float) -> Answer:
    """Carry out a request."""
    if method not in endpoint.methods:
        answer = endpoint.refuse(body, "ERROR_NO_SUCH_METHOD", None)
        answer.status, answer.headers = 405, (("allow", ", ".join(endpoint.methods)),)
        return answer
    if body is None:
        return endpoint.refuse(body, "ERROR_BAD_PARAMETERS", "The body must be a JSON object.")
    try:
        return await endpoint.run(body, now)
    except RefusalError as refusal:
        return endpoint.refuse(body, refusal.code, refusal.description)


def _task_id(body: JSON | None) -> str | None:
    value = body.get("taskId") if body is not None else None
    return None if value is None else str(value)
