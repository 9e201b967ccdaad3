"""The four endpoints: typed in, typed out, errors by code.

Every request passes through here once: paced, sent, heard by the limiter, understood. Nothing is retried here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import attrs

from ucaptcha_async.errors import APIConnectionError, ProtocolError, UCaptchaError, UnsolvableError
from ucaptcha_async.json_values import SecretMapping
from ucaptcha_async.pacing import Limiter
from ucaptcha_async.results import Status
from ucaptcha_async.secrecy import SecretBytes, SecretStr, redact, spellings, without_frames

from .error_codes import CODES, INTERNAL, PENDING_CODES, by_status, error_for
from .old_exchange import Departure, Http, Reply, Sending, UnansweredError

JSON = dict[str, Any]

_encode = json.JSONEncoder(separators=(",", ":")).encode


def _decimal(text: str) -> Decimal:
    """A number with a point or an exponent; an exponent beyond all bounds must not make the answer unreadable."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("NaN")


_decode = json.JSONDecoder(parse_float=_decimal).decode

DEEPEST = 64
"""Levels of lists and objects that are kept of an answer: none of the protocol has more than a few."""

WORDS = frozenset({*Status, *CODES, *PENDING_CODES, *INTERNAL})
"""The words that are known not to hold a secret."""

REMEMBERED = 1_000
"""Secrets of earlier tasks, in each spelling, that are kept, to be taken out of the service's words."""

MOST = Decimal(10) ** 12
"""The largest amount of money or time that is believed: sums must not overflow."""


@attrs.frozen(kw_only=True)
class Answer:
    """What the service says of a task: the answer of `createTask` and of `getTaskResult` alike.

    Attributes:
        task_id: The id, if the answer has one.
        status: `idle`, `processing`, `ready`, `failed`, or a word that nobody has seen yet.
        solution: The `solution` as it came, whatever its type. Never shown.
        cost: USD, if the answer has it.
        solve_time: Seconds, if the answer has it.
        error_code: With `failed`.
        error_description: With `failed`.
        sent_at: When the request left, in seconds of the event loop's clock.
        received_at: When the answer was complete.
        raw: The whole answer, with numbers as `Decimal`. Never shown.
    """

    task_id: str | None
    status: str
    solution: Any = attrs.field(repr=False)
    cost: Decimal | None
    solve_time: float | None
    error_code: str | None
    error_description: str | None
    sent_at: float
    received_at: float
    raw: JSON = attrs.field(repr=False)


class Unreadable(ProtocolError):  # noqa: N818 - a detail of this package: callers see ProtocolError
    """The answer came whole and is not the protocol's. For a submit this leaves its fate open."""


