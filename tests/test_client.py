"""One solve, end to end, in virtual time."""

from __future__ import annotations

import asyncio
import json
import pickle
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import anyio
import httpx
import pytest

import ucaptcha_async
from tests.helpers import KEY, TURNSTILE, V2, at_rest, opened
from ucaptcha_async import (
    AsyncClient,
    AuthenticationError,
    ClientStateError,
    ConfigurationError,
    ImageToText,
    InsufficientBalanceError,
    InvalidTaskError,
    Polling,
    ProtocolError,
    SelectionMode,
    ServiceError,
    SolutionError,
    SolveTimeoutError,
    SubmitUncertainError,
    Task,
    TaskNotFoundError,
    TextSolution,
    TokenSolution,
    UCaptchaError,
    UnsolvableError,
    UnsupportedTaskError,
)
from ucaptcha_async.events import Cancelled, Polled, Requested, Solved, Started, Submitted
from ucaptcha_async.testing import Amend, Error, Html, Huge, Json, LocalService, Truncated

pytestmark = pytest.mark.virtual_time

PNG = bytes.fromhex("89504e470d0a1a0a") + b"\0" * 120


async def test_solve() -> None:
    """A solve gives the token, what it cost by the service's books, and how long it took."""
    service = LocalService(solve_time=12)
    async with opened(service) as client:
        solution = await client.solve(V2)
        at_rest(client)

    assert isinstance(solution, TokenSolution)
    assert solution.raw["gRecaptchaResponse"] == solution.token
    assert service.books.spent == solution.cost == Decimal("0.00299")
    assert solution.solve_time == 12
    assert (solution.task_id,) == service.books.accepted
    assert solution.polls == service.books.request_counts["getTaskResult"]


async def test_immediate_answers_need_no_poll() -> None:
    """An image, and any task of a key in Lightning mode, is solved by createTask itself."""
    service = LocalService(lightning={KEY: 5})
    async with opened(service) as client:
        text = await client.solve(ImageToText(image=PNG))
        token = await client.solve(V2)

    assert isinstance(text, TextSolution)
    assert text.token == text.text
    assert (text.polls, token.polls) == (0, 0)
    assert "getTaskResult" not in service.books.request_counts


async def test_submit_then_wait() -> None:
    """A job has its id before it is solved; it can be waited for twice, and taken up by id elsewhere."""
    service = LocalService(solve_time=20)
    async with opened(service) as client:
        job = await client.submit(V2)
        assert (job.task_id,) == service.books.accepted
        first = await job.wait()
        assert first is await job.wait(timeout=timedelta(seconds=1))
        at_rest(client)

    async with opened(service) as other:
        again = await other.job(job.task_id or "", type(V2)).wait()

    assert isinstance(again, TokenSolution)
    assert first.token == again.token
    assert again.lifetime == 120


async def test_a_forgotten_job_gives_its_place_back() -> None:
    """A job that nobody holds any more does not block those that follow."""
    service = LocalService(solve_time=20)
    async with opened(service, max_in_flight=1) as client:
        await client.submit(V2)
        await client.solve(V2, timeout=100)
        at_rest(client)


async def test_get_task_result() -> None:
    """One question gives one state: pending, then ready."""
    service = LocalService(solve_time=20)
    async with opened(service) as client:
        job = await client.submit(V2)
        pending = await client.get_task_result(job.task_id or "")
        await anyio.sleep(25)
        ready = await client.get_task_result(job.task_id or "")

    assert pending.pending
    assert pending.solution is None
    assert ready.ready
    assert ready.solution is not None
    assert ready.solve_time == 20


