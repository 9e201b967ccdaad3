"""Faults on order: answers that go wrong in a known way, at a known request or with a known rate."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping

import attrs

from .refusals import describe, http_status
from .wire import Answer

ENDPOINTS = ("createTask", "getTaskResult", "getBalance", "feedbackTask")


@attrs.frozen(kw_only=True)
class Fault:
    """A way for one answer to go wrong.

    Attributes:
        times: How many requests in a row it meets; None for all that follow.
        processed: Whether the request is carried out (a task is created and charged) before its answer is spoiled.
        delay: How long the answer is held back, in seconds.
    """

    times: int | None = 1
    processed: bool = False
    delay: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))

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


@attrs.frozen
class Html(Fault):
    """An error page of a gateway in place of JSON.

    Attributes:
        status: The HTTP status.
    """

    status: int = attrs.field(default=502, kw_only=False)

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        page = f"<html><head><title>{self.status}</title></head><body><h1>{self.status} Bad Gateway</h1></body></html>"
        return Answer(self.status, body=page.encode(), content_type="text/html; charset=utf-8")


@attrs.frozen
class Json(Fault):
    """Any JSON value as the answer: a list, a status nobody knows, an answer without its fields.

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

    Attributes:
        fields: Fields to set.
        without: Names of fields to leave out.
    """

    fields: Mapping[str, object] = attrs.field(factory=dict, kw_only=False, hash=False)
    without: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    processed: bool = attrs.field(default=True, kw_only=True)

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        old = answer.value if isinstance(answer.value, dict) else {}
        answer.value = {**{key: value for key, value in old.items() if key not in self.without}, **self.fields}
        if {"solution", "status"} & (set(self.fields) | set(self.without)):
            answer.delivers = None
        return answer


@attrs.frozen
class Error(Fault):
    """A documented refusal, such as `ERROR_ZERO_BALANCE`, whatever was asked.

    Attributes:
        code: The error code.
        status: The HTTP status; None for the documented one.
    """

    code: str = attrs.field(kw_only=False)
    status: int | None = attrs.field(default=None, kw_only=True)

    def spoil(self, answer: Answer) -> Answer:  # noqa: D102
        value = {"errorId": 1, "errorCode": self.code, "errorDescription": describe(self.code)}
        return Answer(self.status or http_status(self.code), value)


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


@attrs.define(eq=False)
class _Script:
    endpoint: str
    steps: list[Fault]
    task_id: str | None
    task_type: str | None
    used: int = 0

    def matches(self, endpoint: str, task_id: str | None, task_type: str | None) -> bool:
        return (
            bool(self.steps)
            and self.endpoint in (endpoint, "*")
            and self.task_id in (None, task_id)
            and self.task_type in (None, task_type)
        )

    def take(self) -> Fault:
        step = self.steps[0]
        self.used += 1
        if step.times is not None and self.used >= step.times:
            self.steps.pop(0)
            self.used = 0
        return step


def _as_pairs(rates: Iterable[tuple[Fault, float]]) -> tuple[tuple[Fault, float], ...]:
    return tuple(rates)


def _check_rates(owner: object, attribute: object, value: tuple[tuple[Fault, float], ...]) -> None:
    if any(rate < 0 for _, rate in value) or sum(rate for _, rate in value) > 1 + 1e-9:
        raise ValueError("rates must not be negative and must add up to at most 1")


@attrs.frozen(kw_only=True)
class FaultRates:
    """Faults at random, from a seed.

    Attributes:
        rates: Pairs of a fault and the share of requests that it meets; the shares add up to at most 1.
        seed: The seed.
        endpoints: The endpoints that are met.
    """

    rates: tuple[tuple[Fault, float], ...] = attrs.field(converter=_as_pairs, validator=_check_rates)
    seed: int = 0
    endpoints: tuple[str, ...] = ENDPOINTS


class Faults:
    """The faults that wait for requests, and a count of those that met one.

    Attributes:
        fired: How often each class of fault met a request.
    """

    def __init__(self, rates: FaultRates | None = None) -> None:
        self.fired: Counter[str] = Counter()
        self._scripts: list[_Script] = []
        self.set_rates(rates)

    def set_rates(self, rates: FaultRates | None) -> None:
        """Set the faults that come at random; None for no more of them."""
        self._rates = rates
        self._rng = random.Random(f"{rates.seed if rates else 0}:faults")

    def script(self, endpoint: str, *faults: Fault, task_id: str | None = None, task_type: str | None = None) -> None:
        """Let the next requests that match meet these faults, one after the other.

        Args:
            endpoint: The endpoint, for example `getTaskResult`, or `*` for any.
            faults: The faults in their order; each is met `times` times.
            task_id: Only requests about this task.
            task_type: Only requests about tasks of this type.
        """
        if endpoint not in (*ENDPOINTS, "in.php", "res.php", "*"):
            raise ValueError(f"no endpoint {endpoint!r}; there are {', '.join(ENDPOINTS)} and *")
        self._scripts.append(_Script(endpoint, list(faults), task_id, task_type))

    def clear(self) -> None:
        """Forget all faults that have not come yet."""
        self._scripts.clear()
        self.set_rates(None)

    @property
    def waiting(self) -> int:
        """How many scripted faults have not come to their end."""
        return sum(len(script.steps) for script in self._scripts)

    def pick(self, endpoint: str, task_id: str | None, task_type: str | None) -> Fault | None:
        """Return the fault that this request meets, if any."""
        if not self._scripts and self._rates is None:
            return None
        fault = self._scripted(endpoint, task_id, task_type) or self._random(endpoint)
        if fault is not None:
            self.fired[_label(fault)] += 1
        return fault

    def _scripted(self, endpoint: str, task_id: str | None, task_type: str | None) -> Fault | None:
        self._scripts = [script for script in self._scripts if script.steps]
        found = (script for script in self._scripts if script.matches(endpoint, task_id, task_type))
        script = next(found, None)
        return script.take() if script is not None else None

    def _random(self, endpoint: str) -> Fault | None:
        if self._rates is None or endpoint not in self._rates.endpoints:
            return None
        point = self._rng.random()
        for fault, rate in self._rates.rates:
            point -= rate
            if point < 0:
                return fault
        return None


def _label(fault: Fault) -> str:
    name = type(fault).__name__
    if isinstance(fault, Drop):
        return f"{name}.{'before' if fault.before else 'during' if fault.during else 'after'}"
    return f"{name}.processed" if fault.processed and not isinstance(fault, Amend | Truncated | Delay) else name
