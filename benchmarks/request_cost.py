"""What one request costs: CPU and requests per second, by client, concurrency and latency of the service.

The request is a poll of a task that is not ready. "Ours" is the public `client.get_task_result(id)`, with everything
that belongs to it: limiter, checks, proof of sending. The others are the bare call and `json()` of its answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from . import hand

if TYPE_CHECKING:
    from .harness import Bench

Call = Callable[[], Awaitable[Any]]

OURS = {"ours, httpx": "httpx", "ours, httpx2": "httpx2", "ours, fast": "fast"}
STOCK = {"one httpx.AsyncClient": "httpx", "one httpx2.AsyncClient": "httpx2"}
NEEDS = {
    "ours, httpx2": "httpx2",
    "ours, fast": "aiohttp",
    "one httpx2.AsyncClient": "httpx2",
    "aiohttp": "aiohttp",
}
CONTESTANTS = (*OURS, *STOCK, "aiohttp")
UNLIMITED = 10_000_000


# --- in the measured process ------------------------------------------------------------------------------------------


@asynccontextmanager
async def caller(contestant: str, url: str, key: str) -> AsyncIterator[Call]:
    """A function that sends one poll."""
    task = {"type": "RecaptchaV2TaskProxyless", "websiteURL": hand.PAGE, "websiteKey": "key"}
    if contestant in OURS:
        from ucaptcha_async import AsyncClient, RateLimiter, RecaptchaV2

        limiter = RateLimiter(UNLIMITED)
        async with AsyncClient(key, base_url=url, transport=OURS[contestant], rate_limit=limiter) as client:  # type: ignore[arg-type]
            job = await client.submit(RecaptchaV2(website_url=hand.PAGE, website_key="key"))
            task_id = job.task_id or ""
            yield lambda: client.get_task_result(task_id)
        return
    opened = hand.aiohttp_post(url) if contestant == "aiohttp" else hand.httpx_post(url, STOCK[contestant], None)
    async with opened as post:
        created = await post("/createTask", {"clientKey": key, "task": task})
        body = {"clientKey": key, "taskId": created["taskId"]}
        yield lambda: post("/getTaskResult", body)


async def measure(contestant: str, url: str, key: str, concurrency: int, seconds: float) -> dict[str, Any]:
    """Keep `concurrency` requests under way for some seconds; count them and their CPU."""
    done = 0

    async def worker(call: Call) -> None:
        nonlocal done
        while True:
            await call()
            done += 1

    async with caller(contestant, url, key) as call, asyncio.TaskGroup() as group:
        workers = [group.create_task(worker(call)) for _ in range(concurrency)]
        await _warm(lambda: done, 2 * concurrency)
        first, cpu, at = done, time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        spent, taken = time.process_time() - cpu, time.monotonic() - at
        finished = done - first
        for task in workers:
            task.cancel()
    return {
        "requests": finished,
        "cpu_ms": 1000 * spent / max(finished, 1),
        "rate": finished / taken,
        "busy": spent / taken,
    }


async def _warm(done: Callable[[], int], enough: int) -> None:
    """Until the connections are open and used, but not for ever."""
    end = time.monotonic() + 5
    while time.monotonic() < end and done() < enough:  # noqa: ASYNC110 - an event would cost the workers something
        await asyncio.sleep(0.01)


# --- in the command ---------------------------------------------------------------------------------------------------


def run(bench: Bench) -> dict[str, Any]:
    """Measure all clients at all concurrencies, with and without latency."""
    from .harness import KEY, Figure, installed, note

    contestants = [name for name in CONTESTANTS if installed(NEEDS.get(name, "httpx"))]
    seconds = 0.5 if bench.quick else 0.8
    rows = []
    for latency in (0.0, 0.1):
        with bench.service(latency=latency, solve_time="36000", rate_limit=UNLIMITED) as service:
            # One at a time with latency is a measurement of sleep.
            for concurrency in (100, 1000) if latency else (1, 100, 1000) if bench.quick else (1, 10, 100, 1000):
                note(f"requests: {concurrency} at once, latency {latency:g} s")
                found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
                for _, name in bench.rounds(contestants):
                    result = bench.measure(
                        "request_cost:measure",
                        contestant=name,
                        url=service.url,
                        key=KEY,
                        concurrency=concurrency,
                        seconds=seconds,
                    )
                    if result is not None:
                        found[name].append(result)
                rows += [
                    {
                        "client": name,
                        "latency": latency,
                        "concurrency": concurrency,
                        "cpu_ms": Figure.of(r["cpu_ms"] for r in results),
                        "rate": Figure.of(r["rate"] for r in results),
                        "busy": Figure.of(r["busy"] for r in results),
                    }
                    for name, results in found.items()
                ]
    return {"rows": rows}


def share_of(bench: Bench, rate: float) -> float:
    """Which share of `rate` requests per second this machine can send now with a third to spare, in tenths."""
    from .harness import KEY

    with bench.service(solve_time="36000", rate_limit=UNLIMITED) as service:
        how: dict[str, Any] = {"contestant": "ours, httpx", "url": service.url, "key": KEY}
        found = bench.measure("request_cost:measure", **how, concurrency=100, seconds=1.0)
    able = found["rate"] / rate / 1.33 if found else 1.0
    return min(1.0, max(0.1, int(10 * able) / 10))
