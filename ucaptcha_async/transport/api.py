"""The four endpoints: typed in, typed out, errors by code.

Every request passes through here once: built, sent, heard by the limiter, understood. Nothing is retried here.
"""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import attrs

from ucaptcha_async.errors import APIConnectionError, ProtocolError, UCaptchaError
from ucaptcha_async.json_values import NumericId, wire_id
from ucaptcha_async.pacing import Limiter
from ucaptcha_async.pacing.quota import Reading
from ucaptcha_async.results import Status
from ucaptcha_async.secrecy import SecretBytes, SecretMapping, SecretStr

from .error_codes import CODES, INTERNAL, PENDING_CODES, by_status, error_for, is_pending
from .exchange import Clock, Exchange, Reply, Sender, UnansweredError

logger = logging.getLogger("ucaptcha_async")

_encode = json.JSONEncoder(separators=(",", ":")).encode


def _decimal(text: str) -> Decimal:
    """A number with a point or an exponent; an exponent beyond all bounds must not make the answer unreadable."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("NaN")


def _whole(text: str) -> int | str:
    """A number without a point; one of thousands of digits, which Python does not read, stays the text that it is."""
    try:
        return int(text)
    except ValueError:
        return text


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which a name stands twice: `"taskId": "t-1", "taskId": null` must not cost the id."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if value or name not in found:
            found[name] = value
    return found


# Not strict: a line break in a description breaks nothing.
_decode = json.JSONDecoder(parse_float=_decimal, parse_int=_whole, strict=False).decode
_decode_with_care = json.JSONDecoder(
    parse_float=_decimal, parse_int=_whole, strict=False, object_pairs_hook=_each_once
).decode

DEEPEST = 64
"""Levels of lists and objects that are kept of an answer: none of the protocol has more than a few."""

WORDS = frozenset({*Status, *CODES, *PENDING_CODES, *INTERNAL})
"""The words that are known not to hold a secret."""

MOST = Decimal(10) ** 12
"""The largest amount of money or time that is believed: sums must not overflow."""

READY_WORDS = frozenset({"completed", "success"})
"""Other words of the family for `ready`, where a solution comes with them."""

NO_ERROR = frozenset({"", "0", "0.0", "SUCCESS", "OK", "NONE", "NULL", "FALSE"})
"""Texts in `errorId` that mean no error."""

TASK_FIELDS = frozenset({"taskid", "captchaid"})
"""The fields that name a task, in lower case and without underscores: the family spells them in several ways."""

_STATUSES = frozenset(map(str, Status))

_TASK_ID = re.compile(r'"taskId"\s*:\s*("(?:[^"\\]|\\.)*"|-?[0-9]+(?=[\s,}]))')
"""A task's id that came whole."""

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


POLL = "/getTaskResult"

ABOUT_A_TASK = ("/createTask", POLL)
"""The paths whose answers decide about a paid task: JSON that is not the protocol's proves nothing there."""


@attrs.define(eq=False)
class Answer:
    """What the service says of a task: the answer of `createTask` and of `getTaskResult` alike.

    Attributes:
        task_id: The id, if the answer names a task. As it came: a number is a `NumericId`.
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
    raw: Mapping[str, Any] = attrs.field(repr=False)


class Unreadable(ProtocolError):  # noqa: N818 - a detail of this package: callers see ProtocolError
    """The answer came whole and is not the protocol's. For a submit this leaves its fate open."""


class WrongTask(APIConnectionError):  # noqa: N818 - a detail of this package: callers see APIConnectionError
    """The answer names another task than was asked for: it may be another request's.

    Attributes:
        named: The task that it names.
    """

    named: str = ""


