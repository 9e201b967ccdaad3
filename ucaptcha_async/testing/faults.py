"""Faults: the ways in which an answer goes wrong. `scripts.py` decides which request meets which."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping

import attrs

from .refusals import describe, http_status
from .wire import Answer


@attrs.frozen(kw_only=True)
class Fault:
    """A way for one answer to go wrong.

    Attributes:
        times: How many requests in a row it meets; None for all that follow.
        processed: Whether the request is carried out (a task is created and charged) before its answer is spoiled.
        delay: How long the answer is held back, in seconds.
        only: The endpoints that it may meet by `FaultRates`; empty for all of them.
    """

    times: int | None = 1
    processed: bool = False
    delay: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    only: tuple[str, ...] = ()

    def spoil(self, answer: Answer) -> Answer:
        """Return the answer that is sent in place of (or made from) the right one."""
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class Reply(Fault):
    """A plain answer with any HTTP status, such as 503 from a proxy in front of the service.

    Attributes:
        status: The HTTP status.
        body: The body.
        content_type: The media type.
        headers: Further headers.
    """

    status: int = 503
    body: bytes = b"Service Unavailable"
    content_type: str = "text/plain"
    headers: tuple[tuple[str, str], ...] = ()

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        return Answer(self.status, body=self.body, content_type=self.content_type, headers=self.headers)


_TITLES = {200: "Sign in", 302: "Found", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}


@attrs.frozen
class Html(Fault):
    """A page of a gateway, such as an error or a login, in place of JSON.

    Attributes:
        status: The HTTP status.
    """

    status: int = attrs.field(default=502, kw_only=False)

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        title = f"{self.status} {_TITLES.get(self.status, 'Bad Gateway')}"
        page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
        return Answer(self.status, body=page.encode(), content_type="text/html; charset=utf-8")


@attrs.frozen
class Json(Fault):
    """Any JSON value as the answer: a list, an unknown status, an answer without its fields.

    Attributes:
        value: The value.
        status: The HTTP status.
    """

    value: object = attrs.field(kw_only=False, hash=False)
    status: int = attrs.field(default=200, kw_only=True)

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        return Answer(self.status, self.value)


@attrs.frozen
class Amend(Fault):
    """The right answer with some fields changed or left out; the request is carried out.

    `Amend({"errorId": "0"})` accepts as loosely as some services do; `Amend({"taskId": other})` names another task.

    Attributes:
        fields: Fields to set.
        without: Names of fields to leave out.
        status: The HTTP status; None for the right one.
    """

    fields: Mapping[str, object] = attrs.field(factory=dict, kw_only=False, hash=False)
    without: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    status: int | None = attrs.field(default=None, kw_only=True)
    processed: bool = attrs.field(default=True, kw_only=True)

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        old = answer.value if isinstance(answer.value, dict) else {}
        answer.value = {**{key: value for key, value in old.items() if key not in self.without}, **self.fields}
        if {"solution", "status"} & (set(self.fields) | set(self.without)):
            answer.delivers = None
        answer.status = self.status or answer.status
        return answer


def _named(error: Error) -> bool:
    return error.names_task


@attrs.frozen
class Error(Fault):
    """A refusal, such as `ERROR_ZERO_BALANCE`, whatever was asked.

    `Error("ERROR_NEW_WORD", names_task=True)` contradicts itself: the task is there and is charged. What says of a task
    that it has failed, as CapSolver does, is
    `Error("ERROR_CAPTCHA_SOLVE_FAILED", names_task=True, fields={"status": "failed"}, status=400)`.

    Attributes:
        code: The error code.
        status: The HTTP status; None for the documented one.
        names_task: Whether the request is carried out, and the refusal names the task that was made or asked for.
        fields: Further fields of the body, or others in place of the usual ones: `{"taskId": 0}`.
    """

    code: str = attrs.field(kw_only=False)
    status: int | None = attrs.field(default=None, kw_only=True)
    names_task: bool = attrs.field(default=False, kw_only=True)
    fields: Mapping[str, object] = attrs.field(factory=dict, kw_only=True, hash=False)
    processed: bool = attrs.field(default=attrs.Factory(_named, takes_self=True), kw_only=True)

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        value: dict[str, object] = {"errorId": 1, "errorCode": self.code, "errorDescription": describe(self.code)}
        if self.names_task and answer.wire_id is not None:
            value["taskId"] = answer.wire_id
        return Answer(self.status or http_status(self.code), {**value, **self.fields})


@attrs.frozen
class Reword(Fault):
    """The right answer with other words for the status of the task; the request is carried out.

    Attributes:
        words: What is said for `idle`, `processing`, `ready` and `failed`: `{"ready": "COMPLETED"}`.
    """

    words: Mapping[str, str] = attrs.field(kw_only=False, hash=False)
    processed: bool = attrs.field(default=True, kw_only=True)

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        value = answer.value
        if isinstance(value, dict) and value.get("status") in self.words:
            answer.value = {**value, "status": self.words[value["status"]]}
        return answer


@attrs.frozen
class Encoded(Fault):
    """The right answer in another encoding than UTF-8; the request is carried out.

    Attributes:
        encoding: A codec of Python, such as `utf-8-sig` (with a byte order mark) or `utf-16`; or `broken` for UTF-8
            with a description in it that is not.
    """

    encoding: str = attrs.field(default="utf-8-sig", kw_only=False)
    processed: bool = attrs.field(default=True, kw_only=True)

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        if self.encoding != "broken":
            answer.body = answer.payload().decode().encode(self.encoding)
        elif isinstance(answer.value, dict):
            text = json.dumps({**answer.value, "errorDescription": "no caf\0"})
            answer.body = text.encode().replace(b"\\u0000", b"\xe9\xff")
        return answer


@attrs.frozen
class Extra(Fault):
    """The right answer, and behind it on the same connection an unexpected second one.

    It takes a real socket: `httpx.ASGITransport` has no connections.

    Attributes:
        value: The JSON value of the second answer; None for the same again.
        status: The HTTP status of the second answer, if a value is given.
        after: How long after the first it is sent, in seconds; 0 puts both into one packet.
    """

    value: object = attrs.field(default=None, kw_only=False, hash=False)
    status: int = attrs.field(default=200, kw_only=True)
    after: float = attrs.field(default=0.0, kw_only=True, validator=attrs.validators.ge(0))
    processed: bool = attrs.field(default=True, kw_only=True)

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        answer.extra = copy.copy(answer) if self.value is None else Answer(self.status, self.value)
        answer.extra_after = self.after
        return answer


@attrs.frozen(kw_only=True)
class Truncated(Fault):
    """The first half of the right answer, as if it were all of it; the request is carried out."""

    processed: bool = True

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        whole = answer.payload()
        answer.body, answer.delivers = whole[: len(whole) // 2], None
        return answer


@attrs.frozen
class Huge(Fault):
    """An answer of absurd size.

    Attributes:
        size: The size of its body, in bytes.
    """

    size: int = attrs.field(default=5_000_000, kw_only=False)

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        return Answer(200, body=b'{"errorId":0,"status":"processing","padding":"' + b"x" * self.size + b'"}')


@attrs.frozen
class Delay(Fault):
    """The right answer, late.

    Attributes:
        seconds: How late.
    """

    seconds: float = attrs.field(kw_only=False, validator=attrs.validators.ge(0))
    processed: bool = attrs.field(default=True, kw_only=True)

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        answer.delay += self.seconds
        return answer


@attrs.frozen(kw_only=True)
class RateLimit(Fault):
    """HTTP 429 without the limit having been reached.

    Attributes:
        retry_after: The value of `Retry-After`; None leaves it out.
        headers: Whether `Date` and `X-RateLimit-*` are there.
        reset_in: The seconds until `X-RateLimit-Reset`; None for the end of the running window.
    """

    retry_after: float | str | None = None
    headers: bool = True
    reset_in: float | None = None

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        value = {"errorId": 1, "errorCode": "ERROR_TOO_MUCH_REQUESTS", "errorDescription": "Too many requests."}
        extra = () if self.retry_after is None else (("retry-after", f"{self.retry_after}"),)
        return Answer(429, value, headers=extra, limits=self.headers, remaining=0, reset_in=self.reset_in)


def _after(drop: Drop) -> bool:
    return not drop.before


@attrs.frozen(kw_only=True)
class Drop(Fault):
    """The connection is cut: before or after the request is carried out, or in the middle of the answer.

    Exactly one of the three must be chosen. Over a real socket the connection is reset; in-process the error that
    `LocalService(drop_error=…)` makes is raised through the transport.

    Attributes:
        before: Nothing was done.
        after: The request was carried out and the answer is lost.
        during: The request was carried out and half of the answer arrives.
    """

    before: bool = False
    after: bool = False
    during: bool = False
    processed: bool = attrs.field(init=False, default=attrs.Factory(_after, takes_self=True))

    def __attrs_post_init__(self) -> None:
        if self.before + self.after + self.during != 1:
            raise ValueError("Drop needs exactly one of before=True, after=True, during=True")

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        answer.cut, answer.delivers = ("during" if self.during else "before"), None
        return answer
