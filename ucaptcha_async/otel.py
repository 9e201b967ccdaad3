"""Traces and metrics from the events, with OpenTelemetry (extra `otel`).

Only the API of OpenTelemetry is used: what becomes of the telemetry, and whether there is any, is up to the providers
of the program.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from contextvars import ContextVar
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import attrs

from .events import (
    Cancelled,
    Event,
    Failed,
    Hook,
    JournalFailed,
    Polled,
    Retried,
    Solved,
    Submitted,
    Throttled,
    Uncertain,
)

try:
    from opentelemetry.metrics import Meter, MeterProvider, get_meter
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider, get_tracer
except ImportError as missing:
    raise ImportError("telemetry needs opentelemetry-api: pip install 'ucaptcha_async[otel]'") from missing

NAME = "ucaptcha_async"
SPAN = "ucaptcha.solve"

TYPE = "ucaptcha.task.type"
TASK_ID = "ucaptcha.task.id"
ATTEMPT = "ucaptcha.attempt"
OUTCOME = "ucaptcha.outcome"
ENDPOINT = "ucaptcha.endpoint"
ERROR_CODE = "ucaptcha.error.code"
ERROR_TYPE = "error.type"
"""The one name here that OpenTelemetry's conventions give."""

BUCKETS = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0)
"""Seconds: solves take from a few to a few hundred."""

LONGEST_WORD = 40
"""Characters of a status word that nobody has seen yet."""

Attributes = dict[str, str | bool | int | float]


def instrument(
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    *,
    max_open: int = 10_000,
) -> Hook:
    """Make a hook that turns events into spans and metrics: `AsyncClient(on_event=instrument())`.

    A span `ucaptcha.solve` covers each solve from the acceptance of its task to its solution, error or cancellation. It
    is a child of the span that is current where the solve was called. No API key, token or proxy is in it. One hook may
    serve many clients.

    Args:
        tracer_provider: Where spans go. Default: the provider of the program.
        meter_provider: Where metrics go. Default: the provider of the program.
        max_open: The most spans that are kept open at once. Beyond it, the one that was silent for the longest is
            ended as `abandoned`: its task may never be waited for.

    Example:
        ```python
        from ucaptcha_async import AsyncClient
        from ucaptcha_async.otel import instrument

        client = AsyncClient(on_event=instrument())
        ```
    """
    tracer = get_tracer(NAME, version(NAME), tracer_provider)
    return _Telemetry(tracer, _Instruments(get_meter(NAME, version(NAME), meter_provider)), max_open)


