"""Telemetry: one span per solve, metrics that agree with the service's books, and no secret in either."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.helpers import KEY, TURNSTILE, V2, opened
from ucaptcha_async import (
    AsyncClient,
    AuthenticationError,
    ImageToText,
    InsufficientBalanceError,
    InvalidTaskError,
    MemoryJournal,
    Polling,
    Proxy,
    RecaptchaV2,
    SolveTimeoutError,
    SQLiteJournal,
    SubmitUncertainError,
    UnsolvableError,
)
from ucaptcha_async.errors import JournalError
from ucaptcha_async.events import Context, Event, JournalFailed, Requested, Solved, Started, Submitted
from ucaptcha_async.otel import instrument
from ucaptcha_async.testing import Amend, Delay, Drop, Error, Json, LocalService, RateLimit, Reply

pytestmark = pytest.mark.virtual_time

PNG = bytes.fromhex("89504e470d0a1a0a") + b"\0" * 120
V2_TYPE = "RecaptchaV2"


class Recorder:
    """Keeps what a program would export."""

    def __init__(self, **options: Any) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracing = TracerProvider(shutdown_on_exit=False)
        self.tracing.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.metering = MeterProvider([self.reader], shutdown_on_exit=False)
        self.hook = instrument(self.tracing, self.metering, **options)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return tuple(span for span in self.exporter.get_finished_spans() if span.name == "ucaptcha.solve")

    @property
    def children(self) -> tuple[ReadableSpan, ...]:
        return tuple(span for span in self.exporter.get_finished_spans() if span.name.startswith("POST /"))

    @property
    def span(self) -> ReadableSpan:
        (span,) = self.spans
        return span

    def named(self, name: str) -> list[Any]:
        """The points of a metric."""
        data = self.reader.get_metrics_data()
        metrics = [m for r in (data.resource_metrics if data else ()) for s in r.scope_metrics for m in s.metrics]
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]

    def points(self, name: str) -> dict[str, Any]:
        """The points of a metric of ours, by the values of their attributes."""
        points = self.named(f"ucaptcha.{name}")
        return {" ".join(str(value) for value in point.attributes.values()): point for point in points}

    def sums(self, name: str) -> dict[str, float]:
        return {kind: point.value for kind, point in self.points(name).items()}


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.metering.shutdown()


@asynccontextmanager
async def told(recorder: Recorder, service: LocalService, **options: Any) -> AsyncIterator[AsyncClient]:
    async with opened(service, on_event=recorder.hook, **options) as client:
        yield client
    flying = {kind: count for kind, count in recorder.sums("task.in_flight").items() if count}
    assert flying == {}, "a solve has no end"


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("ucaptcha."): value for name, value in (span.attributes or {}).items()}


def happened(span: ReadableSpan) -> list[str]:
    return [event.name.removeprefix("ucaptcha.") for event in span.events]


def seconds(span: ReadableSpan) -> float:
    return ((span.end_time or 0) - (span.start_time or 0)) / 1e9


def ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


# --- spans ------------------------------------------------------------------------------------------------------------


async def test_a_solve_is_a_span(recorder: Recorder) -> None:
    """It says what was solved, what it cost, how long it took and how often it was asked for."""
    service = LocalService(solve_time=12)
    async with told(recorder, service) as client:
        solution = await client.solve(V2)

    span = recorder.span
    said = attributes(span)
    assert said.pop("elapsed") >= 12
    assert said == {
        "task.type": V2_TYPE,
        "task.id": solution.task_id,
        "attempt": 1,
        "outcome": "solved",
        "cost": float(service.books.spent),
        "solve_time": 12.0,
        "polls": solution.polls,
        "queued": 0.0,
    }
    assert span.kind.name == "INTERNAL"
    assert span.status.status_code is StatusCode.UNSET
    assert span.links == ()
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "ucaptcha_async"


async def test_the_callers_span_is_the_parent(recorder: Recorder) -> None:
    """Each solve hangs under what was current where it was called, in whichever task it runs."""
    tracer = recorder.tracing.get_tracer("program")

    async def page(client: AsyncClient, name: str) -> None:
        with tracer.start_as_current_span(name):
            await client.solve(V2)

    async with told(recorder, LocalService(solve_time=9)) as client, anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(page, client, f"page {number}")
    with tracer.start_as_current_span("many"):
        async with told(recorder, LocalService(solve_time=9)) as client:
            await client.gather([TURNSTILE, TURNSTILE])
    with tracer.start_as_current_span("submit"):
        async with told(recorder, LocalService(solve_time=9)) as client:
            job = await client.submit(V2)
            with tracer.start_as_current_span("wait"):
                await job.wait()

    names = {s.context.span_id: s.name for s in recorder.exporter.get_finished_spans() if s.context}
    parents = sorted(names[span.parent.span_id] for span in recorder.spans if span.parent)
    assert parents == ["many", "many", *(f"page {number}" for number in range(5)), "submit"]


async def test_each_request_is_a_child(recorder: Recorder) -> None:
    """Submit and polls have spans of their own, as the conventions for HTTP clients want them, in time and in order."""
    service = LocalService(solve_time=14)
    service.script("getTaskResult", Reply(status=503), Delay(2))
    polling = Polling(schedule=(5, 10, 15, 20), jitter=0)
    async with told(recorder, service, base_url="http://127.0.0.1:8080", polling=polling) as client:
        solution = await client.solve(V2)

    solve, (submit, *polls) = recorder.span, recorder.children
    assert [child.name for child in (submit, *polls)] == ["POST /createTask", *["POST /getTaskResult"] * len(polls)]
    assert {child.kind.name for child in recorder.children} == {"CLIENT"}
    assert dict(submit.attributes or {}) == {
        "http.request.method": "POST",
        "url.template": "/createTask",
        "server.address": "127.0.0.1",
        "server.port": 8080,
        "http.response.status_code": 200,
        "ucaptcha.task.id": solution.task_id,
        "ucaptcha.status": "processing",
    }
    failed, slow = polls[0], polls[1]
    assert (failed.attributes or {})["http.response.status_code"] == 503
    assert (failed.attributes or {})["error.type"] == "ServiceError"
    assert failed.status.status_code is StatusCode.ERROR
    assert seconds(slow) == pytest.approx(2, abs=0.01)
    assert [attributes(poll).get("status") for poll in polls][-1] == "ready"
    assert {poll.status.status_code for poll in polls[1:]} == {StatusCode.UNSET}
    starts = [child.start_time or 0 for child in (solve, submit, *polls)]
    assert starts == sorted(starts)
    assert (solve.end_time or 0) >= (polls[-1].end_time or 0)


async def test_the_queue_is_in_the_span(recorder: Recorder) -> None:
    """A span begins with the call, whatever the wait for a place in flight."""
    async with told(recorder, LocalService(solve_time=9), max_in_flight=1) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.solve, V2)
            tasks.start_soon(client.solve, V2)

    first, second = recorder.spans
    assert attributes(first)["queued"] == 0.0
    assert attributes(second)["queued"] == pytest.approx(seconds(first), abs=0.1)
    assert seconds(second) == pytest.approx(attributes(second)["queued"] + attributes(second)["elapsed"], abs=0.1)


async def test_cancelled_requests_are_no_errors(recorder: Recorder) -> None:
    """A poll whose caller gave up has a span that says so."""
    service = LocalService(solve_time=9)
    service.script("getTaskResult", Delay(1000))
    async with told(recorder, service, request_timeout=2000) as client:
        with anyio.move_on_after(60):
            await client.solve(V2)

    poll = recorder.children[-1]
    assert (poll.attributes or {})["error.type"] == "Cancelled"
    assert "http.response.status_code" not in (poll.attributes or {})
    assert poll.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("api.example.com", {"server.address": "api.example.com"}),
        ("[::1]:81", {"server.address": "::1", "server.port": 81}),
        ("[::1]", {"server.address": "::1"}),
    ],
)
def test_addresses(recorder: Recorder, host: str, said: dict[str, Any]) -> None:
    """Name and port are told apart, for IPv6 as well."""
    recorder.hook(event(Requested, 1, endpoint="createTask", host=host, seconds=0.1))

    (child,) = recorder.children
    assert {name: value for name, value in (child.attributes or {}).items() if name.startswith("server.")} == said


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["work", None])
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_recovered_solves_are_linked(tmp_path: Path, key: str | None) -> None:
    """What another process takes up has a link to the span of the solve that submitted it, through the file.

    In real time: a virtual clock jumps past the thread that writes the file.
    """
    service, first, second = LocalService(solve_time=1), Recorder(), Recorder()
    kept = {"journal": SQLiteJournal(tmp_path / "solves.db"), "polling": Polling(interval=0.1, first=0.1)}
    async with told(first, service, **kept) as client:
        with pytest.raises(SolveTimeoutError):
            await client.solve(V2, key=key, timeout=0.5)
    async with told(second, service, **kept) as client:
        async with client.recover() as outcomes:
            assert [outcome.ok async for outcome in outcomes] == [True]

    assert links(second.span) == [ids(first.span)]
    assert ids(second.span)[0] != ids(first.span)[0]
    assert attributes(second.span)["task.id"] == attributes(first.span)["task.id"]
    first.metering.shutdown()
    second.metering.shutdown()


async def test_named_work_is_linked() -> None:
    """So has a solve with the key of an earlier one, whether that has ended, or its fate is unknown."""
    service, journal = LocalService(solve_time=60), MemoryJournal(store_solutions=True)
    first, second = Recorder(), Recorder()
    async with told(first, service, journal=journal) as client:
        with pytest.raises(SolveTimeoutError):
            await client.solve(V2, key="a", timeout=20)
        service.script("createTask", Drop(after=True))
        with pytest.raises(SubmitUncertainError):
            await client.solve(V2, key="b")
    async with told(second, service, journal=journal) as client:
        await client.solve(V2, key="a")
        await client.solve(V2, key="a")
        with pytest.raises(SubmitUncertainError):
            await client.solve(V2, key="b")

    (solved, uncertain), (held, done, refused) = first.spans, second.spans
    assert links(held) == links(done) == [ids(solved)]
    assert links(refused) == [ids(uncertain)]
    first.metering.shutdown()
    second.metering.shutdown()


async def test_jobs_are_linked_in_a_process(recorder: Recorder) -> None:
    """Waiting again, or by the id alone, links to the span that ended before; nothing is linked to itself."""
    service = LocalService(solve_time=60)
    async with told(recorder, service) as client:
        job = await client.submit(V2)
        with pytest.raises(SolveTimeoutError):
            await job.wait(timeout=20)
        with pytest.raises(SolveTimeoutError):
            await client.job(job.task_id or "").wait(timeout=10)
        await job.wait()

    first, second, third = recorder.spans
    assert [links(span) for span in recorder.spans] == [[], [ids(first)], [ids(first)]]
    assert ids(second) != ids(third)


async def test_nonsense_in_the_journal_links_nothing(recorder: Recorder) -> None:
    """A context that is no traceparent, of another hook or of a damaged file, is passed over."""
    service, journal = LocalService(solve_time=60), MemoryJournal()

    def other(event: Event) -> Context | None:
        return Context("of another kind") if isinstance(event, Started) else None

    async with opened(service, journal=journal, on_event=other) as client:
        with pytest.raises(SolveTimeoutError):
            await client.solve(V2, key="a", timeout=20)
    async with told(recorder, service, journal=journal) as client:
        await client.solve(V2, key="a")

    assert [entry.context async for entry in journal.entries()] == ["of another kind"]
    assert links(recorder.span) == []


# --- trouble ----------------------------------------------------------------------------------------------------------


async def test_trouble_on_the_way_is_in_the_span(recorder: Recorder) -> None:
    """Faults and throttling of polls are events of the span, and of the metrics by endpoint and cause."""
    service = LocalService(solve_time=9)
    service.script("createTask", RateLimit())
    service.script("getTaskResult", Reply(status=503, times=2), RateLimit())
    async with told(recorder, service) as client:
        await client.solve(V2)

    assert happened(recorder.span) == ["throttled", "retry", "retry", "retry", "throttled", "retry"]
    first = recorder.span.events[2].attributes or {}
    assert first["ucaptcha.endpoint"] == "getTaskResult"
    assert first["error.type"] == "ServiceError"
    assert isinstance(first["ucaptcha.delay"], float)
    assert recorder.sums("request.throttled") == {f"{V2_TYPE} createTask": 1, f"{V2_TYPE} getTaskResult": 1}
    assert recorder.sums("request.retried") == {
        f"{V2_TYPE} createTask RateLimitedError": 1,
        f"{V2_TYPE} getTaskResult ServiceError": 2,
        f"{V2_TYPE} getTaskResult RateLimitedError": 1,
    }


async def test_attempts_share_a_span(recorder: Recorder) -> None:
    """A second attempt goes on in the span of the first, under its own task id."""
    service = LocalService(solve_time=9)
    service.fail_next(times=2)
    async with told(recorder, service, attempts=3) as client:
        await client.solve(V2)

    first, second, third = service.books.accepted
    assert attributes(recorder.span)["task.id"] == third
    assert attributes(recorder.span)["attempt"] == 3
    again = [event.attributes for event in recorder.span.events if event.name == "ucaptcha.resubmitted"]
    assert again == [{"ucaptcha.attempt": 2}, {"ucaptcha.attempt": 3}]
    submits = [attributes(child)["task.id"] for child in recorder.children if child.name == "POST /createTask"]
    assert submits == [first, second, third]
    assert recorder.sums("task.submitted") == {V2_TYPE: 3}
    assert recorder.sums("solve.solved") == {V2_TYPE: 1}


async def test_attempts_of_another_solve_are_another_span(recorder: Recorder) -> None:
    """What was submitted before in the same task, and not waited for, is not the first attempt of what comes next."""
    service = LocalService(solve_time=9)
    async with told(recorder, service, attempts=2) as client:
        job = await client.submit(V2)
        service.fail_next()
        service.script("createTask", Delay(0), Error("ERROR_ZERO_BALANCE"))
        with pytest.raises(InsufficientBalanceError):
            await client.solve(V2)
        await job.wait()

    mine, other = service.books.accepted
    outcomes = {attributes(span)["task.id"]: attributes(span)["outcome"] for span in recorder.spans}
    assert outcomes == {mine: "solved", other: "failed"}


async def test_immediate_answers_have_a_span(recorder: Recorder) -> None:
    """Also when the answer comes without an id."""
    service = LocalService()
    service.script("createTask", Amend(), Amend(without=("taskId",)))
    async with told(recorder, service) as client:
        await client.solve(ImageToText(image=PNG))
        await client.solve(ImageToText(image=PNG))

    assert ["task.id" in attributes(span) for span in recorder.spans] == [True, False]
    assert [attributes(span)["polls"] for span in recorder.spans] == [0, 0]
    assert recorder.sums("solve.cost")["ImageToText"] == pytest.approx(float(service.books.spent))


async def test_an_unsolvable_task_is_an_error(recorder: Recorder) -> None:
    """The span has the class, the service's code, and whether money was spent; the message stays out."""
    service = LocalService(failure_rate=1.0, solve_time=9)
    async with told(recorder, service, attempts=2) as client:
        with pytest.raises(UnsolvableError):
            await client.solve(V2)

    said = attributes(recorder.span)
    assert (said["outcome"], said["charged"]) == ("failed", False)
    assert (said["error.type"], said["error.code"]) == ("UnsolvableError", "ERROR_CAPTCHA_UNSOLVABLE")
    assert said["task.id"] == service.books.accepted[-1]
    assert recorder.span.status.status_code is StatusCode.ERROR
    assert recorder.span.status.description == "ERROR_CAPTCHA_UNSOLVABLE"
    assert recorder.sums("solve.failed") == {f"{V2_TYPE} UnsolvableError": 1}
    assert recorder.sums("solve.cost") == {}