async def test_balance_and_feedback() -> None:
    """The balance is a Decimal from the JSON text; feedback arrives in the service's books."""
    service = LocalService(balance=Decimal("50.2500"))
    async with opened(service) as client:
        assert Decimal("50.25") == await client.get_balance()
        solution = await client.solve(V2)
        await solution.rejected("the site said no", code="3")
        await client.feedback(solution.task_id or "", accepted=True, message="fine after all")
        with pytest.raises(InvalidTaskError, match="message must be a non-empty str"):
            await client.feedback(solution.task_id or "", accepted=True, message="")
        with pytest.raises(InvalidTaskError, match="message must be a non-empty str"):
            await solution.accepted("")
        with pytest.raises(InvalidTaskError, match="accepted must be True or False; got str"):
            await client.feedback("id", accepted="no", message="no")  # type: ignore[arg-type]
        with pytest.raises(InvalidTaskError, match="code must be"):
            await client.feedback("id", accepted=True, message="yes", code=3)  # type: ignore[arg-type]
        with pytest.raises(InvalidTaskError, match="task_id must be"):
            await client.get_task_result(None)  # type: ignore[arg-type]
        with pytest.raises(InvalidTaskError, match="kind must be a class of tasks"):
            client.job("id", "RecaptchaV2")  # type: ignore[call-overload]

    assert service.books.request_counts["feedbackTask"] == 2


async def test_concurrent_solves_do_not_mix() -> None:
    """Each of a hundred solves of one task object gets its own task."""
    service = LocalService()
    tokens: set[str] = set()

    async def one(client: AsyncClient) -> None:
        tokens.add((await client.solve(V2)).token)

    async with opened(service) as client, anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(one, client)

    assert 100 == len(tokens) == len(service.books.accepted)


async def test_polls_are_never_closer_than_the_interval() -> None:
    """Whatever the latency, two polls of one task start at least five seconds apart."""
    service = LocalService(solve_time=60, latency=3.0)
    async with opened(service) as client, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(client.solve, V2)

    gap = service.books.smallest_poll_gap()
    assert gap is not None
    assert gap >= 5 - 1e-9


# --- options ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(**options: Any) -> AsyncIterator[tuple[AsyncClient, list[dict[str, Any]]]]:
    """A client, and the bodies that it sends."""
    app = httpx.ASGITransport(app=LocalService(solve_time=6))
    bodies: list[dict[str, Any]] = []

    class Listening(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            bodies.append(json.loads(request.content))
            return await app.handle_async_request(request)

    async with httpx.AsyncClient(transport=Listening()) as http:
        async with AsyncClient(KEY, http_client=http, **options) as client:
            yield client, bodies


async def test_nothing_is_sent_unless_set() -> None:
    """Without a choice the body has the key and the task, so that the key's own settings apply."""
    async with listening() as (client, bodies):
        await client.solve(V2)

    assert {"clientKey", "task"} == bodies[0].keys()
    assert {"clientKey", "taskId"} == bodies[1].keys()


async def test_routing_per_client_view_and_call() -> None:
    """A call overrides a view, a view overrides the client, and None goes back to the key's settings."""
    async with listening(selection_mode=SelectionMode.AUTO_CHEAPEST, provider="capsolver") as (client, bodies):
        await client.solve(V2)
        view = client.with_options(selection_mode="autoFastest")
        await view.solve(V2)
        await view.solve(V2, selection_mode=None, provider="2captcha")

    submits = [body for body in bodies if "task" in body]
    chosen = [(body.get("selectionMode"), body.get("provider")) for body in submits]
    assert chosen == [("autoCheapest", "capsolver"), ("autoFastest", "capsolver"), (None, "2captcha")]


async def test_views_share_everything_but_defaults() -> None:
    """A view counts in the same statistics, and is closed with its client."""
    service = LocalService()
    async with opened(service, max_in_flight=3) as client:
        view = client.with_options(timeout=100)
        await view.solve(V2)
        assert 1 == client.statistics().solved == view.statistics().solved
        assert client.spent == view.spent
    with pytest.raises(ClientStateError, match="closed"):
        await view.solve(V2)


async def test_events_tell_the_story() -> None:
    """From the start to the solution, in order, with ids and times, and none shows the token."""
    events: list[Any] = []
    service = LocalService(solve_time=14)
    polling = Polling(schedule=(5, 10, 15), jitter=0)
    async with opened(service, on_event=events.append, polling=polling) as client:
        solution = await client.solve(V2)

    poll = [Requested, Polled]
    assert [Started, Requested, Submitted, *poll, *poll, Requested, Solved] == [type(event) for event in events]
    assert [None, *[solution.task_id] * 8] == [event.task_id for event in events]
    assert len({event.solve_id for event in events}) == 1
    assert pytest.approx(events[-1].elapsed, abs=1) == 15
    assert solution.token not in repr(events)


async def test_a_hook_that_raises_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The solve goes on, and the log has the traceback."""

    def hook(event: object) -> None:
        raise ZeroDivisionError

    async with opened(LocalService(), on_event=hook) as client:
        assert (await client.solve(V2)).token

    assert "on_event raised" in caplog.text


# --- bad input --------------------------------------------------------------------------------------------------------


def test_no_key_is_an_error_at_construction() -> None:
    """Neither argument nor environment: the error names both."""
    with pytest.raises(ConfigurationError, match="pass api_key or set UCAPTCHA_API_KEY"):
        AsyncClient()


def test_environment_fills_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """UCAPTCHA_API_KEY and UCAPTCHA_BASE_URL."""
    monkeypatch.setenv("UCAPTCHA_API_KEY", KEY)
    monkeypatch.setenv("UCAPTCHA_BASE_URL", "https://solver.example")

    assert "solver.example" in repr(AsyncClient())
    assert "other.example" in repr(AsyncClient(base_url="https://other.example/"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("UCAPTCHA_API_KEY", ""),
        ("UCAPTCHA_API_KEY", "ucap_MARK\x07"),
        ("UCAPTCHA_BASE_URL", "https://user:MARK@solver.example"),
        ("UCAPTCHA_BASE_URL", "https://solver.example/?key=MARK"),
        ("UCAPTCHA_BASE_URL", "solver.example"),
        ("UCAPTCHA_BASE_URL", "http://solver.example/MARK"),
        ("UCAPTCHA_ALLOW_INSECURE", "MARK"),
    ],
)
def test_what_the_environment_says_is_checked(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable, and shows no secret of it."""
    monkeypatch.setenv("UCAPTCHA_API_KEY", KEY)
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError, match=f"^{name}") as error:
        AsyncClient()
    assert "MARK" not in str(error.value)


