"""Pacing: how much of the documented limit is used when there is always work, and what the worst window sees.

1,000 requests a second may leave (10,000 per 10 s). One client, four clients that share a limiter, and one client
beside a foreign program at the same address that takes 30 % of the limit and knows nothing of us. The windows are
counted by the service, wherever a window starts.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from . import hand, request_cost
from .meter import TICK

if TYPE_CHECKING:
    from .harness import Bench

WORKERS = 200
FOREIGN_SHARE = 0.3
WINDOW = 10.0
LIMIT = 10_000

# --- in the measured process ------------------------------------------------------------------------------------------


async def measure(url: str, key: str, clients: int, limit: int, seconds: float) -> dict[str, Any]:
    """Ask for the balance without a pause."""
    from ucaptcha_async import AsyncClient, RateLimitedError, RateLimiter

    limiter = RateLimiter(limit, WINDOW)

    async def worker(client: AsyncClient) -> None:
        while True:
            try:
                await client.get_balance()
            except RateLimitedError:
                continue

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        opened = [
            await stack.enter_async_context(AsyncClient(key, base_url=url, rate_limit=limiter)) for _ in range(clients)
        ]
        tasks = [group.create_task(worker(opened[number % clients])) for number in range(WORKERS)]
        await asyncio.sleep(1)  # the first burst, connections, and a first look at the service's headers
        before, cpu, at = limiter.statistics().departed, time.process_time(), time.monotonic()
        await asyncio.sleep(seconds - 1)
        after = limiter.statistics()
        taken, spent = time.monotonic() - at, time.process_time() - cpu
        for task in tasks:
            task.cancel()
    return {
        "rate": (after.departed - before) / taken,
        "throttled": after.throttled,
        "busy": spent / taken,
    }


async def foreign(url: str, rate: float, seconds: float) -> dict[str, Any]:
    """A program of somebody else: an even stream of requests that pays no heed to answers."""
    sent = refused = 0
    end = time.monotonic() + seconds
    pace = hand.Pace(rate)
    async with hand.aiohttp_post(url) as post, asyncio.TaskGroup() as group:

        async def one() -> None:
            nonlocal refused
            answer = await post("/getBalance", {"clientKey": "ucap_foreign"})
            refused += bool(answer.get("errorId"))

        while time.monotonic() < end:
            await pace.slot()
            sent += 1
            group.create_task(one())
            if sent % 100 == 0:
                await asyncio.sleep(TICK / 10)
    return {"sent": sent, "refused": refused, "rate": sent / seconds}


# --- in the command ---------------------------------------------------------------------------------------------------


def run(bench: Bench) -> dict[str, Any]:
    """Measure the three situations."""
    from .harness import KEY, Figure, installed, note

    share = request_cost.share_of(bench, LIMIT / WINDOW)
    if share < 1:
        note(f"pacing: this machine is too slow or too busy; {share:.0%} of the limit")
    limit = int(share * LIMIT)
    seconds = 11.0 if bench.quick else 21.0
    ways = {"1 client": 1, "4 clients, one limiter": 4}
    if installed("aiohttp"):
        ways["1 client beside a foreign program"] = 1
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _, way in bench.rounds(list(ways), max(1, bench.runs - 1)):
        result = _one(bench, KEY, ways[way], limit, seconds, beside="foreign" in way)
        if result is not None:
            note(f"pacing, {way}: {result['rate']:.0f} requests/s, worst window {result['worst_window']}")
            found[way].append(result)
    names = (
        "rate",
        "share",
        "share_of_rest",
        "worst_window",
        "worst_window_of_ours",
        "throttled",
        "foreign_refused",
        "busy",
    )
    rows = [
        {"way": way, **{name: Figure.of(r.get(name) for r in results) for name in names}}
        for way, results in found.items()
    ]
    return {"limit": limit, "window": WINDOW, "rows": rows}


def _one(bench: Bench, key: str, clients: int, limit: int, seconds: float, *, beside: bool) -> dict[str, Any] | None:
    with bench.service(rate_limit=limit) as service:
        how: dict[str, Any] = {"url": service.url, "key": key, "clients": clients, "limit": limit, "seconds": seconds}
        if not beside:
            result, other = bench.measure("pacing:measure", **how), None
        else:
            rate = FOREIGN_SHARE * limit / WINDOW
            with bench.beside("pacing:foreign", url=service.url, rate=rate, seconds=seconds + 3) as ended:
                time.sleep(2)  # it is there first
                result = bench.measure("pacing:measure", **how)
                other = ended()
        books = service.books()
    if result is None:
        return None
    result["share"] = result["rate"] * WINDOW / limit
    result["worst_window"] = books["worst_window"]
    ours = hashlib.sha256(key.encode()).hexdigest()[:12]  # the books show no keys
    result["worst_window_of_ours"] = books["worst_window_by_key"][ours]  # type: ignore[index]
    if other is not None:
        result["foreign_refused"] = other["refused"]
        result["share_of_rest"] = result["share"] / (1 - other["rate"] * WINDOW / limit)
    return result