async def test_what_was_never_submitted_still_shows(recorder: Recorder) -> None:
    """A refused submit has a span too, without an id."""
    async with told(recorder, LocalService(keys=["ucap_other"])) as client:
        with pytest.raises(AuthenticationError):
            await client.solve(V2)

    assert "task.id" not in attributes(recorder.span)
    assert attributes(recorder.span)["error.type"] == "AuthenticationError"
    assert recorder.sums("task.submitted") == {}


async def test_a_second_attempt_that_is_refused_ends_the_span(recorder: Recorder) -> None:
    """The error after a failed first attempt belongs to the same span."""
    service = LocalService(solve_time=9)
    service.fail_next()
    service.script("createTask", Delay(0), Error("ERROR_ZERO_BALANCE"))
    async with told(recorder, service, attempts=2) as client:
        with pytest.raises(InsufficientBalanceError):
            await client.solve(V2)

    assert attributes(recorder.span)["task.id"] == service.books.accepted[0]
    assert attributes(recorder.span)["error.type"] == "InsufficientBalanceError"


async def test_timeouts_and_late_solutions(recorder: Recorder) -> None:
    """A deadline ends the span; the solution that comes after it has one of its own, as long as the second wait."""
    service = LocalService(solve_time=60)
    async with told(recorder, service) as client:
        job = await client.submit(V2)
        with pytest.raises(SolveTimeoutError):
            await job.wait(timeout=20)
        await job.wait(timeout=100)

    failed, solved = recorder.spans
    assert attributes(failed)["error.type"] == "SolveTimeoutError"
    assert attributes(failed)["charged"] is True
    assert attributes(solved)["task.id"] == attributes(failed)["task.id"] == job.task_id
    assert seconds(failed) == pytest.approx(20, abs=1)
    assert seconds(solved) == pytest.approx(attributes(solved)["elapsed"] - 20, abs=1)
    assert recorder.sums("solve.cost") == {V2_TYPE: pytest.approx(float(service.books.spent))}