def test_plain_http_says_what_accepts_it() -> None:
    """A host of one's own may be allowed; the service itself may not."""
    with pytest.raises(ConfigurationError, match=r"allow_insecure=True accepts it\); got 'http://10\.0\.0\.1'"):
        AsyncClient(KEY, base_url="http://10.0.0.1:8080")
    for given in ({}, {"allow_insecure": True}):
        with pytest.raises(ConfigurationError, match="this machine only") as error:
            AsyncClient(KEY, base_url="http://api.ucaptcha.net", **given)
        assert "allow_insecure" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"api_key": ""}, "api_key"),
        ({"api_key": 7}, "api_key"),
        ({"base_url": "http://api.ucaptcha.net"}, "base_url"),
        ({"base_url": "http://127.evil.example"}, "base_url"),
        ({"base_url": "api.ucaptcha.net"}, "base_url"),
        ({"base_url": "https://user:pw@host"}, "base_url"),
        ({"base_url": "https://host/?a=b"}, "base_url"),
        ({"base_url": "https://host/?"}, "base_url"),
        ({"base_url": "https://host/#"}, "base_url"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": "60"}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"rate_limit": 100}, "rate_limit"),
        ({"http_client": object()}, "http_client"),
        ({"http_client": httpx.Client}, "http_client"),
        ({"journal": 7}, "journal"),
        ({"budget": 0.5}, "max_spend"),
        ({"budget": object()}, "budget"),
        ({"polling": 5}, "polling"),
        ({"callbacks": "https://example.com"}, "callbacks"),
        ({"on_event": "print"}, "on_event"),
        ({"request_timeout": None}, "request_timeout"),
        ({"allow_insecure": "yes"}, "allow_insecure"),
        ({"max_connections": 0}, "max_connections"),
        ({"attempts": 0}, "attempts"),
        ({"attempts": True}, "attempts"),
        ({"selection_mode": "fastest"}, "selection_mode"),
        ({"provider": ""}, "provider"),
        ({"transport": "fats"}, "transport"),
        ({"on_uncertain": "retry"}, "on_uncertain"),
        ({"proxy": "ftp://host:8080"}, "proxy"),
        ({"cancel_grace": -1}, "cancel_grace"),
        ({"request_timeout": 0}, "request_timeout"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], named: str) -> None:
    """A wrong setting raises at construction, and the message names it."""
    with pytest.raises(ConfigurationError, match=named):
        AsyncClient(**{"api_key": KEY, **options})


