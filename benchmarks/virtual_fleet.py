"""A fleet in virtual time: real clients, one for each process, against a service in memory. Minutes pass in no time.

What is real: `AsyncClient` with all that a solve passes through (limiter, places in flight, submit, learned polls, the
reading of answers), one client for each process, each with a memory of solve times of its own. What is modelled:

* The processes are tasks of one event loop with a virtual clock, so that computing takes no time.
* What a fleet shares in Redis is shared here as an object: one `RateLimiter` for all clients behind an address, and one
  `InFlight` for all of them. The visits that a `RedisJournal` and a `RedisBudget` would make are counted from the real
  orders of each process, by the rule by which they are batched.
* The network is a constant latency. The service takes every task, never fails, solves in lognormal times, and keeps
  books: when each address sent what, how many tasks it had, when each task was asked for, and the account's balance.
"""

from __future__ import annotations

import asyncio
import gc
import math
import resource
import time
from array import array
from contextlib import AsyncExitStack
from decimal import Decimal
from random import Random
from typing import Any

import attrs

from ucaptcha_async import AsyncClient, RateLimiter, Turnstile
from ucaptcha_async.events import Event, Solved, Started, Submitted
from ucaptcha_async.pacing import InFlight
from ucaptcha_async.secrecy import SecretBytes
from ucaptcha_async.testing.books import most_in_window
from ucaptcha_async.testing.virtual import VirtualLoop
from ucaptcha_async.transport.exchange import Exchange, Reply

from .capacity import LIMIT, LINGER, WINDOW

TASK = Turnstile(website_url="https://example.com/", website_key="0x4AAAAAAA")


@attrs.frozen(kw_only=True)
class Scenario:
    """What is simulated.

    Attributes:
        processes: Clients.
        addresses: They are spread over so many, evenly.
        places: Tasks that all together may have in flight.
        limit: Requests per window and address.
        window: Its length, in seconds.
        workers: Solves that are wanted at once, as a multiple of the places: so that there is always one in line.
        median: Of the solve times, in seconds.
        sigma: The deviation of their logarithms.
        latency: Seconds of one request, there and back.
        price: USD a solve.
        spread: Seconds over which the first solves start: about as long as one takes, so that the pace is even.
        warm: Seconds until it is measured: by then polling has learned.
        measured: Seconds for which it is measured.
        seed: Of everything that is drawn.
    """

    processes: int
    addresses: int
    places: int
    limit: int = LIMIT
    window: float = WINDOW
    workers: float = 1.05
    median: float = 12.0
    sigma: float = 0.5
    latency: float = 0.1
    price: str = "0.00145"
    spread: float = 16.3
    warm: float = 30.0
    measured: float = 15.0
    seed: int = 1


@attrs.frozen(kw_only=True)
class Found:
    """What came of it. Rates are per second; times are seconds; of the measured time only, but for the `most_` ones.

    Attributes:
        solves: Solves that ended.
        in_flight: Tasks that had a place, on average.
        most_in_flight: The most tasks that the service ever had.
        requests: Requests of all addresses.
        busiest_address: Requests of the address that sent the most.
        most_in_window: The most requests that one address sent in any window.
        polls: A solve.
        delay: From ready to the poll that found it, on average.
        closest_polls: The shortest time between two polls of one task.
        journal_calls: Visits that a journal in Redis would have had.
        budget_calls: Visits that a budget in Redis would have had.
        usd: What the account paid.
        undelivered: Tasks that were paid, and whose solution nobody has at the end.
        ended: All solves, to the end.
        cpu_seconds: Of the simulation.
        memory_mb: Of the simulation, at most.
    """

    solves: float
    in_flight: float
    most_in_flight: int
    requests: float
    busiest_address: float
    most_in_window: int
    polls: float
    delay: float
    closest_polls: float
    journal_calls: float
    budget_calls: float
    usd: float
    undelivered: int
    ended: int
    cpu_seconds: float
    memory_mb: float


@attrs.define(eq=False)
class Batches:
    """Visits to Redis, if none is sooner than `LINGER` after the last and all that came meanwhile go together."""

    next_visit: float = -math.inf
    visits: int = 0

    def order(self, now: float) -> None:
        """Somebody has something to be written."""
        if self.next_visit <= now:
            self.next_visit, self.visits = now + LINGER, self.visits + 1
        elif self.next_visit <= now + LINGER:  # nobody else has ordered a visit for that moment yet
            self.next_visit, self.visits = self.next_visit + LINGER, self.visits + 1