class _Instruments:
    """The metrics."""

    def __init__(self, meter: Meter) -> None:
        counter, histogram = meter.create_counter, meter.create_histogram
        self.submitted = counter("ucaptcha.task.submitted", "{task}", "Tasks that the service accepted")
        self.uncertain = counter("ucaptcha.task.uncertain", "{task}", "Submits of unknown fate, perhaps charged")
        self.in_flight = meter.create_up_down_counter(
            "ucaptcha.task.in_flight", "{task}", "Accepted tasks whose end is not known yet"
        )
        self.solved = counter("ucaptcha.solve.solved", "{solve}", "Solves that ended with a solution")
        self.failed = counter("ucaptcha.solve.failed", "{solve}", "Solves that ended with an error")
        self.cancelled = counter("ucaptcha.solve.cancelled", "{solve}", "Solves that the caller gave up")
        self.cost = counter("ucaptcha.solve.cost", "{USD}", "What solved tasks cost")
        self.time = histogram(
            "ucaptcha.solve.time",
            "s",
            "How long solves took, as the service reports it",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self.elapsed = histogram(
            "ucaptcha.solve.elapsed",
            "s",
            "From the acceptance of a task to its solution in hand",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self.throttled = counter("ucaptcha.request.throttled", "{request}", "Requests answered with HTTP 429")
        self.retried = counter("ucaptcha.request.retried", "{request}", "Requests that failed and are made again")
        self.journal_failed = counter("ucaptcha.journal.failed", "{write}", "Writes that the journal refused")


@attrs.define(eq=False)
class _Open:
    """A solve whose end is not known yet."""

    span: Span
    task_type: str
    key: str | None
    task_id: str | None
    attempt: int = 1
    ended: bool = False


class _Telemetry:
    """The hook."""

    def __init__(self, tracer: Tracer, instruments: _Instruments, max_open: int) -> None:
        self._tracer = tracer
        self._count = instruments
        self._max_open = max_open
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._told: OrderedDict[str, None] = OrderedDict()
        # The hook runs in the task of the solve: so a further attempt finds the span that the first one began.
        self._here: ContextVar[_Open | None] = ContextVar("ucaptcha_solve", default=None)
        self._handlers: dict[type[Event], Any] = {
            Submitted: self._submitted,
            Polled: self._polled,
            Throttled: self._throttled,
            Retried: self._retried,
            Solved: self._solved,
            Failed: self._failed,
            Cancelled: self._cancelled,
            Uncertain: self._uncertain,
            JournalFailed: self._journal_failed,
        }

    def __call__(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    # From acceptance to the end

    def _submitted(self, event: Submitted) -> None:
        self._count.submitted.add(1, _type(event))
        solve = self._begun(event, event.attempt - 1) if event.attempt > 1 else None
        if event.task_id is None:
            return  # the solution is in the same answer: its event is next, and tells all
        if solve is None:
            solve = self._start(event)
        else:
            solve.span.add_event("ucaptcha.resubmitted", {TASK_ID: solve.task_id or "", ATTEMPT: event.attempt})
            self._open.pop(solve.task_id or "", None)
        solve.task_id, solve.attempt = event.task_id, event.attempt
        solve.span.set_attributes({TASK_ID: event.task_id, ATTEMPT: event.attempt})
        self._here.set(solve)
        self._open[event.task_id] = solve
        while len(self._open) > self._max_open:
            self._close(next(iter(self._open.values())), "abandoned")

    def _start(self, event: Event, ago: float = 0.0) -> _Open:
        start = time.time_ns() - int(ago * 1e9)
        span = self._tracer.start_span(SPAN, kind=SpanKind.CLIENT, attributes=_type(event), start_time=start)
        self._count.in_flight.add(1, _type(event))
        return _Open(span, event.task_type, event.key, event.task_id)

    def _begun(self, event: Event, attempt: int | None = None) -> _Open | None:
        """The open solve that was begun in this very task, if the event can be of the same."""
        solve = self._here.get()
        if solve is None or solve.ended or (solve.task_type, solve.key) != (event.task_type, event.key):
            return None
        return solve if attempt in (None, solve.attempt) else None

    def _close(self, solve: _Open, outcome: str, attributes: Attributes | None = None) -> None:
        solve.ended = True
        self._open.pop(solve.task_id or "", None)
        self._count.in_flight.add(-1, {TYPE: solve.task_type})
        solve.span.set_attributes({OUTCOME: outcome, **(attributes or {})})
        solve.span.end()

    def _find(self, ids: Iterable[str | None]) -> _Open | None:
        return next((self._open[task_id] for task_id in ids if task_id is not None and task_id in self._open), None)

    def _solved(self, event: Solved) -> None:
        kind, told = _type(event), {"ucaptcha.solve_time": event.solve_time, "ucaptcha.cost": _float(event.cost)}
        solve = self._find([event.task_id]) or (self._begun(event) if event.task_id is None else None)
        self._count.solved.add(1, kind)
        if self._is_news(event):
            if solve is not None or event.elapsed > 0:  # else nobody knows when the task was accepted
                self._count.elapsed.record(event.elapsed, kind)
            if event.solve_time is not None:
                self._count.time.record(event.solve_time, kind)
            if event.cost is not None:
                self._count.cost.add(float(event.cost), kind)
        attributes: Attributes = {name: value for name, value in told.items() if value is not None}
        attributes |= {"ucaptcha.elapsed": event.elapsed, "ucaptcha.polls": event.polls, **_task_id(event)}
        if event.from_journal:
            attributes["ucaptcha.from_journal"] = True
        self._close(solve or self._start(event, event.elapsed), "solved", attributes)

    def _is_news(self, event: Solved) -> bool:
        """Whether a task is paid for now: not if others waited for it too, nor if the journal remembered it."""
        if event.from_journal or event.task_id is None:
            return not event.from_journal
        told, self._told[event.task_id] = event.task_id in self._told, None
        while len(self._told) > self._max_open:
            self._told.popitem(last=False)
        return not told

    def _failed(self, event: Failed) -> None:
        error = event.error
        kind: Attributes = {ERROR_TYPE: type(error).__name__}
        self._count.failed.add(1, {**_type(event), **kind})
        attributes = {**kind, **_code(error.error_code), **_task_id(event)}
        if error.charged is not None:
            attributes["ucaptcha.charged"] = error.charged
        # If it was a further attempt that could not be submitted, the span is that of the attempt before.
        solve = self._find([event.task_id, *(attempt.task_id for attempt in reversed(error.attempts))])
        solve = solve or self._start(event)
        solve.span.set_status(Status(StatusCode.ERROR, error.error_code or type(error).__name__))
        self._close(solve, "failed", attributes)

    def _cancelled(self, event: Cancelled) -> None:
        self._count.cancelled.add(1, _type(event))
        solve = self._find([event.task_id]) or (self._begun(event) if event.task_id is None else None)
        self._close(solve or self._start(event), "cancelled", _task_id(event))

    # On the way

    def _polled(self, event: Polled) -> None:
        self._note(
            event, "ucaptcha.poll", {"ucaptcha.status": event.status[:LONGEST_WORD], "ucaptcha.polls": event.polls}
        )

    def _throttled(self, event: Throttled) -> None:
        attributes: Attributes = {ENDPOINT: event.endpoint}
        self._count.throttled.add(1, {**_type(event), **attributes})
        self._note(event, "ucaptcha.throttled", attributes)

    def _retried(self, event: Retried) -> None:
        attributes: Attributes = {ENDPOINT: event.endpoint, ERROR_TYPE: event.reason}
        self._count.retried.add(1, {**_type(event), **attributes})
        self._note(event, "ucaptcha.retry", {**attributes, "ucaptcha.delay": event.delay, **_code(event.error_code)})

    def _uncertain(self, event: Uncertain) -> None:
        self._count.uncertain.add(1, _type(event))

    def _journal_failed(self, event: JournalFailed) -> None:
        self._count.journal_failed.add(1, _type(event))
        self._note(event, "ucaptcha.journal.failed", {ERROR_TYPE: type(event.error).__name__})

    def _note(self, event: Event, name: str, attributes: Attributes) -> None:
        """Add an event to the span of a solve, and count the solve among the living."""
        if event.task_id is not None and (solve := self._open.pop(event.task_id, None)) is not None:
            self._open[event.task_id] = solve
            solve.span.add_event(name, attributes)


def _type(event: Event) -> Attributes:
    return {TYPE: event.task_type}


def _task_id(event: Event) -> Attributes:
    return {} if event.task_id is None else {TASK_ID: event.task_id}


def _float(amount: Decimal | None) -> float | None:
    return None if amount is None else float(amount)


def _code(error_code: str | None) -> Attributes:
    return {} if error_code is None else {ERROR_CODE: error_code}
