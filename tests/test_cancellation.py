"""Ten thousand random cancellations: nothing leaks, and the service's books agree with what the client knows."""

from __future__ import annotations

import random

import anyio
import pytest

from tests.helpers import V2, at_rest, opened
from ucaptcha_async import MemoryJournal
from ucaptcha_async.events import Cancelled, Event
from ucaptcha_async.journal import State
from ucaptcha_async.testing import LocalService

pytestmark = pytest.mark.virtual_time

SOLVES = 10_000


async def test_ten_thousand_random_cancellations() -> None:
    """In the queue, during createTask, between and during polls: each paid task is delivered, or its id is kept."""
    rng = random.Random(11)
    service = LocalService(
        solve_time=12, latency=lambda endpoint: rng.uniform(0.01, 2.0), rate_limit=10**9, balance=10**4
    )
    events: list[Event] = []
    delivered: set[str | None] = set()
    journal = MemoryJournal()
    async with opened(service, max_in_flight=3_000, on_event=events.append, journal=journal) as client:

        async def one() -> None:
            with anyio.move_on_after(rng.choice([rng.uniform(0, 2), rng.uniform(0, 30)])):
                delivered.add((await client.solve(V2)).task_id)

        async with anyio.create_task_group() as tasks:
            for _ in range(SOLVES):
                tasks.start_soon(one)
        at_rest(client)
        statistics = client.statistics()
        kept = set(client.abandoned)
        open_ids = {entry.task_id async for entry in journal.entries(states={State.ACCEPTED})}
        uncertain = [entry async for entry in journal.entries(states={State.UNCERTAIN, State.INTENT})]

    accepted = set(service.books.accepted)
    assert statistics.cancelled > SOLVES / 2
    assert len(delivered) > 100
    assert accepted == delivered | kept
    assert kept == open_ids == {event.task_id for event in events if isinstance(event, Cancelled) and event.task_id}
    assert [] == uncertain
    assert SOLVES == statistics.solved + statistics.cancelled