@pytest.mark.parametrize("give_up_after", [3, 12])
async def test_cancelled_solves_end_their_span(recorder: Recorder, give_up_after: float) -> None:
    """Whether during the wait, or while a second attempt is being submitted."""
    service = LocalService(solve_time=9)
    service.fail_next()
    service.script("createTask", Delay(0), Delay(1000))
    async with told(recorder, service, attempts=2, request_timeout=2000) as client:
        with anyio.move_on_after(give_up_after):
            await client.solve(V2)

    assert attributes(recorder.span)["outcome"] == "cancelled"
    assert attributes(recorder.span)["task.id"] == service.books.accepted[0]
    assert recorder.span.status.status_code is StatusCode.UNSET
    assert recorder.sums("solve.cancelled") == {V2_TYPE: 1}


async def test_uncertain_submits_are_counted(recorder: Recorder) -> None:
    """A submit of unknown fate shows in the metrics, even where it is submitted again."""
    service = LocalService(solve_time=9)
    service.script("createTask", Drop(after=True, times=2))
    async with told(recorder, service, on_uncertain="resubmit") as client:
        await client.solve(V2)
    service.script("createTask", Drop(after=True))
    async with told(recorder, service) as client:
        with pytest.raises(SubmitUncertainError):
            await client.solve(V2)

    assert recorder.sums("task.uncertain") == {V2_TYPE: 3}
    assert "charged" not in attributes(recorder.spans[-1])


