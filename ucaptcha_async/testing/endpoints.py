"""The four endpoints of the JSON API, and the public table of prices.

Source: docs/api/ucaptcha/create-task, docs/api/ucaptcha/get-task-result, docs/api/ucaptcha/get-balance,
docs/api/ucaptcha/feedback-task.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal

import attrs

from .books import Books, TaskRecord
from .callbacks import Callbacks, check_public
from .desk import Desk
from .options import Options
from .refusals import RefusalError
from .wire import Answer, Scope

JSON = Mapping[str, object]

REPORTS = (
    *("reportIncorrectImageCaptcha", "reportIncorrectRecaptcha", "reportCorrectRecaptcha", "reportIncorrectHcaptcha"),
    *("reportCorrect", "reportIncorrect"),
)
"""How other services of the family take feedback."""

PRICING = "x402/pricing"
X402_RATE = Decimal("1.5")
"""What the public table of prices asks, compared with what a task costs with a key."""


@attrs.frozen(kw_only=True)
class Endpoint:
    """How one address of the service reads requests, carries them out and refuses them.

    Attributes:
        run: Carries out a request that was read, at a time.
        parse: Reads a request; None if it cannot be read.
        refuse: Makes the answer for an error code and a description; it is given the request, if it could be read.
        methods: The HTTP methods that it takes.
    """

    run: Callable[[JSON, float], Awaitable[Answer]]
    parse: Callable[[Scope, bytes], JSON | None]
    refuse: Callable[[JSON | None, str, str | None], Answer]
    methods: tuple[str, ...] = ("POST",)


@attrs.frozen
class Office:
    """What all endpoints work with.

    Attributes:
        options: The options of the service.
        books: The books.
        desk: The desk.
        callbacks: The sender of callbacks.
    """

    options: Options
    books: Books
    desk: Desk
    callbacks: Callbacks

    async def take(self, body: JSON, now: float) -> TaskRecord:
        """Take a task, with its callback."""
        key = self.desk.key_of(body)
        url = body.get("callbackUrl") or None
        if isinstance(url, str) and not self.options.allow_private_callbacks:
            await check_public(url)
        if isinstance(url, str) and not self.callbacks.running:
            raise RuntimeError("callbacks need `async with service:` around, or a server that speaks ASGI's lifespan")
        task = self.desk.create(key, body, now)
        if isinstance(url, str):
            self.callbacks.schedule(task, url)
        return task

    def ask(self, body: JSON, now: float) -> tuple[TaskRecord, str]:
        """Return a task and its status, and count the poll."""
        task = self.desk.find(self.desk.key_of(body), body, now)
        self.books.note_poll(task, now)
        return task, self.desk.status(task, now)


def parse_json(scope: Scope, raw: bytes) -> JSON | None:
    """Read a JSON object; None if it is none."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _nothing(scope: Scope, raw: bytes) -> JSON:
    return {}


class JsonApi:
    """The JSON API of the service.

    Args:
        office: What the endpoints work with.
    """

    def __init__(self, office: Office) -> None:
        self._office = office
        self._dialect = office.options.dialect

    def endpoints(self) -> dict[str, Endpoint]:
        """Return the endpoints by name."""
        handlers = {
            "createTask": self._create_task,
            "getTaskResult": self._get_task_result,
            "getBalance": self._get_balance,
            "feedbackTask": self._feedback_task,
            **(dict.fromkeys(REPORTS, self._report) if self._dialect.reports else {}),
        }
        posts = {name: Endpoint(run=run, parse=parse_json, refuse=self.refuse) for name, run in handlers.items()}
        pricing = Endpoint(run=self._pricing, parse=_nothing, refuse=self.refuse, methods=("GET",))
        return {**posts, PRICING: pricing}

    def refuse(self, body: JSON | None, code: str, description: str | None = None) -> Answer:
        """Make the answer for an error code."""
        return Answer(*self._dialect.error(code, description))

    async def _create_task(self, body: JSON, now: float) -> Answer:
        task = await self._office.take(body, now)
        shown = task if task.immediate else None
        wire_id = self._dialect.wire_id(task)
        return Answer(200, self._dialect.created(task), delivers=shown, task_id=task.id, wire_id=wire_id)

    async def _get_task_result(self, body: JSON, now: float) -> Answer:
        task, status = self._office.ask(body, now)
        http_status, value = self._dialect.result(task, status)
        return Answer(http_status, value, delivers=task if status in ("ready", "failed") else None)

    async def _get_balance(self, body: JSON, now: float) -> Answer:
        desk = self._office.desk
        return Answer(200, {"errorId": 0, "balance": float(desk.balance(desk.key_of(body)))})

    async def _pricing(self, body: JSON, now: float) -> Answer:
        """The public table of prices. That rail asks for half as much again. Source: docs/features/x402-payments."""
        prices = self._office.desk.price_list()
        return Answer(200, {"pricesUsd": {name: float(price * X402_RATE) for name, price in prices.items()}})

    async def _report(self, body: JSON, now: float) -> Answer:
        self._office.desk.find(self._office.desk.key_of(body), body, now)
        return Answer(200, {"errorId": 0, "status": "success"})

    async def _feedback_task(self, body: JSON, now: float) -> Answer:
        desk = self._office.desk
        task = desk.find(desk.key_of(body), body, now)
        result = body.get("result")
        if not isinstance(result, dict):
            raise RefusalError("ERROR_BAD_PARAMETERS", "result must be an object.")
        desk.feedback(task, result)
        return Answer(200, {"errorId": 0, "message": "Feedback recorded."})
