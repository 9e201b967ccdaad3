"""The search for a service's names of types, as a client's user sees it: one solve, one row, one attempt."""

from __future__ import annotations

from decimal import Decimal

import anyio
import pytest

from tests.helpers import TURNSTILE, V2, at_rest, opened
from ucaptcha_async import (
    Budget,
    MemoryJournal,
    Proxy,
    SolveTimeoutError,
    SubmitUncertainError,
    Turnstile,
    UnsupportedTaskError,
)
from ucaptcha_async.events import Event, Retried, TypeNameChosen
from ucaptcha_async.journal import State
from ucaptcha_async.testing import Delay, Error, LocalService

pytestmark = pytest.mark.virtual_time

WITH_PROXY = Turnstile(website_url="https://example.com/", website_key="k", proxy=Proxy.parse("http://198.51.100.7:1"))


async def test_one_search_is_one_solve() -> None:
    """One row of the journal, one attempt, one event; money, statistics and journal go by the kind."""
    service, journal, events = LocalService(types="capsolver", solve_time=8), MemoryJournal(), list[Event]()
    budget = Budget(max_spend="1", estimate={"TurnstileTaskProxyless": "0.5"})
    async with opened(service, journal=journal, on_event=events.append, budget=budget) as client:
        job = await client.submit(TURNSTILE)
        assert budget.reserved == Decimal("0.5")
        solution = await job.wait()
        at_rest(client)
        now = client.statistics()

    assert [task.type for task in service.books.tasks.values()] == ["AntiTurnstileTaskProxyLess"]
    assert service.books.request_counts["createTask"] == 3
    assert [(entry.type, entry.state) async for entry in journal.entries()] == [("Turnstile", State.SOLVED)]
    assert [attempt.task_id for attempt in job.attempts] == [solution.task_id]
    assert (client.spent, list(now.solve_times)) == ({"Turnstile": solution.cost}, ["Turnstile"])
    (chosen,) = [event for event in events if isinstance(event, TypeNameChosen)]
    assert (chosen.name, chosen.task_type) == ("AntiTurnstileTaskProxyLess", "Turnstile")
    assert chosen.refused == ("TurnstileTokenProxyLess", "TurnstileTaskProxyless")
    assert not [event for event in events if isinstance(event, Retried)]


async def test_thousands_at_once_cost_a_handful() -> None:
    """Whatever is known: at the first use, and on the day on which the service takes another name."""
    service = LocalService(types="capsolver", solve_time=8, latency=0.2)
    async with opened(service) as client:
        outcomes = await client.gather([TURNSTILE] * 1_000)
        refusals = service.books.request_counts["createTask"] - 1_000
        service.types = "own"
        outcomes += await client.gather([TURNSTILE, V2])
        at_rest(client)

    assert all(outcome.ok for outcome in outcomes)
    assert refusals == 2
    assert len(service.books.accepted) == len(outcomes) == 1_002
    # The old name is refused once, and then the first of all is good.
    assert service.books.request_counts["createTask"] == 1_002 + 2 + 1


async def test_views_and_other_clients_know() -> None:
    """Those of the same account and host; another account learns for itself."""
    service = LocalService(types="capsolver", solve_time=8)
    counts = []
    for key in ("ucap_one", "ucap_one", "ucap_two"):
        async with opened(service, api_key=key) as client:
            await client.with_options(timeout=100).solve(TURNSTILE)
            await client.solve(TURNSTILE)
        counts.append(service.books.request_counts["createTask"])

    assert counts == [4, 6, 10]


async def test_all_names_are_refused() -> None:
    """Nothing is charged, and for a minute nothing is sent; with a proxy it is another question."""
    service, journal = LocalService(types="anysolver"), MemoryJournal()
    page = Turnstile(website_url="https://example.com/", website_key="k", chl_page_data="p")
    async with opened(service, journal=journal) as client:
        for _ in range(3):
            with pytest.raises(UnsupportedTaskError, match="TurnstileTaskProxyless") as caught:
                await client.solve(page)
            assert (caught.value.charged, caught.value.task_id) == (False, None)
        assert service.books.request_counts["createTask"] == 1
        assert (await client.solve(WITH_PROXY)).token
        await anyio.sleep(61)
        service.types = "anticaptcha"
        assert (await client.solve(page)).token
        at_rest(client)

    # What was not even sent leaves no row.
    states = [entry.state async for entry in journal.entries()]
    assert states == [State.REFUSED, State.SOLVED, State.SOLVED]


async def test_a_refusal_that_names_a_task_ends_the_search() -> None:
    """It contradicts itself: the task may have been made, and is not paid for again under another name."""
    service = LocalService(types="own", solve_time=8)
    service.script("createTask", Error("TASK_NOT_SUPPORTED", names_task=True))
    async with opened(service) as client:
        with pytest.raises(SubmitUncertainError) as caught:
            await client.solve(TURNSTILE)
        at_rest(client)

    assert caught.value.task_id is not None
    assert service.books.request_counts["createTask"] == 1


async def test_who_waits_for_the_scout_keeps_to_his_own_deadline() -> None:
    """And says that nothing was sent for him."""
    service = LocalService(types="capsolver", solve_time=8)
    async with opened(service) as client, anyio.create_task_group() as group:
        await client.solve(V2)
        service.script("createTask", Delay(20))
        group.start_soon(client.solve, TURNSTILE)
        await anyio.sleep(1)
        with pytest.raises(SolveTimeoutError) as caught:
            await client.solve(TURNSTILE, timeout=5)
        assert (caught.value.charged, caught.value.phase) == (False, "submit")

    assert len(service.books.accepted) == 2


@pytest.mark.parametrize("cancelled_after", [0.05, 0.15, 0.25, 0.45, 0.55])
async def test_a_scout_that_gives_up_loses_and_buys_nothing(cancelled_after: float) -> None:
    """At whatever moment: the others go on, and what was bought for him is known."""
    service, solved = LocalService(types="capsolver", solve_time=8, latency=0.2), list[str | None]()
    async with opened(service) as client, anyio.create_task_group() as group:

        async def gives_up() -> None:
            with anyio.move_on_after(cancelled_after):
                await client.solve(TURNSTILE)

        async def patient() -> None:
            solved.append((await client.solve(TURNSTILE)).task_id)

        group.start_soon(gives_up)
        await anyio.sleep(0.01)
        for _ in range(10):
            group.start_soon(patient)
    at_rest(client)

    assert len(set(solved)) == 10
    assert {*solved, *client.abandoned} == set(service.books.accepted)
    assert service.books.request_counts["createTask"] <= len(service.books.accepted) + 3