async def test_jobs_from_elsewhere(recorder: Recorder) -> None:
    """A task that another process submitted has a span as well, and its cost counts."""
    service = LocalService(solve_time=20)
    async with opened(service) as other:
        job = await other.submit(V2)
    async with told(recorder, service) as client:
        await client.job(job.task_id or "", RecaptchaV2).wait()

    assert attributes(recorder.span)["task.id"] == job.task_id
    assert recorder.sums("task.submitted") == {}
    assert sum(recorder.sums("solve.cost").values()) == pytest.approx(float(service.books.spent))


async def test_money_counts_once(recorder: Recorder) -> None:
    """What two wait for, and what the journal remembers, is paid for once."""
    service, journal = LocalService(solve_time=20), MemoryJournal()
    async with told(recorder, service, journal=journal) as client:
        solution = await client.solve(V2, key="login")
        await client.solve(V2, key="login")
        async with anyio.create_task_group() as tasks:
            job = await client.submit(V2, key="twice")
            tasks.start_soon(job.wait)
            tasks.start_soon(client.job(job.task_id or "", RecaptchaV2).wait)
    later = Recorder()
    async with told(later, service, journal=journal) as client:
        assert (await client.solve(V2, key="login")).token == solution.token

    assert len(service.books.accepted) == 2
    assert sum(recorder.sums("solve.cost").values()) == pytest.approx(float(service.books.spent))
    assert sum(recorder.sums("solve.solved").values()) == 4
    assert later.sums("solve.cost") == {}
    assert later.sums("solve.solved") == {V2_TYPE: 1}
    assert attributes(later.span)["from_journal"] is True
    later.metering.shutdown()


