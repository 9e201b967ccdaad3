"""The client's life: entering, closing, draining, other event loops, defects of others' code, settings."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import httpx
import pytest

from tests.helpers import KEY, TURNSTILE, V2, at_rest
from tests.own_service import PENDING, TOKEN, URL, OwnService, Said, accepted, at, page, refused
from ucaptcha_async import (
    AsyncClient,
    Budget,
    ClientStateError,
    ConfigurationError,
    InvalidTaskError,
    MemoryJournal,
    Polling,
    RateLimiter,
    SolveTimeoutError,
    SQLiteJournal,
    Turnstile,
    UCaptchaError,
)
from ucaptcha_async.journal import State

virtual = pytest.mark.virtual_time
CENT = Decimal("0.01")


async def states(journal: MemoryJournal) -> list[tuple[State, str | None]]:
    return [(entry.state, entry.task_id) async for entry in journal.entries()]


async def caught(call: Any, errors: list[BaseException]) -> None:
    try:
        await call
    except Exception as error:
        errors.append(error)


# --- after the end ----------------------------------------------------------------------------------------------------


@virtual
@pytest.mark.parametrize("way", ["solve", "named", "job", "taken up", "gather", "solve_many", "view"])
async def test_waits_end_with_the_client(way: str) -> None:
    """At once, with an error that names the task; the id is kept, and so are money and row."""
    journal, money, errors = MemoryJournal(), Budget(max_spend=1, estimate="0.01"), []
    service = OwnService().says("getTaskResult", always=PENDING)
    async with anyio.create_task_group() as tasks:
        async with at(service, journal=journal, budget=money) as client:
            if way in ("job", "taken up"):
                job = await client.submit(TURNSTILE)
                wait = job.wait() if way == "job" else client.job(job.task_id or "").wait()
                tasks.start_soon(caught, wait, errors)
            elif way == "gather":
                tasks.start_soon(_outcomes, client.gather([TURNSTILE]), errors)
            elif way == "solve_many":
                tasks.start_soon(_streamed, client, errors)
            else:
                view = client.with_options(timeout=None) if way == "view" else client
                call = view.solve(TURNSTILE, key="work" if way == "named" else None)
                tasks.start_soon(caught, call, errors)
            await anyio.sleep(20)
            start = anyio.current_time()
        assert anyio.current_time() - start < 0.1

    (error,) = errors
    assert isinstance(error, ClientStateError)
    assert (error.task_id, error.charged) == ("task-1", True)
    assert "closed" in str(error)
    assert client.abandoned == ("task-1",)
    assert await states(journal.another()) == [(State.ACCEPTED, "task-1")]
    assert (money.spent + money.reserved, client.spent) == (CENT, {})
    polls = len(service.polls)
    await anyio.sleep(600)
    assert len(service.polls) == polls


async def _outcomes(call: Any, errors: list[BaseException]) -> None:
    errors.extend(outcome.error for outcome in await call)


async def _streamed(client: AsyncClient, errors: list[BaseException]) -> None:
    with pytest.raises(ClientStateError):
        async with client.solve_many([TURNSTILE]) as outcomes:
            async for outcome in outcomes:
                assert outcome.error is not None
                errors.append(outcome.error)


@virtual
@pytest.mark.parametrize(
    ("after", "task_id", "charged", "state"),
    [(2, "t-1", True, State.ACCEPTED), (30, None, None, State.UNCERTAIN)],
)
async def test_submits_are_still_answered(
    after: float, task_id: str | None, charged: bool | None, state: State
) -> None:
    """Within the grace; after it, nobody knows."""
    journal, errors = MemoryJournal(), []
    service = OwnService().says("createTask", attrs.evolve(accepted("t-1"), after=after))
    async with anyio.create_task_group() as tasks:
        async with at(service, journal=journal, cancel_grace=4) as client:
            tasks.start_soon(caught, client.solve(TURNSTILE, key="work"), errors)
            await anyio.sleep(1)
            start = anyio.current_time()
        assert anyio.current_time() - start == pytest.approx(min(after - 1, 4))

    (error,) = errors
    assert isinstance(error, ClientStateError)
    assert (error.task_id, error.charged) == (task_id, charged)
    assert await states(journal.another()) == [(state, task_id)]
    assert client.abandoned == (() if task_id is None else (task_id,))


@virtual
async def test_what_was_not_submitted_costs_nothing() -> None:
    """In the queue, held by the breaker, or between two tries of a submit."""
    journal, money, errors = MemoryJournal(), Budget(max_spend=1, estimate="0.01"), []
    service = OwnService().says("createTask", always=refused("ERROR_NO_SLOT_AVAILABLE"))
    async with anyio.create_task_group() as tasks:
        async with at(service, journal=journal, budget=money, max_in_flight=3) as client:
            for number in range(6):
                tasks.start_soon(caught, client.solve(TURNSTILE, key=f"work {number}"), errors)
            await anyio.sleep(20)

    assert len(errors) == 6
    assert all(isinstance(error, ClientStateError) and error.charged is False for error in errors)
    assert all("charged" not in str(error) for error in errors)
    assert (money.spent, money.reserved, client.abandoned) == (0, 0, ())
    assert {state for state, _ in await states(journal.another())} <= {State.REFUSED}


@virtual
async def test_jobs_that_nobody_waits_for() -> None:
    """Open at the end, or dropped before: both are in `abandoned`, once each."""
    service = OwnService().says("getTaskResult", always=PENDING)
    async with at(service) as client:
        kept = await client.submit(TURNSTILE)
        await client.submit(TURNSTILE)
        gc.collect()
        timed_out = await client.submit(TURNSTILE)
        with pytest.raises(SolveTimeoutError):
            await timed_out.wait(timeout=20)
        with pytest.raises(SolveTimeoutError):
            await timed_out.wait(timeout=20)

    assert sorted(client.abandoned) == ["task-1", "task-2", "task-3"]
    for job in (kept, timed_out):
        with pytest.raises(ClientStateError, match="closed") as error:
            await job.wait()
        assert error.value.task_id == job.task_id
        assert error.value.charged is not False


@virtual
async def test_calls_after_the_end() -> None:
    """Each says so, and sends nothing; what has happened can still be asked."""
    service = OwnService()
    async with at(service, journal=MemoryJournal()) as client:
        solution = await client.solve(TURNSTILE)
        job = await client.submit(TURNSTILE)
        done = await client.submit(TURNSTILE)
        await done.wait()
        view = client.with_options(timeout=5)
    sent = len(service.submits) + len(service.polls)

    async def gathered(which: AsyncClient) -> None:
        await which.gather([TURNSTILE])

    async def recovered(which: AsyncClient) -> None:
        async with which.recover() as outcomes:
            [outcome async for outcome in outcomes]

    calls: list[Callable[[], Any]] = [
        lambda: client.solve(TURNSTILE),
        lambda: view.solve(TURNSTILE),
        lambda: client.submit(TURNSTILE),
        lambda: job.wait(),
        lambda: client.get_balance(),
        lambda: client.get_task_result("t"),
        lambda: client.feedback("t", accepted=True, message="m"),
        lambda: solution.accepted(),
        lambda: solution.rejected("m"),
        lambda: client.drain(1),
        lambda: gathered(client),
        lambda: recovered(client),
        lambda: client.open(),
        lambda: view.__aenter__(),
    ]
    for call in calls:
        with pytest.raises(ClientStateError, match="closed"):
            await call()

    assert (await done.wait()).token == TOKEN
    assert len(service.submits) + len(service.polls) == sent
    assert service.feedbacks == []
    assert client.statistics().solved == 2
    assert client.spent == {TURNSTILE.kind: 2 * CENT}
    assert client.abandoned == (job.task_id,)
    assert "closed" in repr(client)
    await client.aclose()


@virtual
async def test_a_cancelled_close_closes_all_the_same() -> None:
    """What is paid for is written down, and the journal is closed."""
    errors: list[BaseException] = []
    service = OwnService().says("createTask", attrs.evolve(accepted("t-1"), after=3))
    service.says("getTaskResult", always=PENDING)
    journal = MemoryJournal()
    async with httpx.AsyncClient(transport=httpx.MockTransport(service.answer)) as http:
        async with anyio.create_task_group() as tasks:
            client = await AsyncClient(KEY, base_url=URL, http_client=http, journal=journal).open()
            tasks.start_soon(caught, client.solve(TURNSTILE), errors)
            await anyio.sleep(1)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await client.aclose()

    (error,) = errors
    assert isinstance(error, ClientStateError)
    assert (error.task_id, error.charged, client.abandoned) == ("t-1", True, ("t-1",))
    with pytest.raises(ClientStateError, match="not open"):
        await journal.accepted("row", "t")
    assert await states(journal) == [(State.ACCEPTED, "t-1")]


@virtual
@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_close_that_asyncio_cancels(times: int, anyio_backend_name: str) -> None:
    """No shield keeps that out: submits are still answered, and every id is kept."""
    if anyio_backend_name != "asyncio":
        return
    service = OwnService().says("createTask", accepted("t-1"), attrs.evolve(accepted("t-2"), after=3))
    service.says("getTaskResult", always=PENDING)
    journal, money = MemoryJournal(), Budget(estimate=CENT)
    async with httpx.AsyncClient(transport=httpx.MockTransport(service.answer)) as http:
        client = await AsyncClient(KEY, base_url=URL, http_client=http, journal=journal, budget=money).open()
        job = await client.submit(TURNSTILE)
        solve = asyncio.ensure_future(client.solve(V2))
        await anyio.sleep(1)
        close = asyncio.ensure_future(client.aclose())
        for _ in range(times):
            await anyio.sleep(0.1)
            close.cancel()
        _, error = await asyncio.gather(close, solve, return_exceptions=True)

    assert isinstance(error, ClientStateError)
    assert (error.task_id, error.charged) == ("t-2", True)
    assert sorted(client.abandoned) == [job.task_id, "t-2"]
    assert await states(journal) == [(State.ACCEPTED, "t-1"), (State.ACCEPTED, "t-2")]
    assert (money.spent, money.reserved) == (2 * CENT, 0)


@virtual
async def test_the_last_line_is_awaited() -> None:
    """Ten seconds at the most: a journal that hangs does not keep the client open."""

    class Slow(MemoryJournal):
        delay = 0.0

        async def abandoned(self, submit_id: str) -> None:
            await anyio.sleep(self.delay)
            await super().abandoned(submit_id)

    journal = Slow()
    for journal.delay, most in ((4, 4.1), (1_000, 15.1)):
        errors: list[BaseException] = []
        service = OwnService().says("getTaskResult", always=PENDING)
        async with anyio.create_task_group() as tasks:
            async with at(service, journal=journal) as client:
                tasks.start_soon(caught, client.solve(TURNSTILE), errors)
                await anyio.sleep(20)
                start = anyio.current_time()
            assert 4 <= anyio.current_time() - start <= most
        assert [getattr(error, "task_id", None) for error in errors] == ["task-1"]
        assert client.abandoned == ("task-1",)


@virtual
async def test_a_stream_ends_with_its_client() -> None:
    """An endless input is read no further: the iteration ends with the error, after what came."""
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            assert read < 100
            yield TURNSTILE

    async def stream(client: AsyncClient, ended: anyio.Event) -> None:
        with pytest.raises(ClientStateError):
            async with client.solve_many(endless(), max_pending=5) as outcomes:
                async for outcome in outcomes:
                    assert isinstance(outcome.error, ClientStateError)
        ended.set()

    service = OwnService().says("getTaskResult", always=PENDING)
    for end in ("aclose", "drain"):
        before, ended = read, anyio.Event()
        async with anyio.create_task_group() as tasks:
            async with at(service) as client:
                tasks.start_soon(stream, client, ended)
                await anyio.sleep(20)
                if end == "drain":
                    await client.drain(10)
        assert ended.is_set()
        assert read - before <= 12


@virtual
async def test_open() -> None:
    """Entering without `async with`; once."""
    service = OwnService()
    async with httpx.AsyncClient(transport=httpx.MockTransport(service.answer)) as http:
        client = AsyncClient(KEY, base_url=URL, http_client=http)
        with pytest.raises(ClientStateError, match="not entered"):
            await client.solve(TURNSTILE)
        assert await client.open() is client
        with pytest.raises(ClientStateError, match="entered once"):
            await client.open()
        assert (await client.solve(TURNSTILE)).token == TOKEN
        await client.aclose()
        await client.aclose()
        with pytest.raises(ClientStateError, match="closed"):
            await client.open()


@virtual
async def test_a_failed_entry_undoes_itself() -> None:
    """The journal could not be opened: entering again works once it can."""

    class Stubborn(MemoryJournal):
        good = False

        async def open(self) -> None:
            if not self.good:
                raise ConfigurationError("no room")
            await super().open()

    service, journal = OwnService(), Stubborn()
    async with httpx.AsyncClient(transport=httpx.MockTransport(service.answer)) as http:
        client = AsyncClient(KEY, base_url=URL, http_client=http, journal=journal)
        with pytest.raises(ConfigurationError, match="no room"):
            await client.open()
        journal.good = True
        async with client:
            assert (await client.solve(TURNSTILE)).token == TOKEN


# --- draining ---------------------------------------------------------------------------------------------------------


@virtual
async def test_drain() -> None:
    """No new submits; what is paid for is waited for; outcomes and what is left are returned."""
    journal, errors = MemoryJournal(), []
    service = OwnService()

    async def slow(body: dict[str, Any]) -> Said:
        number = int(str(body["taskId"]).removeprefix("task-"))
        solved = anyio.current_time() >= start + 20 * number
        return Said({"status": "ready", "solution": {"token": TOKEN}, "cost": "0.01"}) if solved else PENDING

    service.says("getTaskResult", always=slow)
    async with anyio.create_task_group() as tasks:
        async with at(service, journal=journal, max_in_flight=4) as client:
            start = anyio.current_time()
            for _ in range(6):
                tasks.start_soon(caught, client.solve(TURNSTILE, timeout=None), errors)
            await anyio.sleep(10)
            drained = await client.drain(40)
            assert 40 <= anyio.current_time() - start - 10 <= 41
            with pytest.raises(ClientStateError, match="draining"):
                await client.solve(TURNSTILE)
            with pytest.raises(ClientStateError, match="draining"):
                await client.submit(TURNSTILE)
            assert (await client.get_balance()) == 5
            at_rest(client)

    assert [outcome.ok for outcome in drained.outcomes].count(True) == 2
    assert len(drained.outcomes) == 6
    assert sorted(drained.task_ids) == sorted(client.abandoned) == ["task-3", "task-4"]
    assert len(service.submits) == 4
    ends = [(getattr(error, "task_id", None), getattr(error, "charged", 0)) for error in errors]
    assert sorted(ends, key=str) == sorted([(None, False), (None, False), ("task-3", True), ("task-4", True)], key=str)


@virtual
async def test_drain_without_a_limit_waits_for_all() -> None:
    """But for the calls' own deadlines; a job that is not waited for is left."""
    service = OwnService().says("getTaskResult", *[PENDING] * 4)
    async with anyio.create_task_group() as tasks:
        async with at(service) as client:
            job = await client.submit(V2)
            tasks.start_soon(client.solve, TURNSTILE)
            await anyio.sleep(1)
            drained = await client.drain()

    assert [outcome.ok for outcome in drained.outcomes] == [True]
    assert drained.task_ids == (job.task_id,)
    assert client.abandoned == (job.task_id,)


