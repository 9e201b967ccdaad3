"""The local service: a uCaptcha that runs on your own machine, as a plain ASGI app.

Source: docs/api/overview, docs/api/ucaptcha/create-task, docs/api/ucaptcha/get-task-result,
docs/api/ucaptcha/get-balance, docs/api/ucaptcha/feedback-task, docs/api/error-codes.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from decimal import Decimal

import anyio
import attrs

from .books import Books
from .desk import Desk
from .faults import Fault, Faults
from .options import Options
from .refusals import RefusalError
from .wire import Answer, Clock, Receive, Scope, Send, cut_connection, read_body, send_answer

JSON = Mapping[str, object]


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
    _seen: tuple[int, float] = attrs.field(init=False, default=(0, 0.0), repr=False)
    _endpoints: dict[str, Callable[[JSON, float], Answer]] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.faults = Faults(self.fault_rates)
        self._books = Books(detail=self.books_detail, clock=self._now)
        self._desk = Desk(self, self._books)
        self._clock = Clock(self.epoch, self.clock_skew)
        self._endpoints = {
            "createTask": self._create_task,
            "getTaskResult": self._get_task_result,
            "getBalance": self._get_balance,
            "feedbackTask": self._feedback_task,
        }

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
            type: Only tasks of this type.
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
            type: Only tasks of this type.
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

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_body(receive)
        if raw is None:
            return
        endpoint = scope["path"].strip("/")
        if endpoint in ("books", "favicon.ico"):
            await send_answer(send, self._show_books(scope), ())
            return
        now = anyio.current_time()
        self._seen = threading.get_ident(), now
        wall = self._clock.wall(now)
        remaining = self._count(scope, wall)
        answer = self._answer(endpoint, scope["method"], raw, now, allowed=remaining >= 0)
        latency = self.latency(endpoint) if callable(self.latency) else self.latency
        if latency + answer.delay > 0:
            await anyio.sleep(latency + answer.delay)
        await self._send(scope, receive, send, answer, self._limits(answer, wall, max(remaining, 0)))

    async def _send(
        self, scope: Scope, receive: Receive, send: Send, answer: Answer, headers: list[tuple[bytes, bytes]]
    ) -> None:
        if answer.cut is not None:
            if answer.cut == "during":
                await send_answer(send, answer, headers, half=True)
            await cut_connection(scope, receive, self.drop_error)
            return
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

    # The endpoints

    def _answer(self, endpoint: str, method: str, raw: bytes, now: float, *, allowed: bool) -> Answer:
        body = _parse(raw)
        asked = _task_id(body)
        fault: Fault | None = None
        if allowed:
            fault = self.faults.pick(endpoint, asked, self._type_of(body, asked))
            processed = fault is None or fault.processed
            answer = self._process(endpoint, method, body, now) if processed else Answer()
        else:
            answer = self._refusal("ERROR_TOO_MUCH_REQUESTS")
        task_id = asked or answer.task_id
        if fault is not None:
            answer = fault.spoil(answer)
            answer.delay += fault.delay
        key = self._desk.fingerprint(body.get("clientKey")) if body is not None else None
        self._books.note_request(now, endpoint, 0 if answer.cut == "before" else answer.status, task_id, key)
        return answer

    def _process(self, endpoint: str, method: str, body: JSON | None, now: float) -> Answer:
        handler = self._endpoints.get(endpoint)
        if handler is None:
            return self._refusal("ERROR_NO_SUCH_METHOD")
        if method != "POST":
            answer = self._refusal("ERROR_NO_SUCH_METHOD")
            return attrs.evolve(answer, status=405, headers=(("allow", "POST"),))
        if body is None:
            return self._refusal("ERROR_BAD_PARAMETERS", "The body must be a JSON object.")
        try:
            return handler(body, now)
        except RefusalError as refusal:
            return self._refusal(refusal.code, refusal.description)

    def _refusal(self, code: str, description: str | None = None) -> Answer:
        return Answer(*self.dialect.error(code, description))

    def _create_task(self, body: JSON, now: float) -> Answer:
        task = self._desk.create(self._desk.key_of(body), body, now)
        return Answer(200, self.dialect.created(task), delivers=task if task.immediate else None, task_id=task.id)

    def _get_task_result(self, body: JSON, now: float) -> Answer:
        task = self._desk.find(self._desk.key_of(body), body, now)
        self._books.note_poll(task, now)
        status, value = self.dialect.result(task, self._desk.status(task, now))
        return Answer(status, value, delivers=task if now >= task.ready_at else None)

    def _get_balance(self, body: JSON, now: float) -> Answer:
        balance = self._desk.balance(self._desk.key_of(body))
        return Answer(200, {"errorId": 0, "balance": float(balance)})

    def _feedback_task(self, body: JSON, now: float) -> Answer:
        task = self._desk.find(self._desk.key_of(body), body, now)
        self._desk.feedback(task, body.get("result"))
        return Answer(200, {"errorId": 0, "message": "Feedback recorded."})

    def _type_of(self, body: JSON | None, task_id: str | None) -> str | None:
        if task_id is not None and task_id in self._books.tasks:
            return self._books.tasks[task_id].type
        task = body.get("task") if body is not None else None
        name = task.get("type") if isinstance(task, dict) else None
        return name if isinstance(name, str) else None

    def _show_books(self, scope: Scope) -> Answer:
        full = b"full=1" in scope.get("query_string", b"")
        return Answer(200, self._books.as_json(full=full))


def _parse(raw: bytes) -> JSON | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _task_id(body: JSON | None) -> str | None:
    value = body.get("taskId") if body is not None else None
    return None if value is None else str(value)