# --- metrics ----------------------------------------------------------------------------------------------------------


async def test_metrics_agree_with_the_books(recorder: Recorder) -> None:
    """Counts, money and times of a mixed load are those that the service has in its books."""
    service = LocalService(failure_rate=0.3, seed=5)
    async with told(recorder, service) as client:
        outcomes = await client.gather([V2, TURNSTILE] * 50)

    solved = [outcome for outcome in outcomes if outcome.ok]
    assert sum(recorder.sums("task.submitted").values()) == len(service.books.accepted) == 100
    assert sum(recorder.sums("solve.solved").values()) == len(solved)
    assert sum(recorder.sums("solve.failed").values()) == 100 - len(solved)
    assert sum(recorder.sums("solve.cost").values()) == pytest.approx(float(service.books.spent))
    times, elapsed = recorder.points("solve.time")[V2_TYPE], recorder.points("solve.elapsed")[V2_TYPE]
    assert times.count == elapsed.count == sum(outcome.task.kind == V2_TYPE for outcome in solved)
    assert times.sum == pytest.approx(
        sum(outcome.solution.solve_time or 0 for outcome in solved if outcome.task.kind == V2_TYPE)
    )
    assert elapsed.sum > times.sum
    assert tuple(times.explicit_bounds)[:3] == (1.0, 2.0, 4.0)


