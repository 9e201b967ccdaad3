"""Telemetry: one span per solve, metrics that agree with the service's books, and no secret in either."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
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
    Proxy,
    RecaptchaV2,
    SolveTimeoutError,
    SubmitUncertainError,
    UnsolvableError,
)
from ucaptcha_async.errors import JournalError
from ucaptcha_async.events import Event, JournalFailed, Polled, Solved, Submitted
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
    def span(self) -> ReadableSpan:
        (span,) = self.spans
        return span

    def points(self, name: str) -> dict[str, Any]:
        """The points of a metric, by the values of their attributes."""
        data = self.reader.get_metrics_data()
        metrics = [m for r in (data.resource_metrics if data else ()) for s in r.scope_metrics for m in s.metrics]
        points = [point for metric in metrics if metric.name == f"ucaptcha.{name}" for point in metric.data.data_points]
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
    }
    assert span.kind.name == "CLIENT"
    assert span.status.status_code is StatusCode.UNSET
    assert happened(span) == ["poll"] * (solution.polls - 1)
    assert span.events[0].attributes == {"ucaptcha.status": "processing", "ucaptcha.polls": 1}
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


async def test_trouble_on_the_way_is_in_the_span(recorder: Recorder) -> None:
    """Faults and throttling of polls are events of the span, and of the metrics by endpoint and cause."""
    service = LocalService(solve_time=9)
    service.script("createTask", RateLimit())
    service.script("getTaskResult", Reply(status=503, times=2), RateLimit())
    async with told(recorder, service) as client:
        await client.solve(V2)

    assert happened(recorder.span)[:4] == ["retry", "retry", "throttled", "retry"]
    first = recorder.span.events[0].attributes or {}
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
    assert again == [
        {"ucaptcha.task.id": first, "ucaptcha.attempt": 2},
        {"ucaptcha.task.id": second, "ucaptcha.attempt": 3},
    ]
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
    """A deadline ends the span; the solution that comes after it has one of its own, as long as the wait was."""
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
    assert ((solved.end_time or 0) - (solved.start_time or 0)) / 1e9 == pytest.approx(
        attributes(solved)["elapsed"], abs=30
    )
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
    return kind(at=0.0, task_type="T", task_id=f"t{number}", **fields)


def test_a_poll_keeps_a_span_alive() -> None:
    """Those that are being waited for are the last to be given up."""
    recorder = Recorder(max_open=2)
    for happening in (
        event(Submitted, 1),
        event(Submitted, 2),
        event(Polled, 1, status="x" * 1000, polls=1),
        event(Submitted, 3),
    ):
        recorder.hook(happening)

    assert [attributes(span)["task.id"] for span in recorder.spans] == ["t2"]
    for number in range(1, 9):
        recorder.hook(event(Solved, number, cost=Decimal("0.1"), solve_time=None, elapsed=1.0, polls=1))
    (poll,) = next(span for span in recorder.spans if attributes(span)["task.id"] == "t1").events
    assert poll.attributes == {"ucaptcha.status": "x" * 40, "ucaptcha.polls": 1}
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
    async with told(recorder, service) as client:
        with pytest.raises(InvalidTaskError):
            await client.solve(task)
        solution = await client.solve(task, key="work-n4me")

    data = recorder.reader.get_metrics_data()
    everything = "".join(span.to_json() for span in recorder.spans) + (data.to_json() if data else "")
    assert task.kind in everything
    for secret in (KEY, solution.token, "pa55word", "203.0.113.5", "s3cret", "work-n4me", "6Le-site"):
        assert secret not in everything


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