@virtual
async def test_drain_waits_for_what_a_submit_paid_for() -> None:
    """A submit that is under way is answered, and its task is waited for, too."""
    service = OwnService().says("createTask", attrs.evolve(accepted("t-1"), after=8)).says("getTaskResult", PENDING)
    async with anyio.create_task_group() as tasks:
        async with at(service) as client:
            tasks.start_soon(client.solve, TURNSTILE)
            await anyio.sleep(1)
            drained = await client.drain(60)
            at_rest(client)

    assert [(outcome.ok, outcome.task_id) for outcome in drained.outcomes] == [(True, "t-1")]
    assert (drained.task_ids, client.abandoned) == ((), ())


@virtual
@pytest.mark.parametrize("tries", [1, 2])
async def test_drain_submits_nothing_again(tries: int) -> None:
    """A submit that is refused on the way is not made again, be it the first or a later one."""
    errors: list[BaseException] = []
    no_slot = refused("ERROR_NO_SLOT_AVAILABLE")
    service = OwnService().says("createTask", *[no_slot] * (tries - 1), attrs.evolve(no_slot, after=8))
    async with anyio.create_task_group() as tasks:
        async with at(service) as client:
            tasks.start_soon(caught, client.solve(TURNSTILE), errors)
            await anyio.sleep(1)
            drained = await client.drain(60)

    assert len(service.submits) == tries
    assert drained.task_ids == ()
    (error,) = errors
    assert isinstance(error, ClientStateError)
    assert error.charged is False
    assert [outcome.error for outcome in drained.outcomes] == [error]


