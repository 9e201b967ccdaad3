# ruff: noqa: F811 - fixtures come from redis_kit, and are named again where they are used
"""A fleet of real processes over a real Redis, against one local service: what its books say."""

from __future__ import annotations

from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import anyio
import pytest

from ucaptcha_async.errors import JournalError
from ucaptcha_async.journal import ClaimKind, State

from .redis_kit import Server, collect, name, redis_marks, relay, server  # noqa: F401
from .test_journal import intent

pytest.importorskip("coredis")

from benchmarks import fleet
from ucaptcha_async.redis import RedisBudget, RedisInFlight, RedisJournal

pytestmark = redis_marks


def test_a_saturated_fleet() -> None:
    """Three processes that want all there is, with clocks set apart: no limit is exceeded, and the money is exact."""
    settings = {"processes": 3, "limit": 240, "window": 2.0, "places": 15, "lanes": 25, "seconds": 14.0, "lease": 2.0}
    result = fleet.measure("money", {**settings, "solve_time": 0.3, "interval": 0.2, "money": "0.3"})

    assert result["most_in_flight"] <= 15
    assert result["fullest_window"] <= 240
    assert Decimal("0.29") <= Decimal(result["spent"]) <= Decimal("0.3")
    assert min(result["solved"]) > 0


def test_processes_killed_at_random() -> None:
    """Nothing that was paid is lost, and no job is paid twice, whoever is killed whenever."""
    settings = {"processes": 3, "kills": 4, "jobs": 60, "solve_time": 0.6, "interval": 0.3, "pause": (0.6, 1.2)}
    result = fleet.measure("kill", {**settings, "window": 2.0, "limit": 2_000, "places": 30, "seconds": 120})

    assert result["kills"] == 4
    assert result["twice"] == 0
    assert result["lost"] == 0
    assert result["solved"] + result["uncertain"] == 60
    assert result["most_in_flight"] <= 30
    assert Decimal(result["spent"]) <= Decimal(result["money"])


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
