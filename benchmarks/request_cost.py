"""What one request costs: CPU and requests per second, by client and concurrency, over plain HTTP and over TLS.

The request is a poll of a task that is not ready. "Ours" is the public `client.get_task_result(id)`, with everything
that belongs to it: limiter, checks, proof of sending. The others are the bare call and `json()` of its answer.
"""

from __future__ import annotations

import asyncio
import functools
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import hand, ways

if TYPE_CHECKING:
    from .harness import Bench

Call = Callable[[], Awaitable[Any]]

FLOOR = "a bare connection, asyncio alone"
STOCK = {"one httpx.AsyncClient": "httpx", "one httpx2.AsyncClient": "httpx2"}
CONTESTANTS = (FLOOR, "aiohttp", *ways.OURS, *STOCK)
OVER_TLS = (FLOOR, "aiohttp", "ours, h11", "ours, httptools", "ours, fast")
UNLIMITED = 10_000_000


# --- in the measured process ------------------------------------------------------------------------------------------


@asynccontextmanager
async def caller(contestant: str, url: str, key: str) -> AsyncIterator[Call]:
    """A function that sends one poll."""
    task = {"type": "RecaptchaV2TaskProxyless", "websiteURL": hand.PAGE, "websiteKey": "key"}
    if contestant in ways.OURS:
        transport: Any = ways.transport(contestant)
        from ucaptcha_async import AsyncClient, RateLimiter, RecaptchaV2

        limiter = RateLimiter(UNLIMITED)
        async with AsyncClient(key, base_url=url, transport=transport, rate_limit=limiter) as client:
            job = await client.submit(RecaptchaV2(website_url=hand.PAGE, website_key="key"))
            task_id = job.task_id or ""
            yield lambda: client.get_task_result(task_id)
        return
    if contestant == FLOOR:
        async with hand.bare_post(url) as bare:
            created = json.loads(
                (await bare("/createTask", {"clientKey": key, "task": task})).partition(b"\r\n\r\n")[2]
            )
            yield functools.partial(bare, "/getTaskResult", {"clientKey": key, "taskId": created["taskId"]})
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
    """Measure all clients at all concurrencies, over plain HTTP; some over TLS."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for scheme, certificate in (("http", None), ("https", ways.certificate(Path(folder)))):
            names = ways.here(CONTESTANTS if certificate is None else OVER_TLS)
            options: dict[str, Any] = {"solve_time": "36000", "rate_limit": UNLIMITED, "certificate": certificate}
            with bench.service(**options) as service:
                for concurrency in (100, 1000) if bench.quick or certificate else (1, 10, 100, 1000):
                    rows += _compare(bench, names, service.url, scheme, concurrency)
    return {"rows": rows}


def _compare(bench: Bench, names: list[str], url: str, scheme: str, concurrency: int) -> list[dict[str, Any]]:
    """One concurrency, all clients in turns. The ratios are those of each round to aiohttp in the same round."""
    from .harness import KEY, Figure, note

    note(f"requests: {concurrency} at once, {scheme}")
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
    for number, name in bench.rounds(names):
        how = {"contestant": name, "url": url, "key": KEY, "concurrency": concurrency}
        if (result := bench.measure("request_cost:measure", **how, seconds=0.5 if bench.quick else 0.8)) is not None:
            found[name][number] = result
    base = {number: result["cpu_ms"] for number, result in found.get("aiohttp", {}).items()}
    return [
        {
            "client": name,
            "scheme": scheme,
            "concurrency": concurrency,
            "ratio": Figure.of(
                r["cpu_ms"] / base[number] if base.get(number) else None for number, r in results.items()
            ),
            **{key: Figure.of(r[key] for r in results.values()) for key in ("cpu_ms", "rate", "busy")},
        }
        for name, results in found.items()
    ]


def share_of(bench: Bench, rate: float) -> float:
    """Which share of `rate` requests per second this machine can send now with a third to spare, in tenths."""
    from .harness import KEY

    with bench.service(solve_time="36000", rate_limit=UNLIMITED) as service:
        how: dict[str, Any] = {"contestant": "ours, httptools", "url": service.url, "key": KEY}
        found = bench.measure("request_cost:measure", **how, concurrency=100, seconds=1.0)
    able = found["rate"] / rate / 1.33 if found else 1.0
    return min(1.0, max(0.1, int(10 * able) / 10))