@virtual
async def test_drain_of_nothing() -> None:
    """Returns at once; twice, too."""
    async with at(OwnService()) as client:
        for _ in range(2):
            drained = await client.drain()
            assert (drained.outcomes, drained.task_ids) == ((), ())
        with pytest.raises(ConfigurationError, match="timeout"):
            await client.drain(-1)


# --- one event loop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", ["asyncio", "trio"])
async def test_a_client_stays_in_its_event_loop(elsewhere: str) -> None:
    """Every call that sends says so in another loop, in another thread, before anything is sent."""
    service = OwnService().says("getTaskResult", always=PENDING)
    async with at(service, journal=MemoryJournal()) as client:
        job = await client.submit(TURNSTILE)
        here = len(service.submits) + len(service.polls)

        async def gather() -> None:
            await client.gather([TURNSTILE])

        async def stream() -> None:
            async with client.solve_many([TURNSTILE]) as outcomes:
                [outcome async for outcome in outcomes]

        async def recover() -> None:
            async with client.recover() as outcomes:
                [outcome async for outcome in outcomes]

        async def take_up() -> None:
            await client.job("t").wait()

        async def prefetch() -> None:
            async with client.prefetch(TURNSTILE) as tokens:
                await tokens.get()

        calls: list[Callable[[], Any]] = [
            lambda: client.solve(TURNSTILE),
            lambda: client.with_options(timeout=3).solve(TURNSTILE),
            lambda: client.submit(TURNSTILE),
            lambda: job.wait(),
            lambda: client.get_balance(),
            lambda: client.get_task_result("t"),
            lambda: client.feedback("t", accepted=True, message="m"),
            lambda: client.drain(1),
            gather,
            stream,
            recover,
            take_up,
            prefetch,
        ]

        async def all_of_them() -> None:
            for call in calls:
                with anyio.fail_after(5), pytest.raises(ClientStateError, match="another event loop"):
                    await call()

        await anyio.to_thread.run_sync(lambda: anyio.run(all_of_them, backend=elsewhere))
        assert len(service.submits) + len(service.polls) == here
        assert service.balances == 0