@attrs.define(eq=False)
class Api:
    """The JSON API of one account. Source: docs/api/overview.

    Attributes:
        limiter: Paces the requests.
        timeout: Seconds for one request, from its departure.
        clock: The event loop's clock, once the client is entered.
        sender: The way for requests, once the client is entered.
        is_known: Whether an id, that came with a connection's first answer or a later one (as in `Reply`), is that of
            another task of this client, so that no task that was just made can have it.
        requests: Requests that departed.
        throttled: Answers with HTTP 429.
    """

    limiter: Limiter
    timeout: float
    _key: SecretStr
    clock: Clock = attrs.field(init=False)
    sender: Sender = attrs.field(init=False)
    is_known: Callable[[str, bool | None], bool] = lambda task_id, first: False
    requests: int = 0
    throttled: int = 0
    _told: set[str] = attrs.field(factory=set, init=False)
    # The latest answer which said no more than that a task goes on: most polls are answered so, byte for byte.
    _pending: tuple[bytes, Answer] | None = attrs.field(default=None, init=False, repr=False)

    # --- questions ----------------------------------------------------------------------------------------------------

    def create_task(self, task: Mapping[str, Any], options: Mapping[str, str], secrets: tuple[str, ...]) -> Exchange:
        """`POST /createTask`. Source: docs/api/ucaptcha/create-task.

        Args:
            task: The task object.
            options: `callbackUrl`, `selectionMode`, `provider`: those that are set.
            secrets: Values in the task that no error may show.
        """
        exchange = self._exchange("/createTask", {"task": task, **options}, secrets)
        exchange.submit = True
        return exchange

    def get_task_result(self, task_id: str, secrets: tuple[str, ...] = ()) -> Exchange:
        """`POST /getTaskResult`. Source: docs/api/ucaptcha/get-task-result.

        Args:
            task_id: The task.
            secrets: Values in the task that no error may show: the answer may repeat them.
        """
        exchange = self._exchange("/getTaskResult", {"taskId": wire_id(task_id)}, secrets)
        exchange.task_id = task_id
        return exchange

    async def get_balance(self) -> Decimal:
        """`POST /getBalance`, in USD. Source: docs/api/ucaptcha/get-balance."""
        answer = await self.ask(self._exchange("/getBalance", {}))
        balance = _money(answer.raw.get("balance"))
        if balance is None:
            raise ProtocolError("getBalance answered without a balance")
        return balance

    async def feedback(self, task_id: str, result: Mapping[str, Any], secrets: tuple[str, ...] = ()) -> str:
        """`POST /feedbackTask`. Source: docs/api/ucaptcha/feedback-task."""
        exchange = self._exchange("/feedbackTask", {"taskId": wire_id(task_id), "result": result}, secrets)
        exchange.task_id = task_id
        message = (await self.ask(exchange)).raw.get("message")
        return exchange.clean(message) if isinstance(message, str) else ""

    def _exchange(self, path: str, fields: Mapping[str, Any], secrets: tuple[str, ...] = ()) -> Exchange:
        # Value by value: the encoder writes a text at once, and sets itself up anew for each mapping.
        more = "".join([f',"{name}":{_encode(value)}' for name, value in fields.items()])
        body = SecretBytes(f'{{"clientKey":{_encode(self._key)}{more}}}', "ascii")
        return Exchange(path, body, self.limiter, self.clock, self.timeout, secrets=(self._key, *secrets))

    # --- answers ------------------------------------------------------------------------------------------------------

    async def ask(self, exchange: Exchange, believed: str | None = None) -> Answer:
        """Send a question about a task and understand the answer.

        Args:
            exchange: The question.
            believed: Another task that the service is known to name in the answers to this one.

        Raises:
            APIConnectionError: No answer came, or another request's.
            UCaptchaError: The service refuses, or its answer is not the protocol's.
        """
        failure = body = pending = None
        try:
            await self.sender.send(exchange)
            if (pending := self._still_pending(exchange)) is None:
                body = _read(exchange)  # before a limiter of the caller's own could fail
        except UnansweredError as error:
            failure = self._unanswered(exchange, error)
        finally:
            if exchange.permitted:
                self.requests += 1
                self._tell_limiter(exchange.reply)
        if pending is not None:
            return pending
        reply = exchange.reply
        if failure is not None or reply is None:
            if (answer := self._broken_off(exchange)) is not None:
                return answer
            try:
                raise failure from failure.__cause__  # type: ignore[misc,union-attr]
            finally:
                del failure  # the frame must not keep its own exception alive
        body = self._body(exchange, reply, body, believed)
        answer = _answer(exchange, body, reply.sent_at, reply.received_at)
        if reply.status == 200 and exchange.path == POLL and _is_no_news(answer):
            self._pending = reply.content, answer
        return answer

    def _still_pending(self, exchange: Exchange) -> Answer | None:
        """What is known already to be understood as that a task goes on, and says nothing else."""
        reply, pending = exchange.reply, self._pending
        assert reply is not None
        if pending is None or exchange.path != POLL or reply.content != pending[0] or reply.status != 200:
            return None
        status, raw = pending[1].status, pending[1].raw
        exchange.status, exchange.said, exchange.in_protocol = 200, status, True
        return Answer(None, status, None, None, None, None, None, reply.sent_at, reply.received_at, raw)

    def refusal(self, exchange: Exchange) -> UCaptchaError | None:
        """Take in what came of an answer to a submit that ended before it was judged: it may name a task.

        Returns:
            The refusal that it is, if it was read whole and takes no task.
        """
        reply = exchange.reply
        if reply is None:
            if exchange.partial is not None:
                self._look_for_id(exchange, exchange.partial)
            return None
        try:
            self._body(exchange, reply, _read(exchange), None)
        except UCaptchaError as error:
            return error
        return None

    def _body(
        self, exchange: Exchange, reply: Reply, body: Mapping[str, Any] | None, believed: str | None
    ) -> Mapping[str, Any]:
        if exchange.task_id is not None and exchange.named not in (None, exchange.task_id, believed):
            # Looked at first: what another request's answer says, good or bad, is nothing to this one.
            self._named_another(exchange, reply)
        if exchange.submit and body is None:
            self._look_for_id(exchange, reply.content)
        elif exchange.submit and exchange.named is not None and body is not None:
            self._is_its_own(exchange.named, reply, body, exchange)
        try:
            return _understood(exchange, reply, body)
        except UCaptchaError as error:
            error.retry_after = Reading.of(reply.headers).wait
            raise

    @staticmethod
    def _unanswered(exchange: Exchange, error: UnansweredError) -> APIConnectionError:
        message = f"{exchange.path.removeprefix('/')}: {error.reason}"
        failure = APIConnectionError(message, task_id=exchange.task_id, retryable=not error.permanent)
        failure.__cause__ = error.__cause__
        return failure

    def _broken_off(self, exchange: Exchange) -> Answer | None:
        """What came of an answer to a submit that did not end as it should: it may name the task already.

        Returns:
            The answer, if all of its text came and it takes the task.
        """
        if not exchange.submit or exchange.partial is None or exchange.sent_at is None:
            return None
        self._look_for_id(exchange, exchange.partial)
        body = _object(exchange.partial)
        if exchange.named is None or body is None or _is_error(body) or _id(_task(body)) != exchange.named:
            return None
        exchange.in_protocol = True
        return _answer(exchange, body, exchange.sent_at, exchange.clock())

    def _look_for_id(self, exchange: Exchange, text: bytes) -> None:
        """Note the task that an answer to a submit names, although it is not the JSON that it should be."""
        told = _decoded(text).lstrip()
        found = _TASK_ID.search(told) if told.startswith("{") else None
        named = None if found is None else _id(_decode(found[1]))
        if named is not None and not self.is_known(named, None):
            exchange.named = named

    def _tell_limiter(self, reply: Reply | None) -> None:
        if reply is None:
            self.limiter.lost()
        else:
            self.throttled += reply.status == 429
            self.limiter.observe(reply.status, reply.headers, sent_at=reply.sent_at, received_at=reply.received_at)

    def _is_its_own(self, named: str, reply: Reply, body: Mapping[str, Any], exchange: Exchange) -> None:
        """Raise `Unreadable` if what came for a submit is about an earlier task."""
        if not (reply.repeated and _has_ended(body)) and not self.is_known(named, reply.first):
            return
        if not reply.first:
            reply.discard()
        exchange.named, exchange.in_protocol = None, True
        raise Unreadable("createTask answered with the id of another task")

    def _named_another(self, exchange: Exchange, reply: Reply) -> None:
        """On a connection's first request an answer cannot be an earlier one's, and is believed."""
        if reply.first:
            if "another" not in self._told:
                self._told.add("another")
                logger.warning("an answer names another task than was asked for; the service's word is taken")
            return
        reply.discard()
        error = WrongTask("the answer names another task than was asked for", task_id=exchange.task_id)
        error.named = exchange.named or ""
        raise error


