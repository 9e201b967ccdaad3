# ruff: noqa: F811 - fixtures come from redis_kit, and are named again where they are used
"""A fleet of real processes over a real Redis, against one local service: what its books say."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from decimal import Decimal
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from ucaptcha_async import AsyncClient, Polling, Turnstile
from ucaptcha_async.errors import JournalError
from ucaptcha_async.journal import ClaimKind, State

from .redis_kit import Server, collect, name, redis_marks, relay, server  # noqa: F401
from .test_journal import intent

pytest.importorskip("coredis")

from benchmarks import fleet
from ucaptcha_async.redis import RedisBudget, RedisInFlight, RedisJournal, RedisRateLimiter
from ucaptcha_async.testing import running_service

pytestmark = redis_marks


def test_a_saturated_fleet() -> None:
    """Three processes that want all there is, with clocks set apart: no limit is exceeded, and the money is exact."""
    settings = {"processes": 3, "limit": 120, "window": 2.0, "places": 20, "lanes": 12, "seconds": 14.0, "lease": 2.0}
    result = fleet.measure("money", {**settings, "solve_time": 0.3, "interval": 0.2, "money": "0.16"})

    assert result["most_in_flight"] <= 20
    assert result["fullest_window"] <= 120
    assert Decimal("0.15") <= Decimal(result["spent"]) <= Decimal("0.16")
    assert min(result["solved"]) > 0


def test_processes_killed_at_random() -> None:
    """Nothing that was paid is lost, and no job is paid twice, whoever is killed whenever."""
    settings = {"processes": 3, "kills": 3, "jobs": 45, "solve_time": 0.6, "interval": 0.3, "pause": (0.6, 1.2)}
    result = fleet.measure("kill", {**settings, "window": 2.0, "limit": 2_000, "places": 30, "seconds": 120})

    assert result["kills"] == 3
    assert result["twice"] == 0
    assert result["lost"] == 0
    assert result["solved"] + result["uncertain"] == 45
    assert result["most_in_flight"] <= 30
    assert Decimal(result["spent"]) <= Decimal(result["money"])


@contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_process_that_sleeps_longer_than_its_lease() -> None:
    """It is taken for dead and others go on with its tasks; when it wakes, nothing is paid twice and all jobs end."""
    settings = {**fleet.USUAL, "mode": "kill", "name": "sleep", "processes": 2, "jobs": 30, "lanes": 30, "lease": 1.0}
    settings |= {"solve_time": 1.0, "interval": 0.3, "places": 60, "window": 1.0}
    with fleet.redis_server() as (redis, _), running_service(solve_time=1.0, rate_limit=10**6) as service:
        settings |= {"url": service.url, "redis": redis}
        sleeper = fleet.Heard({**settings, "number": 0})
        while service.books()["accepted"] < 15:
            assert sleeper.process.poll() is None
            time.sleep(0.02)
        time.sleep(0.3)
        with stopped(sleeper.process):
            time.sleep(1.3)
            # The other has the same jobs.
            heir = fleet.Heard({**settings, "number": 0}).end(60)
        lines = sleeper.end(60)
        tasks: Any = service.books(full=True)["task_list"]
        result = fleet.paid_twice(tasks, [*heir, *lines])

    assert sum(line[0] == "solved" for line in heir) == sum(line[0] == "solved" for line in lines) == 15
    assert (result["twice"], result["lost"], len(tasks)) == (0, 0, 15)


async def test_clients_share_all_of_it(server: Server, name: str) -> None:
    """Two clients share limit, places, money and journal; what one leaves the other finishes, at its real cost."""
    task = Turnstile(website_url="https://example.com/", website_key="0x4AAA")
    settings: dict[str, Any] = {"name": name, "timeout": 0.5}
    with running_service(solve_time=0.5, rate_limit=10**6) as service:

        @asynccontextmanager
        async def client() -> AsyncIterator[tuple[AsyncClient, RedisBudget]]:
            limiter = RedisRateLimiter(server.url, name=name, window=1.0)
            places = RedisInFlight(server.url, limit=2, lease=2, **settings)
            budget = RedisBudget(server.url, "0.1", estimate="0.01", lease=1, linger=0.01, **settings)
            journal = RedisJournal(server.url, lease=1, linger=0.01, **settings)
            shared = {"rate_limit": limiter, "max_in_flight": places, "budget": budget, "journal": journal}
            polling = Polling(interval=0.2, first=0.3)
            async with limiter, places, budget, journal:
                made = AsyncClient("ucap_shared", base_url=service.url, polling=polling, **shared)  # type: ignore[arg-type]
                async with made:
                    yield made, budget

        async with client() as (one, spent):
            await one.submit(task, key="left")
            spent._leave = anyio.lowlevel.checkpoint  # type: ignore[method-assign] # as if it died
        async with client() as (two, spent):
            solved = await two.gather([task] * 4)
            async with two.recover() as outcomes:
                recovered = [outcome async for outcome in outcomes]
            with anyio.fail_after(10):
                while spent.statistics().spent != 5 * Decimal("0.00145") or spent.statistics().reserved:
                    await anyio.sleep(0.05)
        books: Any = service.books(full=True)

    assert [outcome.ok for outcome in solved] == [True] * 4
    assert [(outcome.key, outcome.ok) for outcome in recovered] == [("left", True)]
    assert fleet.in_flight(books["task_list"]) <= 2 + 1  # a client that is closed gives back the place of what it left
    assert Decimal(books["spent"]) == 5 * Decimal("0.00145")


async def test_a_line_that_is_cut_again_and_again(server: Server, name: str) -> None:
    """Whatever is lost on the way: each job is begun once, the money is exact, and no place is lost."""
    jobs, cost = 40, Decimal("0.0013")
    with relay(server.port) as line:
        common: dict[str, Any] = {"name": name, "timeout": 0.5}
        async with AsyncExitStack() as stack:
            places = await stack.enter_async_context(RedisInFlight(line.url, limit=6, lease=2, **common))
            budget = await stack.enter_async_context(RedisBudget(line.url, "1", linger=0.01, **common))
            journal = await stack.enter_async_context(RedisJournal(line.url, linger=0.01, patience=30, **common))

            async def report(what: Any, *details: Any, **more: Any) -> None:
                try:
                    await what(*details, **more)
                except JournalError:
                    return  # kept in memory, and written later

            async def job(number: int) -> None:
                await places.acquire()
                reservation = await budget.reserve("T")
                claim = await journal.begin(intent(f"{number}"))
                assert claim.kind is ClaimKind.NEW
                await report(journal.accepted, claim.submit_id, f"task-{number}")
                await anyio.sleep(0.1)
                await report(journal.finished, claim.submit_id, State.SOLVED, cost=cost)
                await budget.settle(reservation, cost)
                places.release()

            async def cut() -> None:
                while True:
                    await anyio.sleep(0.15)
                    line.cut()

            with anyio.fail_after(60):
                async with anyio.create_task_group() as cutting:
                    cutting.start_soon(cut)
                    async with anyio.create_task_group() as tasks:
                        for number in range(jobs):
                            tasks.start_soon(job, number)
                    cutting.cancel_scope.cancel()
                while journal._batch or journal._queue or budget._batch or budget._queue:
                    await anyio.sleep(0.05)
            (total,) = await journal.totals()

            assert line.cuts > 3
            assert (total.state, total.count, total.cost) == (State.SOLVED, jobs, jobs * cost)
            assert (budget.statistics().spent, budget.statistics().reserved) == (jobs * cost, 0)
            assert places.statistics().in_flight == 0