def test_tls_is_always_verified() -> None:
    """A context that does not verify is refused."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    with pytest.raises(ConfigurationError, match="verifies certificates"):
        AsyncClient(KEY, ssl_context=context)


async def test_use_before_entry_and_after_exit() -> None:
    """Both are clear errors, and a client is entered once."""
    client = AsyncClient(KEY)
    with pytest.raises(ClientStateError, match="async with"):
        await client.get_balance()
    async with client:
        with pytest.raises(ClientStateError, match="entered once"):
            await client.__aenter__()
    with pytest.raises(ClientStateError, match="closed"):
        await client.solve(V2)


async def test_not_a_task() -> None:
    """Something else than a Task, or a wrong key, is refused before any request."""
    service = LocalService()
    async with opened(service) as client:
        with pytest.raises(InvalidTaskError, match="task must be a Task"):
            await client.solve({"type": "RecaptchaV2TaskProxyless"})  # type: ignore[arg-type]
        with pytest.raises(InvalidTaskError, match="key must be a non-empty str"):
            await client.solve(V2, key="")
        with pytest.raises(InvalidTaskError, match="task_id must be"):
            client.job("")

    assert service.books.total_requests == 0


async def test_wrong_key() -> None:
    """HTTP 401: the account's class, its code, and nothing charged."""
    async with opened(LocalService(keys=["ucap_other"])) as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.solve(V2)

    assert told(caught.value) == ("ERROR_KEY_DOES_NOT_EXIST", False, False, None)
    assert KEY not in str(caught.value)


async def test_no_balance() -> None:
    """HTTP 402."""
    async with opened(LocalService(balance=0)) as client:
        with pytest.raises(InsufficientBalanceError) as caught:
            await client.solve(V2)

    assert told(caught.value) == ("ERROR_ZERO_BALANCE", False, False, None)


async def test_unknown_task_type() -> None:
    """The service's own code without the ERROR_ prefix."""
    async with opened(LocalService()) as client:
        with pytest.raises(UnsupportedTaskError) as caught:
            await client.solve(Task("NoSuchTask"))

    assert told(caught.value) == ("TASK_NOT_SUPPORTED", False, False, None)


async def test_a_code_nobody_has_seen() -> None:
    """The general class, by the HTTP status, with the code as it came."""
    service = LocalService()
    service.script("createTask", Error("ERROR_MOON_PHASE", status=400), Error("ERROR_MOON_PHASE", status=409))
    async with opened(service) as client:
        with pytest.raises(InvalidTaskError) as by_status:
            await client.solve(V2)
        with pytest.raises(ServiceError) as general:
            await client.solve(V2)

    assert "ERROR_MOON_PHASE" == by_status.value.error_code == general.value.error_code
    assert general.value.http_status == 409


@pytest.mark.parametrize(
    "fault",
    [
        Html(502),
        Truncated(),
        Json([1, 2]),
        Json("ready"),
        Amend({}, without=("taskId",)),
        Amend({"taskId": None}),
        Huge(),
    ],
    ids=lambda fault: repr(fault)[:30],
)
async def test_unreadable_answers_to_a_submit_leave_its_fate_open(fault: Any) -> None:
    """Sent, and no readable answer: the error says so, and nothing is sent again."""
    service = LocalService()
    service.script("createTask", fault)
    async with opened(service) as client:
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(V2)
        at_rest(client)

    assert caught.value.charged is None
    assert [attempt.uncertain for attempt in caught.value.attempts] == [True]
    assert service.books.request_counts["createTask"] == 1


@pytest.mark.parametrize(
    "fault",
    [Html(502), Truncated(), Json([1, 2]), Json({"odd": 1}), Huge(), Json({"errorId": 0, "status": "pondering"})],
    ids=lambda fault: repr(fault)[:40],
)
async def test_unreadable_answers_to_a_poll_are_late_polls(fault: Any) -> None:
    """The solve goes on to its solution."""
    service = LocalService(solve_time=12)
    service.script("getTaskResult", fault)
    async with opened(service) as client:
        solution = await client.solve(V2)

    assert solution.polls > 1
    assert service.books.request_counts["createTask"] == 1