class Service:
    """A service in memory, and its books."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.rng = Random(scenario.seed)
        self.sent = [array("d") for _ in range(scenario.addresses)]
        self.ready: dict[str, float] = {}
        self.asked: dict[str, float] = {}
        self.accepted = self.delivered = self.most = 0
        self.balance = Decimal(0)
        self.closest = math.inf
        # Of the measured time.
        self.polls = self.found = 0
        self.delay = 0.0

    def answer(self, exchange: Exchange, address: int, now: float) -> bytes:
        """Carry a request out that arrives now."""
        self.sent[address].append(now - self.scenario.latency / 2)
        if exchange.task_id is None:
            return self._accept(now)
        return self._look(exchange.task_id, now)

    def _accept(self, now: float) -> bytes:
        scenario = self.scenario
        self.accepted += 1
        task_id = f"task-{self.accepted}"
        self.ready[task_id] = now + scenario.median * math.exp(self.rng.gauss(0, scenario.sigma))
        self.most = max(self.most, len(self.ready))
        self.balance -= Decimal(scenario.price)
        return b'{"errorId":0,"taskId":"%s"}' % task_id.encode()

    def _look(self, task_id: str, now: float) -> bytes:
        measured = self.measures(now)
        self.polls += measured
        if task_id in self.asked:
            self.closest = min(self.closest, now - self.asked[task_id])
        if self.ready[task_id] > now:
            self.asked[task_id] = now
            return b'{"errorId":0,"taskId":"%s","status":"processing"}' % task_id.encode()
        late = now - self.ready.pop(task_id)
        self.asked.pop(task_id, None)
        self.delivered += 1
        self.found += measured
        self.delay += late * measured
        text = '{"errorId":0,"taskId":"%s","status":"ready","solution":{"token":"t"},"cost":%s}'
        return (text % (task_id, self.scenario.price)).encode()

    def measures(self, now: float) -> bool:
        """Whether this is in the measured time."""
        return self.scenario.warm <= now < self.scenario.warm + self.scenario.measured


@attrs.frozen
class Line:
    """A process's way to the service: in place of connections."""

    service: Service
    address: int
    clock: Any

    async def send(self, exchange: Exchange) -> None:
        """Wait for the permit, be on the way, and bring the answer."""
        await exchange.permit()
        while not exchange.depart():
            await exchange.permit()
        sent_at, latency = self.clock(), self.service.scenario.latency
        content = self.service.answer(exchange, self.address, sent_at + latency / 2)
        await asyncio.sleep(latency)
        exchange.reply = Reply(
            status=200,
            headers={},
            content=SecretBytes(content),
            sent_at=sent_at,
            received_at=self.clock(),
            first=True,
            repeated=False,
            discard=lambda: None,
        )

    def statistics(self) -> None:
        """No connections."""

    async def aclose(self) -> None:
        """Nothing is open."""


class Process:
    """A client, and the visits to Redis that it would make."""

    def __init__(self, number: int, service: Service, limiter: RateLimiter, places: InFlight, clock: Any) -> None:
        self.service, self.clock = service, clock
        self.journal, self.budget = Batches(), Batches()
        self.solved = 0
        self.client = AsyncClient(
            "ucap_fleet",
            base_url="http://127.0.0.1",
            timeout=3600,
            rate_limit=limiter,
            max_in_flight=places,
            on_event=self.hear,
        )
        # Two seams of the client that are not public: its random numbers, and what its requests go over.
        self.client._session.rng = Random(f"{service.scenario.seed} {number}")
        self.client._open_sender = lambda **_: Line(service, number % service.scenario.addresses, clock)  # type: ignore[assignment]

    def hear(self, event: Event) -> None:
        """Count: intent, id and outcome for the journal, reservation and settlement for the budget."""
        kind = type(event)
        if kind in (Started, Submitted, Solved):
            self.journal.order(event.at)
        if kind in (Started, Solved):
            self.budget.order(event.at)
        if kind is Solved:
            self.solved += self.service.measures(event.at)

    async def work(self, start: float, until: float) -> None:
        """One solve after the other."""
        await asyncio.sleep(start)
        while self.clock() < until:
            await self.client.solve(TASK)

    def visits(self) -> tuple[int, int]:
        """So far, of journal and budget."""
        return self.journal.visits, self.budget.visits


async def _run(scenario: Scenario) -> dict[str, Any]:
    clock = asyncio.get_running_loop().time
    service, places = Service(scenario), InFlight(scenario.places)
    limiters = [RateLimiter(scenario.limit, window=scenario.window) for _ in range(scenario.addresses)]
    end = scenario.warm + scenario.measured
    rng = Random(scenario.seed + 1)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        fleet = [
            Process(number, service, limiters[number % len(limiters)], places, clock)
            for number in range(scenario.processes)
        ]
        for process in fleet:
            await stack.enter_async_context(process.client)
        for number in range(round(scenario.places * scenario.workers)):
            process = fleet[number % len(fleet)]
            tasks.create_task(process.work(rng.uniform(0, scenario.spread), end))
        await asyncio.sleep(scenario.warm - clock())
        before = [process.visits() for process in fleet]
        taken = []
        while clock() < end:
            taken.append(places.statistics().in_flight)
            await asyncio.sleep(0.5)
        after = [process.visits() for process in fleet]
    journal, budget = zip(*after, strict=True)
    journal_before, budget_before = zip(*before, strict=True)
    made = (sum(journal) - sum(journal_before), sum(budget) - sum(budget_before))
    return {"service": service, "fleet": fleet, "taken": taken, "visits": made}


def simulate(scenario: Scenario) -> Found:
    """Run a scenario to its end: every solve that began ends."""
    began, collects = time.process_time(), gc.isenabled()
    gc.disable()  # a solve leaves no circles behind, and to look for them among so many objects takes a third longer
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            seen = runner.run(_run(scenario))
    finally:
        if collects:
            gc.enable()
    service, seconds = seen["service"], scenario.measured
    sent = [sum(service.measures(moment) for moment in times) / seconds for times in service.sent]
    journal, budget = (count / seconds for count in seen["visits"])
    return Found(
        solves=sum(process.solved for process in seen["fleet"]) / seconds,
        in_flight=sum(seen["taken"]) / len(seen["taken"]),
        most_in_flight=service.most,
        requests=sum(sent),
        busiest_address=max(sent),
        most_in_window=max(most_in_window(list(times), scenario.window) for times in service.sent),
        polls=service.polls / service.found,
        delay=service.delay / service.found,
        closest_polls=service.closest,
        journal_calls=journal,
        budget_calls=budget,
        usd=-float(service.balance),
        undelivered=service.accepted - service.delivered,
        ended=service.delivered,
        cpu_seconds=time.process_time() - began,
        memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
