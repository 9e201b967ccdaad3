"""Traces and metrics from the events, with OpenTelemetry (extra `otel`).

Only the API of OpenTelemetry is used: what becomes of the telemetry, and whether there is any, is up to the providers
of the program.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import attrs

from .events import (
    Cancelled,
    Context,
    Event,
    Failed,
    Hook,
    JournalFailed,
    Requested,
    Retried,
    Solved,
    Started,
    Submitted,
    TakenUp,
    Throttled,
    Uncertain,
)

try:
    from opentelemetry.metrics import Meter, MeterProvider, get_meter
    from opentelemetry.trace import (
        Span,
        SpanContext,
        SpanKind,
        Status,
        StatusCode,
        Tracer,
        TracerProvider,
        get_current_span,
        get_tracer,
        set_span_in_context,
    )
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
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
STATUS = "ucaptcha.status"

# The names that OpenTelemetry's conventions give.
ERROR_TYPE = "error.type"
METHOD = "http.request.method"
HTTP_STATUS = "http.response.status_code"
ADDRESS = "server.address"
PORT = "server.port"
TEMPLATE = "url.template"

SOLVE_SECONDS = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0)
"""Buckets: solves take from a few seconds to a few hundred."""

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Buckets: those of the conventions for HTTP."""

LONGEST_WORD = 40
"""Characters of a status word that nobody has seen yet."""

_TRACEPARENT = "traceparent"
_propagator = TraceContextTextMapPropagator()

Attributes = dict[str, str | bool | int | float]