def test_a_client_of_a_loop_that_has_ended() -> None:
    """It was left open: the next loop hears of it, and cannot enter it again."""
    service = OwnService()
    http = httpx.AsyncClient(transport=httpx.MockTransport(service.answer))
    client = AsyncClient(KEY, base_url=URL, http_client=http)

    async def use() -> None:
        with pytest.raises(ClientStateError, match="another event loop"):
            await client.solve(TURNSTILE)
        with pytest.raises(ClientStateError, match="entered once"):
            await client.open()

    asyncio.run(client.open())  # type: ignore[arg-type]
    asyncio.run(use())
    assert service.submits == []


@pytest.mark.parametrize("debug", [False, True])
async def test_a_job_that_is_collected_in_another_thread(debug: bool, anyio_backend_name: str) -> None:
    """Its place goes to the next, whose wait neither spins nor sleeps on."""
    if anyio_backend_name == "asyncio":
        asyncio.get_running_loop().set_debug(debug)
    service = OwnService()
    async with at(service, max_in_flight=1, polling=Polling(interval=0.1)) as client:
        held = [await client.submit(TURNSTILE)]
        assert held[0].task_id == "task-1"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.solve, V2)
            await anyio.sleep(0.05)
            assert client.statistics().queued == 1
            thread = threading.Thread(target=held.clear)
            with anyio.fail_after(10):
                thread.start()
                await anyio.to_thread.run_sync(thread.join)
        assert client.abandoned == ("task-1",)
        at_rest(client)

    assert len(service.submits) == 2