def _read(exchange: Exchange) -> Mapping[str, Any] | None:
    """The JSON object that came, if one did; its code and the task that it names are noted."""
    reply = exchange.reply
    assert reply is not None
    body, exchange.status = _object(reply.content), reply.status
    if body is not None:
        exchange.code, exchange.named = _code(body.get("errorCode")), _id(_task(body))
    return body


def _understood(exchange: Exchange, reply: Reply, body: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The body of an answer that is the protocol's, or the error that it is."""
    path, code = exchange.path.removeprefix("/"), exchange.code
    if body is not None:
        if _has_ended(body):  # it decides, whatever the envelope
            exchange.in_protocol = True
            return body
        if code is not None and is_pending(code):
            exchange.in_protocol = True
            return SecretMapping(status="processing", taskId=body.get("taskId"))
        if code is not None and (_is_error(body) or reply.status >= 400):
            if exchange.submit and exchange.named is None and _names_unreadably(body):
                raise Unreadable(f"{path} refuses a task, and names it in a form that cannot be read")
            exchange.in_protocol = True
            raise _refusal(exchange, body, code, reply.status)
        if _is_error(body) and (reply.status != 429 or exchange.named is not None):
            raise Unreadable(f"{path} reports an error without a code", task_id=_task_of(exchange), retryable=True)
        if exchange.named is not None or body.get("solution"):
            # What is paid for must not be lost to an odd HTTP status.
            exchange.in_protocol = True
            return body
    return _without_a_sign(exchange, reply, body)


def _without_a_sign(exchange: Exchange, reply: Reply, body: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """An answer that has neither a code, nor a task, nor a solution: it may be somebody else's."""
    path = exchange.path.removeprefix("/")
    if reply.status >= 300:
        told = _told(exchange, body) if body is not None else None
        message = f"{path} answered HTTP {reply.status}" + (f": {told}" if told else "")
        raise by_status(reply.status, message, task_id=_task_of(exchange))
    if body is None:
        raise Unreadable(f"{path} answered with something that is not a JSON object", task_id=_task_of(exchange))
    exchange.in_protocol = "errorId" in body or "status" in body
    if not exchange.in_protocol and exchange.path in ABOUT_A_TASK:
        raise Unreadable(f"{path} answered with JSON that is not the protocol's", task_id=_task_of(exchange))
    return body


def _refusal(exchange: Exchange, body: Mapping[str, Any], code: str, http_status: int) -> UCaptchaError:
    # Judged by the code as it came: a password that is a part of it must not change what it means.
    error = error_for(code, http_status, _told(exchange, body) or "", task_id=_task_of(exchange))
    error.error_code = _word(exchange, body, "errorCode")
    return error


def _task_of(exchange: Exchange) -> str | None:
    return exchange.task_id or exchange.named


def _answer(exchange: Exchange, body: Mapping[str, Any], sent_at: float, received_at: float) -> Answer:
    status = _status(body) or _word(exchange, body, "status") or Status.PROCESSING.value
    milliseconds = _money(body.get("solveTime"))
    failed = status == "failed"
    exchange.said = status
    return Answer(
        task_id=exchange.named,
        status=status,
        solution=plain(body.get("solution")),
        cost=_money(body.get("cost")),
        solve_time=None if milliseconds is None else float(milliseconds) / 1000,
        error_code=_word(exchange, body, "errorCode") if failed else None,
        error_description=_told(exchange, body) if failed else None,
        sent_at=sent_at,
        received_at=received_at,
        raw=body,
    )


def _is_no_news(answer: Answer) -> bool:
    """Whether an answer says that its task goes on, names none, and says nothing more."""
    known = (answer.task_id, answer.solution, answer.cost, answer.solve_time)
    return answer.status in (Status.IDLE, Status.PROCESSING) and known == (None, None, None, None)


def _status(body: Mapping[str, Any]) -> str | None:
    """The protocol's own word for the status, however it is spelled; `None` for an unknown word."""
    word, solution = body.get("status"), body.get("solution")
    solved = isinstance(solution, dict | str) and bool(solution)
    if word is None:
        # Some services of the family leave the status out: a solution says enough.
        return Status.READY.value if solved else None
    word = word.strip().lower() if isinstance(word, str) else ""
    if word in READY_WORDS and solved:
        return Status.READY.value
    return word if word in _STATUSES else None


def _has_ended(body: Mapping[str, Any]) -> bool:
    """Whether an answer says that the task has failed, or brings its solution."""
    status = _status(body)
    return status == Status.FAILED or (status == Status.READY and bool(body.get("solution")))


def _is_error(body: Mapping[str, Any]) -> bool:
    """Whether `errorId` means an error; services of the family send other things than 0 for none."""
    error_id = body.get("errorId")
    if isinstance(error_id, str):
        return error_id.strip().upper() not in NO_ERROR
    return bool(error_id)


def _word(exchange: Exchange, body: Mapping[str, Any], name: str) -> str | None:
    """A word of the protocol. One that nobody knows may hold anything."""
    word = _text(body.get(name))
    return word if word is None or word in WORDS else exchange.clean(word)


def _told(exchange: Exchange, body: Mapping[str, Any]) -> str | None:
    """What the service says in words. `errorDescription` is the protocol's; frameworks use other names."""
    for name in ("errorDescription", "detail", "message", "error", "errors"):
        if text := _sentence(body.get(name)):
            return exchange.clean(text)
    return None


def _sentence(value: object, depth: int = 0) -> str | None:
    """A text, or the first in what frameworks wrap it in: `{"error": {"message": …}}`, `{"detail": [{"msg": …}]}`."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict) and depth < 2:
        inner = (_sentence(value.get(name), depth + 1) for name in ("detail", "message", "msg", "error"))
        return next(filter(None, inner), None)
    return _text(value)


def _object(content: bytes) -> Mapping[str, Any] | None:
    try:
        text = _decoded(content)
        twice = text.count('"taskId"') > 1 or text.count('"errorId"') > 1
        body = (_decode_with_care if twice else _decode)(text)
    except (ValueError, RecursionError):
        return None
    return SecretMapping(body) if isinstance(body, dict) else None


def _decoded(content: bytes) -> str:
    """The text of an answer. Broken text in a description must not cost an id or a code."""
    if content.startswith(b'{"'):  # as nearly all are
        return content.decode("utf-8", "replace")
    for bom, encoding in _BOMS:
        if content.startswith(bom):
            return content[len(bom) :].decode(encoding, "replace")
    if content[:1] == b"\0" or content[1:2] == b"\0":  # JSON begins with ASCII
        return content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le", "replace")
    return content.decode("utf-8", "replace")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _code(value: object) -> SecretStr | None:
    """An error code as the protocol spells it. It may hold anything, until it is cleaned."""
    return SecretStr(value.strip().upper()) if isinstance(value, str) and value.strip() else None


def _task(body: Mapping[str, Any]) -> object:
    """What an answer has in the field that names a task."""
    if (named := body.get("taskId")) is not None:
        return named
    named_otherwise = (body[name] for name in body if name.replace("_", "").lower() in TASK_FIELDS)
    return next((value for value in named_otherwise if value is not None), None)


def _id(value: object) -> str | None:
    """The task that an answer names, as it came. `0`, `"0"`, `false` and blank text name none."""
    if isinstance(value, int) and not isinstance(value, bool) and value != 0:
        return NumericId(value)
    if isinstance(value, Decimal) and value.is_finite() and value != 0 and abs(value.adjusted()) < 100:
        return NumericId(value)
    return value if isinstance(value, str) and value.strip() not in ("", "0") else None


def _names_unreadably(body: Mapping[str, Any]) -> bool:
    """Whether the field that names a task holds something, and no id."""
    value = _task(body)
    return value is True or (isinstance(value, list | dict) and bool(value))


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