@pytest.mark.parametrize("solution", [None, "P1_token", [], {}, {"other": 1}])
async def test_a_solution_that_is_none(solution: Any) -> None:
    """A ready answer without the promised solution is a clear error that keeps raw, id and cost."""
    service = LocalService(solve_time=6)
    service.script("getTaskResult", Amend({"status": "ready", "solution": solution, "cost": 0.003}))
    async with opened(service) as client:
        with pytest.raises(SolutionError) as caught:
            await client.solve(V2)
        at_rest(client)

    assert True is caught.value.charged
    assert service.books.accepted == (caught.value.task_id,)
    assert Decimal("0.003") == caught.value.cost
    assert solution == caught.value.raw


async def test_unknown_fields_and_words(caplog: pytest.LogCaptureFixture) -> None:
    """An unknown field is kept in raw; an unknown status word counts as pending and is logged once."""
    service = LocalService(solve_time=30)
    service.solve_next(solution={"gRecaptchaResponse": "T", "mood": "good"}, after=30)
    service.script("getTaskResult", Amend({"status": "dreaming"}, times=2))
    async with opened(service) as client:
        solution = await client.solve(V2)

    assert solution.raw == {"gRecaptchaResponse": "T", "mood": "good"}
    assert caplog.text.count("unknown task status 'dreaming'") == 1


async def test_unknown_task_id() -> None:
    """HTTP 404 with the protocol's code ends the wait."""
    async with opened(LocalService()) as client:
        with pytest.raises(TaskNotFoundError) as caught:
            await client.job("00000000-0000-0000-0000-000000000000").wait()

    assert caught.value.task_id == "00000000-0000-0000-0000-000000000000"


async def test_unsolvable_is_refunded() -> None:
    """HTTP 200, errorId 0, status failed: refunded, so not charged."""
    service = LocalService(solve_time=8)
    service.fail_next()
    async with opened(service) as client:
        with pytest.raises(UnsolvableError) as caught:
            await client.solve(V2)
        at_rest(client)

    assert ("ERROR_CAPTCHA_UNSOLVABLE", True, False, service.books.accepted[0]) == told(caught.value)
    assert service.books.spent == 0
    assert client.spent == {}


async def test_redirects_are_not_followed() -> None:
    """The key goes to no other host."""
    hosts: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        return httpx.Response(307, headers={"location": "https://evil.example/"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), follow_redirects=True) as http:
        async with AsyncClient(KEY, http_client=http) as client:
            with pytest.raises(ProtocolError, match="redirects are not followed"):
                await client.get_balance()

    assert hosts == ["api.ucaptcha.net"]


# --- attempts and deadlines -------------------------------------------------------------------------------------------


async def test_attempts() -> None:
    """A failed task is followed by a new one, optionally routed otherwise; every attempt is listed."""
    service = LocalService(solve_time=6)
    service.fail_next(times=2)
    async with opened(service, retry_selection_mode="autoMostReliable") as client:
        async with client.solve_many([V2], attempts=3) as outcomes:
            (outcome,) = [outcome async for outcome in outcomes]
        at_rest(client)

    assert outcome.solution.token
    assert [a.selection_mode for a in outcome.attempts] == [None, "autoMostReliable", "autoMostReliable"]
    assert [a.error is None for a in outcome.attempts] == [False, False, True]
    assert service.books.accepted == tuple(a.task_id for a in outcome.attempts)
    assert service.books.spent == client.spent["RecaptchaV2"]


async def test_deadline_while_waiting() -> None:
    """The error says the phase and the id, and the job can be waited for again."""
    service = LocalService(solve_time=100)
    async with opened(service) as client:
        with pytest.raises(SolveTimeoutError) as caught:
            await client.solve(V2, timeout=30)
        assert caught.value.phase == "wait"
        assert (None, True, True, service.books.accepted[0]) == told(caught.value)
        at_rest(client)

        solution = await client.job(caught.value.task_id or "", type(V2)).wait(timeout=200)

    assert solution.token
    assert isinstance(caught.value, TimeoutError)