# --- a defect is not the network --------------------------------------------------------------------------------------


class Defect(Exception):  # noqa: N818 - an exception of somebody else's
    """Nobody expects it."""


@attrs.define(eq=False)
class BadLimiter:
    """Lets some requests go, and breaks then."""

    good: int

    async def acquire(self) -> None:
        self.good -= 1
        if self.good < 0:
            raise Defect("typo")

    def observe(self, status: int, headers: Any, *, sent_at: float, received_at: float) -> None: ...

    def lost(self) -> None: ...

    def statistics(self) -> Any:
        return RateLimiter().statistics()


@virtual
async def test_a_limiter_that_breaks_before_the_submit() -> None:
    """Its own exception comes out at once; nothing was sent, and nothing is held."""
    journal, money = MemoryJournal(), Budget(max_spend=1, estimate="0.01")
    service = OwnService()
    async with at(service, rate_limit=BadLimiter(0), journal=journal, budget=money) as client:
        start = anyio.current_time()
        with pytest.raises(Defect, match="typo") as error:
            await client.solve(TURNSTILE, key="work")
        assert anyio.current_time() == start
        assert client.statistics().in_flight == 0

    assert getattr(error.value, "__notes__", []) == []
    assert (service.submits, money.spent, money.reserved, client.abandoned) == ([], 0, 0, ())
    assert await states(journal.another()) == []


@virtual
@pytest.mark.parametrize("way", ["solve", "job", "gather"])
async def test_a_limiter_that_breaks_at_a_poll(way: str) -> None:
    """A note names the task and says that it is charged; its id is kept, its row is open, its money counted."""
    journal, money = MemoryJournal(), Budget(max_spend=1, estimate="0.01")
    service = OwnService()
    async with at(service, rate_limit=BadLimiter(1), journal=journal, budget=money) as client:
        with pytest.raises((Defect, ExceptionGroup)) as error:
            if way == "job":
                await (await client.submit(TURNSTILE)).wait()
            elif way == "gather":
                await client.gather([TURNSTILE])
            else:
                await client.solve(TURNSTILE)
        assert client.statistics().in_flight == 0
        assert client.abandoned == ("task-1",)

    defect: Any = error.value
    while isinstance(defect, ExceptionGroup):
        (defect,) = defect.exceptions
    assert isinstance(defect, Defect)
    (note,) = defect.__notes__
    assert "task-1" in note
    assert "(charged)" in note
    assert defect.__traceback__ is not None
    assert (money.spent, money.reserved) == (CENT, 0)
    assert await states(journal.another()) == [(State.ACCEPTED, "task-1")]


@virtual
@pytest.mark.parametrize(
    ("hook", "polls", "charged"),
    [("request", False, None), ("response", False, None), ("request", True, True), ("response", True, True)],
)
async def test_a_hook_of_the_injected_client_that_breaks(hook: str, polls: bool, charged: bool | None) -> None:
    """On a submit nobody knows what became of the task; on a poll it is charged."""
    journal, money = MemoryJournal(), Budget(max_spend=1, estimate="0.01")
    service = OwnService()

    async def broken(message: Any) -> None:
        request = message if hook == "request" else message.request
        if polls == request.url.path.endswith("getTaskResult"):
            raise Defect("typo")

    transport = httpx.MockTransport(service.answer)
    async with httpx.AsyncClient(transport=transport, event_hooks={hook: [broken]}) as http:
        async with AsyncClient(KEY, base_url=URL, http_client=http, journal=journal, budget=money) as client:
            start = anyio.current_time()
            with pytest.raises(Defect) as error:
                await client.solve(TURNSTILE, key="work")
            assert anyio.current_time() - start < 20
            at_rest_but_limiter(client)
            assert client.abandoned == (("task-1",) if charged else ())

    (note,) = error.value.__notes__
    assert ("task-1" in note, "perhaps" in note) == (charged is True, charged is None)
    assert (money.spent, money.reserved) == (CENT, 0)
    expected = (State.ACCEPTED, "task-1") if charged else (State.UNCERTAIN, None)
    assert await states(journal.another()) == [expected]


