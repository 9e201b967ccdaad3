"""The job: many solves at once, by ours, by hand-written loops and by the other libraries of the family.

All start at the same moment. Solve times are drawn by the service, the same for everybody in one round; its answers
take 100 ms. The ideal is what nobody can beat who keeps the documented pace of 1,000 requests per second: task number i
is submitted at i / 1,000 s, and its solution is known as soon as it is ready and the answer has travelled:

    ideal = max over i of (i / 1,000 s + solve time of i) + 100 ms

It knows when to ask. A client that asks every 5 s, as the documentation says, is up to 5 s later.
"""

from __future__ import annotations

import asyncio
import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from . import hand, peers, ways
from .meter import Ledger, Meter, limit

if TYPE_CHECKING:
    from ucaptcha_async import AsyncClient, RecaptchaV2

    from .harness import Bench

BY_HAND = ("httpx by hand", "aiohttp by hand")
RATE = 1000
LATENCY = 0.1
BASE = "aiohttp by hand"
"""What ratios are to, each to that of the same round."""

NUMBERS = (
    *("solved", "failed", "pending", "paid_not_delivered", "wall", "cpu_ms", "cpu_ms_per_request", "core"),
    *("peak_memory_mb", "connections", "threads", "stall_ms", "stall_cpu_ms", "stall_at_first_ms", "worst_window"),
    *("collection_ms", "throttled", "requests", "polls", "delay", "delay_p95"),
)

# --- in the measured process ------------------------------------------------------------------------------------------


async def measure(
    contestant: str, url: str, key: str, count: int, cap: float, rate: int = RATE, every: float | None = None
) -> dict[str, Any]:
    """Solve `count` tasks at once.

    Args:
        contestant: Who.
        url: The service.
        key: The API key.
        count: How many tasks.
        cap: Seconds after which it is stopped.
        rate: Requests per second that ours and the loops by hand may send.
        every: For ours: a fixed interval of polls, without jitter, in place of the learned one.
    """
    meter, ledger = Meter(int(url.rpartition(":")[2])), Ledger()
    site_keys = [f"site-key-{number}" for number in range(count)]
    solve_all = await prepared(contestant, url, key, site_keys, ledger, rate, every)
    limit(cap, lambda: {**meter.report(), **ledger.report()})
    ticker = asyncio.create_task(meter.tick())
    await asyncio.sleep(0)
    meter.start()
    await solve_all()
    result = {**meter.report(), **ledger.report(), "ended": True}
    ticker.cancel()
    return result


async def prepared(
    contestant: str, url: str, key: str, site_keys: list[str], ledger: Ledger, rate: int, every: float | None
) -> functools.partial[Any]:
    """Import what is needed, so that only the work is measured. Some is imported when a client is opened."""
    if contestant in ways.OURS:
        transport = ways.transport(contestant)
        from ucaptcha_async import AsyncClient

        options = {"base_url": url, "transport": transport}
        async with AsyncClient(key, **options):  # type: ignore[arg-type]
            pass
        return functools.partial(_ours, key, site_keys, ledger, rate, every, options)
    if contestant in BY_HAND:
        library = contestant.partition(" ")[0]
        async with _post(library, url):
            pass
        return functools.partial(_by_hand, library, url, key, site_keys, ledger, rate)
    return functools.partial(peers.solve_all, contestant, url, key, site_keys, ledger)


async def _ours(
    key: str, site_keys: list[str], ledger: Ledger, rate: int, every: float | None, options: dict[str, Any]
) -> None:
    from ucaptcha_async import AsyncClient, Polling, RateLimiter, RecaptchaV2

    polling = None if every is None else Polling(interval=every, first=every, jitter=0.0)
    tasks = (RecaptchaV2(website_url=hand.PAGE, website_key=site_key) for site_key in site_keys)
    async with AsyncClient(key, rate_limit=RateLimiter(10 * rate), polling=polling, **options) as client:
        await _keep(client, tasks, ledger)


async def _keep(client: AsyncClient, tasks: Iterable[RecaptchaV2], ledger: Ledger) -> None:
    async with client.solve_many(tasks) as outcomes:
        async for outcome in outcomes:
            if outcome.error is None:
                ledger.solved(outcome.index)
            else:
                ledger.failed(outcome.error)


def _post(library: str, url: str) -> AbstractAsyncContextManager[hand.Post]:
    return hand.aiohttp_post(url) if library == "aiohttp" else hand.httpx_post(url)


async def _by_hand(library: str, url: str, key: str, site_keys: list[str], ledger: Ledger, rate: int) -> None:
    async with _post(library, url) as post:
        await hand.solve_all(post, key, site_keys, rate, ledger)


# --- in the command ---------------------------------------------------------------------------------------------------


def contestants(bench: Bench) -> list[str]:
    """Who can be measured here."""
    return [*ways.here(("ours, httptools", "ours, fast", *BY_HAND)), *bench.peers]


def one(bench: Bench, contestant: str, count: int, solve_time: str, seed: int, cap: float, **how: Any) -> Any:
    """Measure one contestant against a fresh service; `None` if it said nothing at all."""
    from .harness import KEY

    dialect = peers.DIALECTS.get(contestant, "ucaptcha")
    limit = 10 * how.get("rate", RATE)
    options = {"dialect": dialect, "latency": LATENCY, "solve_time": solve_time, "seed": seed, "rate_limit": limit}
    with bench.service(**options, certificate=how.pop("certificate", None)) as service:
        result = bench.measure(
            "job:measure",
            within=cap + 30,
            python=bench.peers.get(contestant) or _this_python(),
            contestant=contestant,
            url=service.url,
            key=KEY,
            count=count,
            cap=cap,
            **how,
        )
        books = service.books(full=True)
    return None if result is None else figures(result, books, count)