async def test_deadline_in_the_queue() -> None:
    """Queueing counts, and costs nothing."""
    service = LocalService(solve_time=100)
    async with opened(service, max_in_flight=1) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.solve, V2)
        await anyio.sleep(1)
        with pytest.raises(SolveTimeoutError) as caught:
            await client.solve(TURNSTILE, timeout=10)

    assert (caught.value.phase, caught.value.charged, caught.value.task_id) == ("queue", False, None)
    assert len(service.books.accepted) == 1


async def test_deadline_during_submit() -> None:
    """The answer is still read for the grace, so that the paid task's id is known."""
    service = LocalService(solve_time=50, latency=3)
    async with opened(service) as client:
        with pytest.raises(SolveTimeoutError) as caught:
            await client.solve(V2, timeout=1)
        at_rest(client)

    assert ("submit", True, service.books.accepted[0]) == (
        caught.value.phase,
        caught.value.charged,
        caught.value.task_id,
    )


async def test_deadline_during_submit_without_an_answer() -> None:
    """When the grace passes too, nobody knows."""
    service = LocalService(latency=60)
    async with opened(service, cancel_grace=2) as client:
        started = anyio.current_time()
        with pytest.raises(SolveTimeoutError) as caught:
            await client.solve(V2, timeout=1)
        assert pytest.approx(anyio.current_time() - started) == 3
        at_rest(client)

    assert (caught.value.charged, caught.value.task_id) == (None, None)


# --- cancellation -----------------------------------------------------------------------------------------------------


async def test_cancelled_while_waiting() -> None:
    """At once; the id is in an event and in client.abandoned."""
    events: list[Any] = []
    service = LocalService(solve_time=100)
    async with opened(service, on_event=events.append) as client:
        with anyio.move_on_after(20) as scope:
            await client.solve(V2)
        assert scope.cancelled_caught
        at_rest(client)

    assert service.books.accepted == client.abandoned == (events[-1].task_id,)
    assert Cancelled is type(events[-1])


async def test_cancelled_during_submit() -> None:
    """The answer is read under a shield, so that the id of the paid task is known."""
    service = LocalService(solve_time=50, latency=3)
    async with opened(service) as client:
        with anyio.move_on_after(1):
            await client.solve(V2)
        at_rest(client)

    assert service.books.accepted == client.abandoned
    assert len(client.abandoned) == 1


async def test_cancelled_in_the_queue() -> None:
    """Nothing is sent."""
    service = LocalService(solve_time=100)
    async with opened(service, max_in_flight=1) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.solve, V2)
        await anyio.sleep(1)
        with anyio.move_on_after(5):
            await client.solve(TURNSTILE)
        assert client.statistics().in_flight == 1
        tasks.cancel_scope.cancel()
    at_rest_after = client.abandoned

    assert 1 == len(service.books.accepted) == len(at_rest_after)


async def test_native_asyncio_cancellation(anyio_backend_name: str) -> None:
    """task.cancel() during createTask keeps the id too."""
    if anyio_backend_name != "asyncio":
        pytest.skip("native tasks of asyncio")
    service = LocalService(solve_time=50, latency=3)
    async with opened(service) as client:
        task = asyncio.create_task(client.solve(V2))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        at_rest(client)

    assert service.books.accepted == client.abandoned


async def test_errors_survive_pickling() -> None:
    """An error keeps its class, message and fields; a client and a solution refuse."""
    service = LocalService(solve_time=8)
    service.fail_next()
    async with opened(service) as client:
        with pytest.raises(UnsolvableError) as caught:
            await client.solve(V2)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(client)

    copy = pickle.loads(pickle.dumps(caught.value))

    assert type(copy) is UnsolvableError
    assert (str(caught.value), told(caught.value)) == (str(copy), told(copy))


def told(error: UCaptchaError) -> tuple[str | None, bool, bool | None, str | None]:
    """What an error says besides its message."""
    return error.error_code, error.retryable, error.charged, error.task_id


def test_all_names_are_public() -> None:
    """`__all__` lists what the package exports, and each error has a docstring."""
    for name in ucaptcha_async.__all__:
        assert getattr(ucaptcha_async, name).__doc__, name