def at_rest_but_limiter(client: AsyncClient) -> None:
    now = client.statistics()

    assert (now.in_flight, now.queued, now.waiting) == (0, 0, 0)
    assert now.rate_limit.in_transit == 0


@virtual
@pytest.mark.parametrize("error", [RuntimeError("loop"), KeyError("x"), TypeError("t"), OSError(28, "no space left")])
async def test_a_transport_that_breaks(error: Exception) -> None:
    """Only what a network does is a fault of the network."""
    service = OwnService().says("getTaskResult", error)
    async with at(service) as client:
        with pytest.raises(type(error)) as caught:
            await client.solve(TURNSTILE)

    assert caught.value is error
    assert "task-1" in error.__notes__[0]
    assert len(service.polls) == 1


@virtual
@pytest.mark.parametrize(
    "error", [httpx.ReadError("x"), httpx.ConnectTimeout("x"), ConnectionResetError(), TimeoutError()]
)
async def test_faults_of_the_network_are_late_polls(error: Exception) -> None:
    """As before."""
    service = OwnService().says("getTaskResult", error, error)
    async with at(service) as client:
        assert (await client.solve(TURNSTILE)).polls == 3


@virtual
@pytest.mark.parametrize("method", ["begin", "accepted", "finished", "abandoned"])
async def test_a_journal_that_breaks(method: str) -> None:
    """Its own exception comes out; before the submit nothing is paid for, after it the id is kept."""

    class Bad(MemoryJournal):
        pass

    async def broken(self: Any, *arguments: Any, **details: Any) -> Any:
        raise Defect("typo")

    setattr(Bad, method, broken)
    money = Budget(max_spend=1, estimate="0.01")
    service = OwnService()
    if method == "abandoned":
        service.says("getTaskResult", always=PENDING)
    async with at(service, journal=Bad(), budget=money) as client:
        with pytest.raises(Defect) as error:
            await client.solve(TURNSTILE, timeout=30)
        assert client.statistics().in_flight == 0
        paid = method != "begin"
        assert len(service.submits) == paid
        assert client.abandoned == (("task-1",) if paid else ())
        assert (money.spent, money.reserved) == (CENT if paid else 0, 0)

    assert [("task-1" in note) for note in getattr(error.value, "__notes__", [])] == [True] * paid


@virtual
async def test_a_budget_that_breaks() -> None:
    """Before anything is sent, and with the place given back."""

    class Bad:
        async def reserve(self, task_type: str, *, submit_id: str | None = None) -> Any:
            raise Defect("typo")

        async def settle(self, reservation: Any, cost: Any) -> None: ...

        keep = release = spend = settle

        async def room(self) -> bool:
            return False

    service = OwnService()
    async with at(service, budget=Bad(), max_in_flight=1) as client:
        for _ in range(2):
            with pytest.raises(Defect):
                await client.solve(TURNSTILE)
        at_rest(client)

    assert service.submits == []


@virtual
async def test_an_input_that_breaks() -> None:
    """A defect of the caller's own key function does not make paid tasks nameless."""
    service = OwnService()
    seen = 0

    def key(task: Any) -> str:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise Defect("typo")
        return f"work {seen}"

    async with at(service, journal=MemoryJournal()) as client:
        came: list[str | None] = []
        with pytest.raises(Defect):
            async with client.solve_many([TURNSTILE] * 5, key=key) as outcomes:
                async for outcome in outcomes:
                    came += [outcome.task_id]
        at_rest(client)

    assert sorted(came) == ["task-1", "task-2"]


# --- settings ---------------------------------------------------------------------------------------------------------


def _aiolimiter() -> Any:
    class AsyncLimiter:
        """What `aiolimiter` has: `acquire` alone."""

        async def acquire(self, amount: float = 1) -> None: ...

    return AsyncLimiter()


