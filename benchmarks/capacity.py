"""How much a fleet can do and what binds it: the formulae, from one process to a thousand machines. No I/O.

Little's law ties all of it together: `in flight = solves per second x seconds that a task is held`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

from ucaptcha_async.pacing.gcra import GCRA

LIMIT, WINDOW = 10_000, 10.0
"""Requests per window and address, as the service documents them."""

LATE = 0.008
"""By how much more of a window the shared schedule spaces turns: how late one may be used, and what clocks drift."""

LINGER = 0.15
"""Seconds between two batches of a shared journal or budget."""

PLACES_POLL = (0.15, 0.003)
"""Seconds between two visits of a process to the shared places: at least, and for each process there is."""

FULL = 0.7
"""The share of a core that is planned with: what is fuller waits too often."""


@attrs.frozen(kw_only=True)
class Work:
    """What a solve is.

    Attributes:
        solve_time: Mean seconds that the service needs.
        delay: Mean seconds from then to the poll that finds it.
        polls: Polls a solve.
        latency: Seconds of one request, there and back.
        price: USD.
    """

    solve_time: float
    delay: float
    polls: float
    latency: float = 0.1
    price: float = 0.00145

    @property
    def requests(self) -> float:
        """Requests a solve: the submit and the polls."""
        return 1 + self.polls

    @property
    def held(self) -> float:
        """Seconds from the submit's departure to the solution in hand: how long a place in flight is taken."""
        return self.solve_time + self.delay + self.latency


@attrs.frozen(kw_only=True)
class Costs:
    """What was measured; see `python -m benchmarks.scale measure`.

    Attributes:
        cpu_ms: Of the client's process for one solve.
        solve_kb: Memory that a waiting solve holds.
        process_mb: Memory of a process with an open client and nothing to do.
        limiter_us: Redis' CPU for a visit of the limiter.
        places_us: Redis' CPU for a visit of the places: of the first process, and for each further one.
        journal_us: Redis' CPU for a visit of the journal, and for each row in it.
        budget_us: Redis' CPU for a visit of the budget, and for each reservation in it.
    """

    cpu_ms: float
    solve_kb: float
    process_mb: float
    limiter_us: float
    places_us: tuple[float, float]
    journal_us: tuple[float, float]
    budget_us: tuple[float, float]


@attrs.frozen(kw_only=True)
class Fleet:
    """What there is.

    Attributes:
        name: In words.
        machines: How many.
        processes: On each machine, one for a core.
        addresses: How many the machines are behind.
        places: Tasks in flight that all together may have.
        memory_gb: Of each machine.
        limiter_servers: Redis servers that the addresses' limiters are spread over.
        common: Whether places, budget and journal are shared in Redis, or each process has its part of them.
    """

    name: str
    machines: int = 1
    processes: int = 1
    addresses: int = 1
    places: int = 5_000
    memory_gb: float = 16.0
    limiter_servers: int = 1
    common: bool = True

    @property
    def all_processes(self) -> int:
        """On all machines."""
        return self.machines * self.processes


def rate(*, shared: bool, limit: int = LIMIT, window: float = WINDOW) -> float:
    """Requests per second that one address carries, alone or with the limiter shared in Redis."""
    if shared:
        return (limit - limit // 100 + 1) / (window * (1 + LATE))
    return 1 / GCRA(limit, window).interval


def visits(orders: float, linger: float = LINGER) -> float:
    """Visits per second for orders that come at random, so many a second, if none is sooner than `linger` after the
    last: the first order goes at once, what comes meanwhile goes together.
    """
    return 1 / (linger + math.exp(-orders * linger) / orders) if orders else 0.0


@attrs.frozen(kw_only=True)
class Calls:
    """Visits to Redis, per second, of all processes, and the cores of Redis that they take.

    Attributes:
        limiter: One for each request at the most: turns are taken for those who wait.
        places: Of the tasks in flight.
        journal: Of the journal.
        budget: Of the budget.
        limiter_cores: What the limiters' visits take.
        account_cores: What places, journal and budget take.
    """

    limiter: float
    places: float
    journal: float
    budget: float
    limiter_cores: float
    account_cores: float


def calls(solves: float, processes: int, work: Work, costs: Costs) -> Calls:
    """What `solves` per second of so many processes ask of Redis."""
    each = solves / processes
    least, per_process = PLACES_POLL
    limiter = solves * work.requests
    places = processes * visits(2 * each, max(least, per_process * processes))
    journal, budget = processes * visits(3 * each), processes * visits(2 * each)
    account = places * (costs.places_us[0] + costs.places_us[1] * (processes - 1))
    account += journal * costs.journal_us[0] + 3 * solves * costs.journal_us[1]
    account += budget * costs.budget_us[0] + 2 * solves * costs.budget_us[1]
    return Calls(
        limiter=limiter,
        places=places,
        journal=journal,
        budget=budget,
        limiter_cores=limiter * costs.limiter_us / 1e6,
        account_cores=account / 1e6,
    )


def bounds(fleet: Fleet, work: Work, costs: Costs) -> dict[str, float]:
    """Solves per second that each thing allows by itself."""
    processes, shared = fleet.all_processes, fleet.all_processes > fleet.addresses
    room_kb = fleet.machines * (1e6 * fleet.memory_gb - 1e3 * fleet.processes * costs.process_mb)

    def account(solves: float) -> float:
        return calls(solves, processes, work, costs).account_cores

    allowed = {
        "address": fleet.addresses * rate(shared=shared) / work.requests,
        "in flight": fleet.places / work.held,
        "CPU": FULL * processes / (costs.cpu_ms / 1e3),
        "memory": room_kb / costs.solve_kb / work.held,
    }
    if shared:
        allowed["Redis, limiters"] = FULL * fleet.limiter_servers / (work.requests * costs.limiter_us / 1e6)
    if processes > 1 and fleet.common:
        allowed["Redis, account"] = _largest(account, FULL)
    return allowed


def binding(allowed: dict[str, float]) -> tuple[str, float]:
    """What allows the least, and how many solves per second that is."""
    return min(allowed.items(), key=lambda bound: bound[1])


def _largest(load: Callable[[float], float], full: float) -> float:
    """The largest argument at which a rising function is not above `full`, by halving."""
    low, high = 0.0, 1e9
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if load(middle) <= full else (low, middle)
    return low


@attrs.frozen(kw_only=True)
class Needs:
    """What so many tasks in flight take.

    Attributes:
        solves: Per second.
        requests: Per second.
        addresses: At the least.
        cores: Of the clients.
        memory_gb: Of the clients, for what waits.
        calls: To Redis.
        usd_an_hour: What the solves cost.
    """

    solves: float
    requests: float
    addresses: int
    cores: float
    memory_gb: float
    calls: Calls
    usd_an_hour: float


def needs(in_flight: int, work: Work, costs: Costs) -> Needs:
    """What it takes to have so many tasks at the service all the time."""
    solves = in_flight / work.held
    cores = solves * costs.cpu_ms / 1e3 / FULL
    return Needs(
        solves=solves,
        requests=solves * work.requests,
        addresses=math.ceil(solves * work.requests / rate(shared=True)),
        cores=cores,
        memory_gb=in_flight * costs.solve_kb / 1e6,
        calls=calls(solves, math.ceil(cores), work, costs),
        usd_an_hour=3600 * solves * work.price,
    )