async def test_requests_are_measured(recorder: Recorder) -> None:
    """The conventions' own metric for HTTP clients counts every request that left, by path and status."""
    service = LocalService(solve_time=9)
    service.script("getTaskResult", Reply(status=503))
    async with told(recorder, service) as client:
        await client.gather([V2] * 5)

    points = recorder.named("http.client.request.duration")
    counts = {(p.attributes["url.template"], p.attributes["http.response.status_code"]): p.count for p in points}
    assert counts["/createTask", 200] == 5
    assert counts["/getTaskResult", 503] == 1
    assert sum(counts.values()) == len(service.books.requests) == len(recorder.children)


async def test_exemplars_lead_to_the_trace(recorder: Recorder) -> None:
    """Each measurement of a histogram is made within its span, so that the SDK's own filter keeps it as an exemplar."""
    async with told(recorder, LocalService(solve_time=9)) as client:
        await client.solve(V2)
        data: Any = recorder.reader.get_metrics_data()  # exemplars are given away once

    metrics = {m.name: m.data.data_points for m in data.resource_metrics[0].scope_metrics[0].metrics}
    solve = {ids(recorder.span)}
    for name, expected in (
        ("ucaptcha.solve.time", solve),
        ("ucaptcha.solve.elapsed", solve),
        ("http.client.request.duration", {ids(child) for child in recorder.children}),
    ):
        exemplars = [exemplar for point in metrics[name] for exemplar in point.exemplars]
        found = {(exemplar.trace_id, exemplar.span_id) for exemplar in exemplars}
        assert found, name
        assert found <= expected