@attrs.define(eq=False)
class Api:
    """The JSON API of one account. Source: docs/api/overview."""

    limiter: Limiter
    _key: SecretStr
    http: Http | None = None
    requests: int = 0
    throttled: int = 0
    _secrets: dict[str, None] = attrs.field(factory=dict, init=False, repr=False)

    async def create_task(
        self,
        task: Mapping[str, Any],
        *,
        sending: Sending,
        secrets: tuple[str, ...] = (),
        **options: str | None,
    ) -> Answer:
        """`POST /createTask`. Source: docs/api/ucaptcha/create-task.

        Args:
            task: The task object.
            sending: Learns whether the request was sent.
            secrets: Values in the task that no error may show, of this request or a later one.
            options: `callbackUrl`, `selectionMode`, `provider`: sent when not `None`.
        """
        chosen = {name: value for name, value in options.items() if value is not None}
        self._remember(secrets)
        return self._answer(*await self._call("/createTask", {"task": SecretMapping(task), **chosen}, sending=sending))

    async def get_task_result(self, task_id: str, departing: Callable[[], None] | None = None) -> Answer:
        """`POST /getTaskResult`. Source: docs/api/ucaptcha/get-task-result.

        Args:
            task_id: The task.
            departing: Called when the request departs.
        """
        fields = {"taskId": wire_id(task_id)}
        return self._answer(*await self._call("/getTaskResult", fields, task_id=task_id, departing=departing))

    async def get_balance(self) -> Decimal:
        """`POST /getBalance`, in USD. Source: docs/api/ucaptcha/get-balance."""
        body, _ = await self._call("/getBalance", {})
        balance = _money(body.get("balance"))
        if balance is None:
            raise ProtocolError("getBalance answered without a balance")
        return balance

    async def feedback(self, task_id: str, result: Mapping[str, Any]) -> str:
        """`POST /feedbackTask`. Source: docs/api/ucaptcha/feedback-task."""
        body, _ = await self._call("/feedbackTask", {"taskId": wire_id(task_id), "result": result}, task_id=task_id)
        message = body.get("message")
        return self._clean(message) if isinstance(message, str) else ""

    async def _call(
        self,
        path: str,
        fields: Mapping[str, Any],
        *,
        task_id: str | None = None,
        sending: Sending | None = None,
        departing: Callable[[], None] | None = None,
    ) -> tuple[JSON, Reply]:
        body = SecretBytes(_encode({"clientKey": self._key, **fields}).encode())
        reply, departure = None, Departure(self.limiter, sending, departing)
        assert self.http is not None
        try:
            reply = await self.http.post(path, body, departure)
        except UnansweredError as error:
            message = f"{path.removeprefix('/')}: {self._clean(error.reason)}"
            failure = APIConnectionError(message, task_id=task_id)
            raise failure from without_frames(error).__cause__
        finally:
            if departure.given:
                self.requests += 1
                self._tell_limiter(reply)
        assert reply is not None
        try:
            return self._understand(reply, path, task_id), reply
        except UCaptchaError as error:
            error.retry_after = _seconds(reply.headers.get("retry-after"))
            raise

    def _tell_limiter(self, reply: Reply | None) -> None:
        if reply is None:
            self.limiter.lost()
        else:
            self.throttled += reply.status == 429
            self.limiter.observe(reply.status, reply.headers, sent_at=reply.sent_at, received_at=reply.received_at)

    def _understand(self, reply: Reply, path: str, task_id: str | None) -> JSON:
        body = _object(reply.content)
        if body is not None:
            code, told = self._word(body, "errorCode"), self._told(body)
            given = _id(body.get("taskId"))
            task_id = task_id or given
            if code in PENDING_CODES:
                return SecretMapping(status="processing", taskId=given)
            if body.get("errorId") or (code and reply.status >= 400):
                # Judged by the code as it came: a password that is a part of it must not change what it means.
                error = error_for(_text(body.get("errorCode")), reply.status, told or "", task_id=task_id)
                error.error_code = code
                raise error
            if given is not None or body.get("solution"):
                # What is paid for must not be lost to an odd HTTP status.
                return body
        if reply.status >= 300:
            raise by_status(reply.status, f"{path.removeprefix('/')} answered HTTP {reply.status}", task_id=task_id)
        if body is None:
            raise Unreadable(
                f"{path.removeprefix('/')} answered with something that is not a JSON object", task_id=task_id
            )
        return body

    def _answer(self, body: JSON, reply: Reply) -> Answer:
        status, solution = self._word(body, "status"), body.get("solution")
        if status is None:
            # Some services of the family leave the status out: a solution says enough.
            status = "ready" if isinstance(solution, dict | str) and solution else "processing"
        milliseconds = _money(body.get("solveTime"))
        return Answer(
            task_id=_id(body.get("taskId")),
            status=status,
            solution=plain(solution),
            cost=_money(body.get("cost")),
            solve_time=None if milliseconds is None else float(milliseconds) / 1000,
            error_code=self._word(body, "errorCode"),
            error_description=self._told(body),
            sent_at=reply.sent_at,
            received_at=reply.received_at,
            raw=body,
        )

    def _word(self, body: JSON, name: str) -> str | None:
        """A word of the protocol. One that nobody knows may hold anything."""
        word = body.get(name)
        if not isinstance(word, str):
            return None
        return word if word in WORDS else self._clean(word)

    def _told(self, body: JSON) -> str | None:
        text = body.get("errorDescription")
        return self._clean(text) if isinstance(text, str) else None

    def _remember(self, secrets: tuple[str, ...]) -> None:
        """Keep what a later answer may repeat: the newest thousand, as most tasks have the same."""
        for secret in secrets:
            for spelling in spellings(secret):
                self._secrets.pop(spelling, None)
                self._secrets[spelling] = None
        while len(self._secrets) > REMEMBERED:
            del self._secrets[next(iter(self._secrets))]

    def _clean(self, text: str) -> str:
        return redact(text, (self._key, *self._secrets))


def wire_id(task_id: str) -> str | int:
    """Services of the family with integer ids want them back as integers; uCaptcha's are UUIDs."""
    return int(task_id) if task_id.isdecimal() and len(task_id) < 19 else task_id


def _seconds(text: str | None) -> float | None:
    """`Retry-After` as seconds. Its other form, a date, is for the limiter, which knows the service's clock."""
    return float(text) if text is not None and text.isdecimal() and len(text) < 6 else None


def _object(content: bytes) -> JSON | None:
    try:
        body = _decode(content.decode())
    except (ValueError, RecursionError):
        return None
    return SecretMapping(body) if isinstance(body, dict) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _id(value: object) -> str | None:
    known = isinstance(value, str | int) and not isinstance(value, bool) and value != ""
    return str(value) if known else None


def _money(value: object) -> Decimal | None:
    """Read a number or a string as a `Decimal` from 0 to `MOST`; anything else is as good as absent."""
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() and 0 <= number <= MOST else None


def plain(value: Any, depth: int = 0) -> Any:
    """JSON as callers know it: money has been read, so that other numbers may be floats again."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict | list) and depth >= DEEPEST:
        return None
    if isinstance(value, dict):
        return {key: plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in value]
    return value


def is_fault(error: UCaptchaError) -> bool:
    """Whether a failed poll says nothing of the task, so that it is only a late poll."""
    if isinstance(error, UnsolvableError):  # retryable by a new task only: this one has ended
        return False
    return isinstance(error, APIConnectionError | Unreadable) or error.retryable
