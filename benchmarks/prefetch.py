"""Tokens ready before they are needed: how long a `get` waits, and what that costs, in virtual time.

    python -m benchmarks.prefetch [SEED]

Demand is a Poisson process, solves are lognormal with median 12 s (sigma 0.5), tokens live 120 s, and the service is
the local one, in-process, asked by a real client. Each row is one way to the same demand:

* solve: `client.solve` when a token is needed;
* prefetch: `client.prefetch(task)`, which knows neither the rate nor the solve times;
* best: the best stock computed with full knowledge: the least level that serves the service level at once for the true
  rate and the true mean lead time, simulated apart from the library with the lead times that `solve` had.

The first 10 minutes are left out, but for the row with steps of demand, where all is counted.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from statistics import fmean
from typing import Any

import anyio
import attrs
import httpx

from ucaptcha_async import AsyncClient, Prefetch, RecaptchaV2, TokenSolution
from ucaptcha_async.testing import LocalService, LogNormal, VirtualLoop

from .report import table

Phases = tuple[tuple[float, float], ...]
"""Pairs of seconds and `get` calls per second."""

SERVICE_LEVEL = 0.95
LIFETIME = 120.0
USABLE = LIFETIME * 2 / 3  # the default of `min_remaining` leaves so much
READY = 50  # no bound that matters here
WARM_UP = 600.0
SCENARIOS: tuple[tuple[str, Phases, float], ...] = (
    ("0.2 /s", ((600, 0.2), (14_400, 0.2)), WARM_UP),
    ("1 /s", ((600, 1.0), (3_600, 1.0)), WARM_UP),
    ("5 /s", ((600, 5.0), (3_600, 5.0)), WARM_UP),
    ("1 → 0.1 → 1 /s, 2 min each", ((120, 1.0), (120, 0.1), (120, 1.0)), 0.0),
    ("1 → 0.1 → 1 /s, 10 min each", ((600, 1.0), (600, 0.1), (600, 1.0)), 0.0),
)
TASK = RecaptchaV2(website_url="https://example.com/", website_key="6Le-wvkSAAAAAPBMRTvw0Q4Muexq9bi0DJwx_mJ-")


def demand(rng: Random, phases: Phases) -> list[float]:
    """When each token is needed, in seconds from the begin."""
    times, begin = [], 0.0
    for duration, rate in phases:
        now = begin
        while (now := now + rng.expovariate(rate)) < begin + duration:
            times.append(now)
        begin += duration
    return times


@attrs.define
class Measured:
    """What came of one way, from `since` on: waits by `get`, the stock each second, tokens bought and wasted."""

    since: float
    waits: list[float] = attrs.field(factory=list)
    held: list[int] = attrs.field(factory=list)
    bought: int = 0
    wasted: int = 0

    def row(self, scenario: str, way: str) -> dict[str, Any]:
        """What is reported."""
        ranked = sorted(self.waits)
        return {
            "scenario": scenario,
            "way": way,
            "at_once": sum(wait < 1e-6 for wait in ranked) / len(ranked),
            "median": ranked[len(ranked) // 2],
            "p95": ranked[int(0.95 * len(ranked))],
            "p99": ranked[int(0.99 * len(ranked))],
            "held": fmean(self.held) if self.held else 0.0,
            "wasted": self.wasted / max(1, self.bought),
            "wasted_per_minute": 60 * self.wasted / max(1, len(self.held)),
        }


async def with_client(
    times: list[float], since: float, end: float, seed: int, stocked: bool, service_level: float = SERVICE_LEVEL
) -> Measured:
    """Ask a client for a token at each of the times, by `solve` or by `prefetch`."""
    service = LocalService(solve_time=LogNormal(12, 0.5), seed=seed, books_detail=False, balance=10**6)
    found = Measured(since)
    transport = httpx.ASGITransport(app=service)
    async with httpx.AsyncClient(transport=transport) as http, AsyncClient("ucap_any", http_client=http) as client:
        if not stocked:
            await ask(times, lambda: client.solve(TASK), found)
            found.bought = len(found.waits)
            return found
        async with (
            client.prefetch(TASK, ready=READY, service_level=service_level) as tokens,
            anyio.create_task_group() as watch,
        ):
            watch.start_soon(look, tokens, found, end)
            await ask(times, tokens.get, found)
    return found


async def ask(times: list[float], get: Callable[[], Awaitable[TokenSolution]], found: Measured) -> None:
    """Ask at each of the times, whether or not the ones before have been served."""
    began = anyio.current_time()

    async def one(time: float) -> None:
        await anyio.sleep_until(began + time)
        await get()
        if time >= found.since:
            found.waits.append(anyio.current_time() - began - time)

    async with anyio.create_task_group() as users:
        for time in times:
            users.start_soon(one, time)


async def look(tokens: Prefetch[TokenSolution], found: Measured, end: float) -> None:
    """Look at the stock each second until the end."""
    await anyio.sleep(found.since)
    before = now = tokens.statistics()
    for _ in range(int(end - found.since)):
        now = tokens.statistics()
        found.held.append(now.ready)
        await anyio.sleep(1)
    found.wasted = now.expired - before.expired
    found.bought = now.handed_out + now.ready + now.expired - before.handed_out - before.ready - before.expired


def best_level(rate: float, lead_time: float) -> int:
    """The least level with P(Poisson(rate * lead_time) < level) >= SERVICE_LEVEL, summed term by term."""
    mean, level, below = rate * lead_time, 0, 0.0
    while below < SERVICE_LEVEL:
        below += math.exp(level * math.log(mean) - mean - math.lgamma(level + 1))
        level += 1
    return level


def best(times: list[float], phases: Phases, lead_times: list[float], since: float, rng: Random) -> Measured:
    """A stock that knows the rate of each phase, and of its change when it comes: a simulation of its own."""
    found, stock, line, events = Measured(since), deque[float](), deque[float](), [(time, 0) for time in times]
    ends = [sum(duration for duration, _ in phases[: index + 1]) for index in range(len(phases))]
    levels = [best_level(rate, fmean(lead_times)) for _, rate in phases]
    events += [(float(second), 2) for second in range(int(since), int(ends[-1]))]
    heapq.heapify(events)
    under_way, now = 0, 0.0

    def order() -> None:
        nonlocal under_way
        while len(stock) + under_way - len(line) < levels[min(bisect_right(ends, now), len(levels) - 1)]:
            under_way += 1
            heapq.heappush(events, (now + rng.choice(lead_times), 1))

    order()
    while events and now < ends[-1]:
        now, what = heapq.heappop(events)
        while stock and stock[0] + USABLE <= now:
            stock.popleft()
            found.wasted += now >= since
        if what == 0:
            line.append(now)
        elif what == 1:
            under_way -= 1
            stock.append(now)
            found.bought += now >= since
        else:
            found.held.append(len(stock))
        while stock and line:
            stock.popleft()
            if (asked := line.popleft()) >= since:
                found.waits.append(now - asked)
        order()
    return found


def run(seed: int = 1) -> dict[str, Any]:
    """All results, ready for JSON; the same seed gives the same demand and the same solve times."""
    rows = []
    for scenario, phases, since in SCENARIOS:
        times, end = demand(Random(f"{seed} {scenario}"), phases), sum(duration for duration, _ in phases)
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            plain = runner.run(with_client(times, since, end, seed, stocked=False))
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            ours = runner.run(with_client(times, since, end, seed, stocked=True))
        known = best(times, phases, plain.waits, since, Random(f"{seed} best"))
        group = [plain.row(scenario, "solve"), ours.row(scenario, "prefetch"), known.row(scenario, "best")]
        of_best = group[2]["held"] + group[2]["wasted_per_minute"]
        group[1]["over_best"] = (group[1]["held"] + group[1]["wasted_per_minute"]) / of_best - 1
        rows += group
    return {"seed": seed, "service_level": SERVICE_LEVEL, "lifetime": LIFETIME, "rows": rows}


COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("at_once", "at once", "{:.1%}".format),
    ("median", "median wait, s", "{:.1f}".format),
    ("p95", "95 %, s", "{:.1f}".format),
    ("p99", "99 %, s", "{:.1f}".format),
    ("held", "tokens held", "{:.2f}".format),
    ("wasted", "wasted", "{:.1%}".format),
    ("over_best", "held and wasted, over the best", "{:+.1%}".format),
)
"""Wasted counts in the last column as tokens a minute."""


def show(results: Any) -> str:
    """The results as tables, one for each kind of demand."""
    parts = []
    for scenario in dict.fromkeys(row["scenario"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["scenario"] == scenario]
        cells = [[row["way"], *(write(row[key]) if key in row else "–" for key, _, write in COLUMNS)] for row in rows]
        parts.append(table([scenario, *(title for _, title, _ in COLUMNS)], cells))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(show(run(int(sys.argv[1]) if len(sys.argv) > 1 else 1)))