async def test_in_flight_goes_up_and_down(recorder: Recorder) -> None:
    """While tasks are at the service, they are counted."""
    async with told(recorder, LocalService(solve_time=30)) as client, anyio.create_task_group() as tasks:
        for _ in range(7):
            tasks.start_soon(client.solve, V2)
        await anyio.sleep(10)
        assert recorder.sums("task.in_flight") == {V2_TYPE: 7}


# --- bounds and secrets -----------------------------------------------------------------------------------------------


async def test_tasks_that_never_end_do_not_pile_up() -> None:
    """Beyond the bound, the span that was silent for the longest ends as abandoned."""
    recorder = Recorder(max_open=10)
    async with opened(LocalService(solve_time=1000), on_event=recorder.hook) as client:
        first = await client.submit(V2)
        jobs = [await client.submit(V2) for _ in range(9)]
        with pytest.raises(SolveTimeoutError):
            await first.wait(timeout=1)
        assert [attributes(span)["outcome"] for span in recorder.spans] == ["failed"]
        with anyio.move_on_after(30):
            await jobs[0].wait()
        jobs += [await client.submit(V2) for _ in range(5)]
    recorder.metering.shutdown()

    abandoned = [attributes(span)["task.id"] for span in recorder.spans if attributes(span)["outcome"] == "abandoned"]
    assert abandoned == [job.task_id for job in jobs[1:4]]


def event(kind: type[Event], number: int, **fields: Any) -> Event:
    return kind(at=0.0, task_type="T", task_id=f"t{number}", solve_id=number, **fields)


def test_a_request_keeps_a_span_alive() -> None:
    """Those that are being waited for are the last to be given up."""
    recorder = Recorder(max_open=2)
    for happening in (
        event(Submitted, 1),
        event(Submitted, 2),
        event(Requested, 1, endpoint="getTaskResult", host="h", seconds=0.1, status="x" * 1000),
        event(Submitted, 3),
    ):
        recorder.hook(happening)

    assert [attributes(span)["task.id"] for span in recorder.spans] == ["t2"]
    for number in range(1, 9):
        recorder.hook(event(Solved, number, cost=Decimal("0.1"), solve_time=None, elapsed=1.0, polls=1))
    (poll,) = recorder.children
    assert attributes(poll)["status"] == "x" * 40
    assert recorder.points("solve.time") == {}
    assert recorder.sums("solve.cost") == {"T": pytest.approx(0.8)}
    recorder.metering.shutdown()


def test_journal_faults_and_unknown_events(recorder: Recorder) -> None:
    """Writes that failed are counted; events of later versions are passed over."""

    @attrs.frozen(kw_only=True)
    class Later(Event):
        pass

    recorder.hook(event(Submitted, 1))
    recorder.hook(event(Later, 1))
    recorder.hook(event(JournalFailed, 1, error=JournalError("the disk is full")))
    recorder.hook(event(Solved, 1, cost=None, solve_time=None, elapsed=1.0, polls=1))

    assert recorder.sums("journal.failed") == {"T": 1}
    assert happened(recorder.span) == ["journal.failed"]