def instrument(
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    *,
    max_open: int = 10_000,
) -> Hook:
    """Make a hook that turns events into spans and metrics: `AsyncClient(on_event=instrument())`.

    A span `ucaptcha.solve` covers each solve from the call to its solution, error or cancellation, and each of its
    requests is a child of it. It is itself a child of the span that is current where the solve was called. If an
    earlier solve, perhaps of another process, submitted the task, the span has a link to that one's span; the journal
    keeps what is needed for that. No API key, token or proxy is in any of it. One hook may serve many clients.

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
            explicit_bucket_boundaries_advisory=SOLVE_SECONDS,
        )
        self.elapsed = histogram(
            "ucaptcha.solve.elapsed",
            "s",
            "From the acceptance of a task to its solution in hand",
            explicit_bucket_boundaries_advisory=SOLVE_SECONDS,
        )
        self.request = histogram(
            "http.client.request.duration",
            "s",
            "Duration of HTTP client requests",
            explicit_bucket_boundaries_advisory=REQUEST_SECONDS,
        )
        self.throttled = counter("ucaptcha.request.throttled", "{request}", "Requests answered with HTTP 429")
        self.retried = counter("ucaptcha.request.retried", "{request}", "Requests that failed and are made again")
        self.journal_failed = counter("ucaptcha.journal.failed", "{write}", "Writes that the journal refused")


@attrs.define(eq=False)
class _Open:
    """A solve whose end is not known yet.

    Attributes:
        began: When its first event came, on the event loop's clock and in nanoseconds of wall time.
        counted: Whether it counts as in flight.
        submitted: Whether its task was accepted here, so that its age is known.
    """

    span: Span
    solve_id: int
    task_type: str
    began: tuple[float, int]
    task_id: str | None = None
    counted: bool = False
    submitted: bool = False

    def wall(self, at: float) -> int:
        """A time of the event loop in nanoseconds of wall time."""
        return self.began[1] + round((at - self.began[0]) * 1e9)


class _Telemetry:
    """The hook."""

    def __init__(self, tracer: Tracer, instruments: _Instruments, max_open: int) -> None:
        self._tracer = tracer
        self._count = instruments
        self._max_open = max_open
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._earlier: OrderedDict[str, SpanContext] = OrderedDict()
        self._paid: OrderedDict[str, None] = OrderedDict()
        self._handlers: dict[type[Event], Any] = {
            Started: self._started,
            TakenUp: self._taken_up,
            Requested: self._requested,
            Submitted: self._submitted,
            Throttled: self._throttled,
            Retried: self._retried,
            Solved: self._solved,
            Failed: self._failed,
            Cancelled: self._cancelled,
            Uncertain: self._uncertain,
            JournalFailed: self._journal_failed,
        }

    def __call__(self, event: Event) -> Context | None:
        handler = self._handlers.get(type(event))
        return None if handler is None else handler(event)

    # --- a span from the start to the end -----------------------------------------------------------------------------

    def _started(self, event: Started) -> Context | None:
        solve = self._start(event, event.queued)
        solve.span.set_attribute("ucaptcha.queued", event.queued)
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, set_span_in_context(solve.span))
        return Context(carrier[_TRACEPARENT]) if _TRACEPARENT in carrier else None

    def _start(self, event: Event, ago: float = 0.0) -> _Open:
        now = time.time_ns()
        span = self._tracer.start_span(SPAN, attributes=_type(event), start_time=now - round(ago * 1e9))
        solve = self._open[event.solve_id] = _Open(span, event.solve_id, event.task_type, (event.at, now))
        while len(self._open) > self._max_open:
            silent = next(iter(self._open.values()))
            self._close(silent, silent.wall(event.at), "abandoned")
        return solve

    def _of(self, event: Event) -> _Open:
        """The solve of an event, which has a span from now on if it had none, and is the last to be given up."""
        solve = self._open.get(event.solve_id) or self._start(event)
        self._open.move_to_end(event.solve_id)
        return solve

    def _named(self, event: Event) -> _Open:
        """The solve of an event, under the task id that it has now."""
        solve = self._of(event)
        if event.task_id is not None:
            solve.task_id = event.task_id
            solve.span.set_attribute(TASK_ID, event.task_id)
        return solve

    def _close(self, solve: _Open, at: int, outcome: str, attributes: Attributes | None = None) -> None:
        del self._open[solve.solve_id]
        if solve.counted:
            self._count.in_flight.add(-1, {TYPE: solve.task_type})
        if solve.task_id is not None:
            _remember(self._earlier, solve.task_id, solve.span.get_span_context(), self._max_open)
        solve.span.set_attributes({OUTCOME: outcome, **(attributes or {})})
        solve.span.end(at)

    def _taken_up(self, event: TakenUp) -> None:
        solve = self._named(event)
        self._fly(solve)
        earlier = self._earlier.get(event.task_id or "")
        if event.context is not None:
            earlier = get_current_span(_propagator.extract({_TRACEPARENT: event.context})).get_span_context()
        if earlier is not None and earlier.is_valid:
            solve.span.add_link(earlier)

    def _submitted(self, event: Submitted) -> None:
        self._count.submitted.add(1, _type(event))
        before = self._open.get(event.solve_id)
        failed = before.task_id if before is not None and event.attempt > 1 else None
        solve = self._named(event)
        if failed is not None:
            solve.span.add_event("ucaptcha.resubmitted", {ATTEMPT: event.attempt}, solve.wall(event.at))
        solve.submitted = True
        solve.span.set_attribute(ATTEMPT, event.attempt)
        self._fly(solve)

    def _fly(self, solve: _Open) -> None:
        if not solve.counted:
            solve.counted = True
            self._count.in_flight.add(1, {TYPE: solve.task_type})

    def _solved(self, event: Solved) -> None:
        kind, solve = _type(event), self._named(event)
        said = {"ucaptcha.solve_time": event.solve_time, "ucaptcha.cost": _float(event.cost)}
        here = set_span_in_context(solve.span)  # so that exemplars name the trace
        self._count.solved.add(1, kind, here)
        if self._is_news(event):
            if solve.submitted or event.elapsed > 0:  # else nobody knows when the task was accepted
                self._count.elapsed.record(event.elapsed, kind, here)
            if event.solve_time is not None:
                self._count.time.record(event.solve_time, kind, here)
            if event.cost is not None:
                self._count.cost.add(float(event.cost), kind, here)
        attributes: Attributes = {name: value for name, value in said.items() if value is not None}
        attributes |= {"ucaptcha.elapsed": event.elapsed, "ucaptcha.polls": event.polls}
        if event.from_journal:
            attributes["ucaptcha.from_journal"] = True
        self._close(solve, solve.wall(event.at), "solved", attributes)

    def _is_news(self, event: Solved) -> bool:
        """Whether a task is paid for now: not if others waited for it too, nor if the journal remembered it."""
        if event.from_journal or event.task_id is None:
            return not event.from_journal
        known = event.task_id in self._paid
        _remember(self._paid, event.task_id, None, self._max_open)
        return not known

    def _failed(self, event: Failed) -> None:
        error, solve = event.error, self._named(event)
        kind: Attributes = {ERROR_TYPE: type(error).__name__}
        self._count.failed.add(1, {**_type(event), **kind}, set_span_in_context(solve.span))
        attributes = {**kind, **_code(error.error_code)}
        if error.charged is not None:
            attributes["ucaptcha.charged"] = error.charged
        solve.span.set_status(Status(StatusCode.ERROR, error.error_code or type(error).__name__))
        self._close(solve, solve.wall(event.at), "failed", attributes)

    def _cancelled(self, event: Cancelled) -> None:
        self._count.cancelled.add(1, _type(event))
        solve = self._named(event)
        self._close(solve, solve.wall(event.at), "cancelled")

    # --- on the way ---------------------------------------------------------------------------------------------------

    def _requested(self, event: Requested) -> None:
        """A child for a request: its name and attributes are those that the conventions give HTTP clients."""
        solve, address = self._of(event), _address(event.host)
        attributes: Attributes = {METHOD: "POST", TEMPLATE: f"/{event.endpoint}", **address}
        if event.http_status is not None:
            attributes[HTTP_STATUS] = event.http_status
        if event.reason is not None:
            attributes[ERROR_TYPE] = event.reason
        end = solve.wall(event.at)
        child = self._tracer.start_span(
            f"POST /{event.endpoint}",
            set_span_in_context(solve.span),
            SpanKind.CLIENT,
            attributes,
            start_time=end - round(event.seconds * 1e9),
        )
        self._count.request.record(event.seconds, attributes, set_span_in_context(child))
        said: Attributes = {} if event.task_id is None else {TASK_ID: event.task_id}
        child.set_attributes({**said, **_status(event.status), **_code(event.error_code)})
        if event.reason not in (None, "Cancelled"):
            child.set_status(Status(StatusCode.ERROR, event.error_code or event.reason))
        child.end(end)

    def _throttled(self, event: Throttled) -> None:
        self._count.throttled.add(1, {**_type(event), ENDPOINT: event.endpoint})
        self._note(event, "ucaptcha.throttled", {ENDPOINT: event.endpoint})

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
        """Add an event to the span of a solve."""
        if (solve := self._open.get(event.solve_id)) is not None:
            solve.span.add_event(name, attributes, solve.wall(event.at))


def _remember(memory: OrderedDict[str, Any], task_id: str, value: Any, most: int) -> None:
    memory[task_id] = value
    while len(memory) > most:
        memory.popitem(last=False)


def _type(event: Event) -> Attributes:
    return {TYPE: event.task_type}


def _address(host: str) -> Attributes:
    name, _, port = host.rpartition(":")
    return {ADDRESS: name.strip("[]"), PORT: int(port)} if name and port.isdecimal() else {ADDRESS: host.strip("[]")}


def _status(word: str | None) -> Attributes:
    return {} if word is None else {STATUS: word[:LONGEST_WORD]}


def _float(amount: Decimal | None) -> float | None:
    return None if amount is None else float(amount)


def _code(error_code: str | None) -> Attributes:
    return {} if error_code is None else {ERROR_CODE: error_code}