class AsyncHook:
    async def __call__(self, event: Any) -> None:
        """Never awaited, if it were taken."""


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rate_limit": 100}, "rate_limit"),
        ({"rate_limit": True}, "rate_limit"),
        ({"rate_limit": "100/10"}, "rate_limit"),
        ({"rate_limit": RateLimiter}, "rate_limit"),
        ({"rate_limit": _aiolimiter()}, "rate_limit"),
        ({"http_client": object()}, "http_client"),
        ({"http_client": httpx.Client()}, "http_client"),
        ({"http_client": httpx.AsyncClient}, "http_client"),
        ({"journal": 5}, "journal"),
        ({"journal": b"paid.sqlite"}, "journal"),
        ({"journal": SQLiteJournal}, "journal"),
        ({"journal": MemoryJournal}, "journal"),
        ({"budget": True}, "budget|max_spend"),
        ({"budget": 1.5}, "max_spend"),
        ({"budget": "lots"}, "max_spend"),
        ({"budget": []}, "budget"),
        ({"budget": Budget}, "budget"),
        ({"polling": 5}, "polling"),
        ({"polling": Polling}, "polling"),
        ({"callbacks": "https://example.com/hook"}, "callbacks"),
        ({"on_event": "print"}, "on_event"),
        ({"on_event": 1}, "on_event"),
        ({"on_event": asyncio.sleep}, "on_event must be .*not an async one"),
        ({"on_event": AsyncHook()}, "on_event must be .*not an async one"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_in_flight": -1}, "max_in_flight"),
        ({"max_in_flight": True}, "max_in_flight"),
        ({"max_in_flight": 1.5}, "max_in_flight"),
        ({"max_connections": "many"}, "max_connections"),
        ({"request_timeout": None}, "request_timeout"),
        ({"request_timeout": float("inf")}, "request_timeout"),
        ({"request_timeout": True}, "request_timeout"),
        ({"cancel_grace": None}, "cancel_grace"),
        ({"breaker_reset": "60"}, "breaker_reset"),
        ({"timeout": "60"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"attempts": None}, "attempts"),
        ({"attempts": 1.0}, "attempts"),
        ({"provider": 5}, "provider"),
        ({"selection_mode": 5}, "selection_mode"),
        ({"proxy": 5}, "proxy"),
        ({"ssl_context": True}, "ssl_context"),
        ({"ssl_context": "ca.pem"}, "ssl_context"),
        ({"base_url": 5}, "base_url"),
        ({"base_url": 0}, "base_url"),
        ({"base_url": []}, "base_url"),
        ({"proxy": "http://u:p@\ud800:1"}, "proxy must be a proxy URL"),
        ({"proxy": "http://u:\udce9@h:1"}, "proxy must be a proxy URL"),
        ({"proxy": "http://a..b:1"}, "proxy must be a proxy URL"),
        ({"proxy": "http://a\0b:1"}, "proxy must be a proxy URL"),
        ({"allow_insecure": 1}, "allow_insecure"),
        ({"transport": None}, "transport"),
        ({"on_uncertain": True}, "on_uncertain"),
    ],
)
def test_settings_are_checked_at_construction(options: dict[str, Any], named: str) -> None:
    """Type and range; the error names the setting, and is a `ConfigurationError`."""
    with pytest.raises(ConfigurationError, match=named):
        AsyncClient(**{"api_key": KEY, **options})