def _this_python() -> str:
    import sys

    return sys.executable


def figures(result: Mapping[str, Any], books: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Compare what the client says with the service's books."""
    known: dict[str, float] = result["known"]
    tasks: Sequence[dict[str, Any]] = books["task_list"]
    ready = {task["website_key"]: task["ready_at"] for task in tasks}
    delays = sorted(at - ready[f"site-key-{number}"] for number, at in known.items())
    solved, failed = len(known), sum(result["errors"].values())
    paid = sum(not task["refunded"] for task in tasks)
    end = max(known.values(), default=result["ended_at"]) if result["ended"] else result["ended_at"]
    return {
        "solved": solved,
        "failed": failed,
        "errors": result["errors"],
        "pending": count - solved - failed,
        "paid_not_delivered": paid - solved,
        "ended": result["ended"],
        "wall": end - result["started_at"],
        "cpu_ms": 1000 * result["cpu"] / solved if solved else None,
        "cpu_ms_per_request": 1000 * result["cpu"] / max(books["requests"], 1),
        "core": result["cpu"] / (result["ended_at"] - result["started_at"]),
        "peak_memory_mb": result["peak_memory"] / 1e6,
        "connections": result["connections"],
        "threads": result["threads"],
        "stall_ms": 1000 * result["stall"],
        "stall_cpu_ms": 1000 * result["stall_cpu"],
        "collection_ms": 1000 * result["collection"],
        "stall_at_first_ms": 1000 * result["stall_at_first"],
        "worst_window": books["worst_window"],
        "throttled": books["status_counts"].get("429", 0),
        "requests": books["requests"],
        "polls": books["polls"] / len(tasks) if tasks else None,
        "delay": statistics.fmean(delays) if delays else None,
        "delay_p95": delays[int(0.95 * (len(delays) - 1))] if delays else None,
        "solve_times": [task["ready_at"] - task["created_at"] for task in tasks] if len(tasks) == count else None,
    }


def ideal(solve_times: Sequence[float], rate: float) -> float:
    """The least wall time, in seconds; see the module."""
    return max(number / rate + time for number, time in enumerate(solve_times)) + LATENCY


def summary(
    client: str, count: int, results: Sequence[dict[str, Any]], ideals: Sequence[float | None], base: Sequence[Any]
) -> dict[str, Any]:
    """One row of the table."""
    from .harness import Figure

    def ratio(name: str) -> Figure | None:
        pairs = zip(results, base, strict=True)
        return Figure.of(r[name] / b[name] if b and b[name] and r[name] is not None else None for r, b in pairs)

    errors: dict[str, int] = {}
    for result in results:
        for name, times in result["errors"].items():
            errors[name] = errors.get(name, 0) + times
    return {
        "client": client,
        "count": count,
        "ended": all(result["ended"] for result in results),
        "errors": errors,
        "over_ideal": Figure.of(r["wall"] / i if i else None for r, i in zip(results, ideals, strict=True)),
        "cpu_ratio": ratio("cpu_ms"),
        "stall_ratio": ratio("stall_ms"),
        **{name: Figure.of(result[name] for result in results) for name in NUMBERS},
    }


def compare(
    bench: Bench,
    names: Sequence[str],
    count: int,
    solve_time: str,
    *,
    runs: Mapping[str, int],
    cap: float,
    **how: Any,
) -> list[dict[str, Any]]:
    """Let some contestants do the same job in turns."""
    from .harness import note

    found: dict[str, list[tuple[int, dict[str, Any]]]] = {name: [] for name in names}
    least: dict[int, float] = {}
    for number, name in bench.rounds(names, max(runs.values())):
        if number >= runs[name]:
            continue
        result = one(bench, name, count, solve_time, number, cap, **how)
        if result is None:
            continue
        note(f"{count} solves, {name}: {result['solved']} solved in {result['wall']:.1f} s")
        if result["solve_times"] is not None:
            least.setdefault(number, ideal(result["solve_times"], how.get("rate", RATE)))
        found[name].append((number, result))
    base = dict(found.get(BASE, ()))
    rows = []
    for name, results in found.items():
        numbers, measured = [number for number, _ in results], [result for _, result in results]
        ideals, others = [least.get(number) for number in numbers], [base.get(number) for number in numbers]
        if measured:
            rows.append({**summary(name, count, measured, ideals, others), "ideal": least.get(0)})
    return rows


def run(bench: Bench) -> dict[str, Any]:
    """All sizes. The larger ones are measured less often, and once where it takes long, and stopped in the end."""
    names = contestants(bench)
    slow = {"httpx by hand", *bench.peers}
    rows = []
    for count, cap in ((200, 45.0),) if bench.quick else ((200, 45.0), (1000, 45.0), (5000, 60.0)):
        fewer = max(1, bench.runs - 1)
        often = bench.runs if count == 200 else fewer
        seldom = fewer if count == 200 else 1
        runs = {name: seldom if name in slow else often for name in names}
        rows += compare(bench, names, count, "3~0.3" if bench.quick else "5~0.25", runs=runs, cap=cap)
    return {"rows": rows}