async def test_nothing_secret_is_told(recorder: Recorder) -> None:
    """Neither the key, nor a token, nor a proxy, nor the name of the work."""
    service = LocalService(solve_time=9)
    refusal = {"errorId": 1, "errorCode": "ERROR_BAD_PARAMETERS", "errorDescription": f"{KEY} pa55word s3cret"}
    service.script("createTask", Json(refusal, status=400))
    task = RecaptchaV2(
        website_url="https://example.com/?session=s3cret",
        website_key="6Le-site",
        proxy=Proxy.parse("http://user:pa55word@203.0.113.5:8080"),
    )
    journal = MemoryJournal()
    async with told(recorder, service, journal=journal) as client:
        with pytest.raises(InvalidTaskError):
            await client.solve(task)
        solution = await client.solve(task, key="work-n4me")

    told_of = list(everything(recorder))
    assert len(told_of) > 100
    assert task.kind in told_of
    secrets = (KEY, solution.token, "pa55word", "203.0.113.5", "s3cret", "work-n4me", "6Le-site")
    assert [(secret, word) for word in told_of for secret in secrets if secret in word] == []
    contexts = [entry.context async for entry in journal.entries()]
    known = ["00-{:032x}-{:016x}".format(*ids(span)) for span in recorder.spans]
    assert [context[:-3] for context in contexts if context] == known


def everything(recorder: Recorder) -> Iterator[str]:
    """Every name, attribute, event, link and status of every span, and every attribute of every point and exemplar."""
    for span in recorder.exporter.get_finished_spans():
        yield span.name
        yield str(span.status.description)
        tables = [span.attributes, span.resource.attributes, *(link.attributes for link in span.links)]
        for happening in span.events:
            yield happening.name
            tables.append(happening.attributes)
        for table in tables:
            yield from flat(table)
    data = recorder.reader.get_metrics_data()
    for metric in (m for r in (data.resource_metrics if data else ()) for s in r.scope_metrics for m in s.metrics):
        yield metric.name
        for point in metric.data.data_points:
            yield from flat(point.attributes)
            for exemplar in point.exemplars:
                yield from flat(exemplar.filtered_attributes)


def flat(table: Any) -> Iterator[str]:
    for name, value in (table or {}).items():
        yield name
        yield from map(str, value if isinstance(value, list | tuple) else (value,))


# --- without ----------------------------------------------------------------------------------------------------------


async def test_without_providers_nothing_happens() -> None:
    """Without a provider in the program the hook is silent and costs little."""
    async with opened(LocalService(solve_time=9), on_event=instrument()) as client:
        assert (await client.solve(V2)).token


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, importing the module says how to get it; nothing else of the package asks for it."""
    for name in [name for name in sys.modules if name.split(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "ucaptcha_async.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ImportError, match=r"pip install 'ucaptcha_async\[otel\]'"):
        __import__("ucaptcha_async.otel")


def test_nothing_is_imported_unasked() -> None:
    """A whole solve without telemetry imports nothing of OpenTelemetry, and makes not one event."""
    program = """
import asyncio, sys
from ucaptcha_async import AsyncClient, Polling, Turnstile, events
from ucaptcha_async.testing import running_service

def never(self, *arguments, **fields):
    raise AssertionError("an event was made for nobody")

events.Event.__init__ = never
for kind in events.Event.__subclasses__():
    kind.__init__ = never

async def main(url):
    async with AsyncClient("ucap_key", base_url=url, polling=Polling(interval=0.1, first=0.1)) as client:
        await client.solve(Turnstile(website_url="https://example.com", website_key="0x4AAA"))

with running_service(solve_time=0.01) as service:
    asyncio.run(main(service.url))
print([name for name in sys.modules if name.startswith("opentelemetry") or name == "ucaptcha_async.otel"])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (found.stdout.strip(), found.stderr) == ("[]", "")