@pytest.mark.parametrize("setting", ["p.sqlite", Path("p.sqlite")])
@pytest.mark.parametrize("money", [1, "1.50", Decimal(2)])
async def test_short_forms(setting: Any, money: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path makes a journal, an amount makes a budget."""
    monkeypatch.chdir(tmp_path)
    service = OwnService()
    async with at(service, journal=setting, budget=money, polling=Polling(interval=0.01)) as client:
        assert (await client.solve(TURNSTILE, key="work")).token == TOKEN

    assert (tmp_path / "p.sqlite").exists()


@virtual
@pytest.mark.parametrize("where", ["client", "call", "view", "job", "wait", "prefetch", "gather", "solve_many"])
async def test_no_timeout_means_no_limit(where: str) -> None:
    """In the constructor and in every call; what is not given is as the client is set."""
    service = OwnService()

    async def late(body: dict[str, Any]) -> Said:
        return (
            PENDING if anyio.current_time() < start + 5_000 else Said({"status": "ready", "solution": {"token": TOKEN}})
        )

    service.says("getTaskResult", always=late)
    async with at(service, timeout=None if where == "client" else 60) as client:
        start = anyio.current_time()
        if where == "client":
            solution = await client.solve(TURNSTILE)
        elif where == "call":
            solution = await client.solve(TURNSTILE, timeout=None)
        elif where == "view":
            solution = await client.with_options(timeout=None).solve(TURNSTILE)
        elif where == "job":
            job = await client.submit(TURNSTILE, timeout=None)
            solution = await job.wait()
        elif where == "wait":
            job = await client.submit(TURNSTILE)
            with pytest.raises(SolveTimeoutError, match="60 s"):
                await job.wait()
            solution = await job.wait(timeout=None)
        elif where == "prefetch":
            async with client.prefetch(TURNSTILE, ready=1) as tokens:
                with pytest.raises(SolveTimeoutError, match="60 s"):
                    await tokens.get()
                solution = await tokens.get(timeout=None)
        elif where == "gather":
            (outcome,) = await client.gather([TURNSTILE], timeout=None)
            solution = outcome.solution
        else:
            async with client.solve_many([TURNSTILE], timeout=None) as outcomes:
                (outcome,) = [outcome async for outcome in outcomes]
            solution = outcome.solution
        assert solution.token == TOKEN
        start = anyio.current_time()
        if where != "client":
            with pytest.raises(SolveTimeoutError, match="60 s"):
                await client.solve(TURNSTILE)


@virtual
@pytest.mark.parametrize("wrong", [TURNSTILE, "text", b"bytes", 5, None, {"type": "x"}.get("type")])
async def test_the_forgotten_list(wrong: Any) -> None:
    """A clear `TypeError` from `gather` and `solve_many`, before anything is sent."""
    service = OwnService()
    async with at(service) as client:
        with pytest.raises(TypeError, match="iterable of tasks"):
            await client.gather(wrong)
        with pytest.raises(TypeError, match="iterable of tasks"):
            async with client.solve_many(wrong) as outcomes:
                [outcome async for outcome in outcomes]

    assert service.submits == []


@virtual
async def test_iterables_of_all_kinds() -> None:
    """Lists, tuples, generators, async generators, sets, views of a mapping."""

    async def stream() -> AsyncIterator[Turnstile]:
        yield TURNSTILE

    service = OwnService()
    async with at(service) as client:
        for tasks in ([TURNSTILE], (TURNSTILE,), (each for each in [TURNSTILE]), {1: TURNSTILE}.values(), stream()):
            (outcome,) = await client.gather(tasks)
            assert outcome.ok
        assert await client.gather([]) == []


@virtual
async def test_one_bad_input_is_one_bad_outcome() -> None:
    """What is no task, or came as an error, among good ones."""
    service = OwnService()
    made = InvalidTaskError("row 2: no site key")
    async with at(service) as client:
        outcomes = await client.gather([TURNSTILE, made, "text", TURNSTILE])  # type: ignore[list-item]

    assert [outcome.ok for outcome in outcomes] == [True, False, False, True]
    assert outcomes[1].error is made
    assert isinstance(outcomes[2].error, InvalidTaskError)


# --- a private network ------------------------------------------------------------------------------------------------


def test_plain_http_to_a_host_of_ones_own(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """By setting or environment, with one warning; never to the service itself."""
    monkeypatch.delenv("UCAPTCHA_ALLOW_INSECURE", raising=False)
    own = "http://solver-of-one-s-own:8080"
    with pytest.raises(ConfigurationError, match="https"):
        AsyncClient(KEY, base_url=own)
    with caplog.at_level(logging.WARNING):
        AsyncClient(KEY, base_url=own, allow_insecure=True)
        AsyncClient(KEY, base_url=own, allow_insecure=True)
    assert sum("plain http" in record.message for record in caplog.records) == 1

    for url in (
        "http://api.ucaptcha.net",
        "http://API.uCaptcha.NET",
        "http://api.ucaptcha.net.",
        "http://api.ucaptcha.net:80/x",
        "http://ucaptcha.net",
    ):
        with pytest.raises(ConfigurationError, match="https"):
            AsyncClient(KEY, base_url=url, allow_insecure=True)

    monkeypatch.setenv("UCAPTCHA_ALLOW_INSECURE", "1")
    AsyncClient(KEY, base_url="http://another-of-one-s-own:8080")
    with pytest.raises(ConfigurationError, match="https"):
        AsyncClient(KEY, base_url="http://api.ucaptcha.net")
    monkeypatch.setenv("UCAPTCHA_ALLOW_INSECURE", "0")
    with pytest.raises(ConfigurationError, match="https"):
        AsyncClient(KEY, base_url="http://another-of-one-s-own:8080")
    monkeypatch.setenv("UCAPTCHA_ALLOW_INSECURE", "yes please")
    with pytest.raises(ConfigurationError, match="UCAPTCHA_ALLOW_INSECURE"):
        AsyncClient(KEY)


# --- what is said of charges ------------------------------------------------------------------------------------------


def test_charged_is_said_where_it_may_be() -> None:
    """Not after a typing error, nor where no task was."""
    with pytest.raises(InvalidTaskError) as wrong:
        Turnstile(website_url="example.com", website_key="0x")
    with pytest.raises(ConfigurationError) as setting:
        AsyncClient(KEY, timeout=-1)
    for error in (wrong.value, setting.value, UCaptchaError("no"), UCaptchaError("no", error_code="ERROR_X")):
        assert "charged" not in str(error)
    assert "charged: unknown" in str(UCaptchaError("no", charged=None))
    assert "(task t-1, not charged)" in str(UCaptchaError("no", task_id="t-1"))
    assert "(task t-1, charged)" in str(UCaptchaError("no", task_id="t-1", charged=True))


@virtual
async def test_charged_is_not_said_of_what_cannot_cost() -> None:
    """A balance, a refused key, a closed client."""
    service = OwnService().says("getBalance", page(502)).says("createTask", refused("ERROR_KEY_DOES_NOT_EXIST", 401))
    errors: list[BaseException] = []
    async with at(service) as client:
        await caught(client.get_balance(), errors)
        await caught(client.solve(TURNSTILE), errors)
        await caught(client.solve(TURNSTILE, timeout=-1), errors)
    await caught(client.solve(TURNSTILE), errors)

    assert len(errors) == 4
    assert all("charged" not in str(error) for error in errors), errors
