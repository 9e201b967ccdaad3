"""Memory: what each of 10,000 waiting solves holds.

By how much the resident memory of the client's process grows from 2,000 to 10,000 accepted tasks that nobody has asked
for yet, shared out. At most 200 are on their way to the service at a time. "A task that sleeps" is the floor: an event
loop's own task with a deadline and nothing else.

And how many objects the garbage collector has to look at for each: `len(gc.get_objects())` after `gc.collect()`, with
2,000 waiting against 1,000, the task objects made beforehand.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from .hand import PAGE
from .meter import memory

if TYPE_CHECKING:
    from ucaptcha_async import AsyncClient, RecaptchaV2

    from .harness import Bench

FIRST, COUNT = 2_000, 10_000
AHEAD = 200
WAYS = ("solve", "solve_many", "a task that sleeps")

Start = Callable[[Any, int], Awaitable[None]]

# --- in the measured process ------------------------------------------------------------------------------------------


def measure(way: str, backend: str, url: str, key: str, count: int) -> dict[str, Any]:
    """Start the solves and weigh them."""
    import anyio

    result: dict[str, Any] = anyio.run(functools.partial(_weigh, way, url, key, count), backend=backend)
    return result


def count(way: str, url: str, key: str) -> dict[str, Any]:
    """Start the solves and count what the garbage collector sees."""
    import anyio

    result: dict[str, Any] = anyio.run(functools.partial(_count, way, url, key))
    return result


async def _count(way: str, url: str, key: str) -> dict[str, Any]:
    """Plain tasks of asyncio, as `asyncio.gather` makes them; `solve_many` makes its own."""
    import asyncio

    import anyio

    counts: list[int] = []
    running: list[asyncio.Task[Any]] = []
    async with _way(way, url, key) as (start, waiting):
        group = _PlainTasks(running)
        for stage in (200, 1_000, 2_000):  # the first opens the connections
            await _wait_until(stage, start, waiting, group)
            await anyio.sleep(0.1)
            gc.collect()
            counts.append(len(gc.get_objects()))
        for task in running:
            task.cancel()
        await asyncio.wait(running)
    return {"each": (counts[2] - counts[1]) / 1_000}


async def _wait_until(stage: int, start: Start, waiting: Callable[[], int], group: Any) -> None:
    """Start solves until `stage` wait; all that were started before wait already."""
    import anyio

    started = waiting()
    while started < stage:
        if started - waiting() < AHEAD:
            await start(group, started)
            started += 1
        else:
            await anyio.sleep(0.001)
    while waiting() < stage:  # noqa: ASYNC110 - an event would have to live in the client
        await anyio.sleep(0.01)


class _PlainTasks:
    def __init__(self, running: list[Any]) -> None:
        self._running = running

    def start_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        import asyncio

        self._running.append(asyncio.create_task(function(*arguments)))


async def _weigh(way: str, url: str, key: str, count: int) -> dict[str, Any]:
    import anyio

    weights: list[int] = []
    async with _way(way, url, key) as (start, waiting), anyio.create_task_group() as group:
        for stage in (FIRST, count):
            await _wait_until(stage, start, waiting, group)
            gc.collect()
            weights.append(memory())
        group.cancel_scope.cancel()
    return {"bytes": (weights[1] - weights[0]) / (count - FIRST)}


@asynccontextmanager
async def _way(way: str, url: str, key: str) -> AsyncIterator[tuple[Start, Callable[[], int]]]:
    import anyio

    from ucaptcha_async import AsyncClient, Polling, RateLimiter, RecaptchaV2

    if way == "a task that sleeps":
        sleeping = 0

        async def sleep_on() -> None:
            nonlocal sleeping
            with anyio.move_on_after(3600):
                sleeping += 1
                await anyio.sleep(3000)

        async def start(group: Any, number: int) -> None:
            group.start_soon(sleep_on)

        yield start, lambda: sleeping
        return
    limiter = RateLimiter(10_000_000)
    options: dict[str, Any] = {"polling": Polling(first=3000), "rate_limit": limiter, "max_in_flight": None}
    async with AsyncClient(key, base_url=url, timeout=3600, **options) as client:
        starter = _one_by_one if way == "solve" else _one_stream
        yield starter(client, RecaptchaV2), lambda: client.statistics().waiting


def _one_by_one(client: AsyncClient, kind: type[RecaptchaV2]) -> Start:
    tasks = [kind(website_url=PAGE, website_key=f"site-key-{number}") for number in range(COUNT)]

    async def start(group: Any, number: int) -> None:
        group.start_soon(client.solve, tasks[number])

    return start


def _one_stream(client: AsyncClient, kind: type[RecaptchaV2]) -> Start:
    import anyio

    send, receive = anyio.create_memory_object_stream[Any](AHEAD)
    tasks = [kind(website_url=PAGE, website_key=f"site-key-{number}") for number in range(COUNT)]

    async def drain() -> None:
        async with client.solve_many(receive, max_pending=100_000) as outcomes:
            async for _ in outcomes:
                raise AssertionError("nothing is ready in this benchmark")

    async def start(group: Any, number: int) -> None:
        if number == 0:
            group.start_soon(drain)
        await send.send(tasks[number])

    return start


# --- in the command ---------------------------------------------------------------------------------------------------


def run(bench: Bench) -> dict[str, Any]:
    """Weigh each way on asyncio, and one on trio."""
    from .harness import KEY, Figure, installed, note

    cells = [(way, "asyncio") for way in (WAYS[::2] if bench.quick else WAYS)]
    if installed("trio") and not bench.quick:
        cells.append(("solve", "trio"))
    found: dict[tuple[str, str], list[float]] = {cell: [] for cell in cells}
    with bench.service(solve_time="36000", rate_limit=10_000_000) as service:
        for _, (way, backend) in bench.rounds(cells):
            note(f"memory: {way}, {backend}")
            result = bench.measure(
                "memory:measure", within=120, way=way, backend=backend, url=service.url, key=KEY, count=COUNT
            )
            if result is not None:
                found[way, backend].append(result["bytes"] / 1000)
        objects = _objects(bench, service.url)
    rows = [{"way": way, "backend": backend, "kb": Figure.of(values)} for (way, backend), values in found.items()]
    return {"count": COUNT, "rows": rows, "objects": objects}


def _objects(bench: Bench, url: str) -> list[dict[str, Any]]:
    from .harness import KEY

    found: dict[str, float | None] = {}
    for way in WAYS:
        result = bench.measure("memory:count", within=120, way=way, url=url, key=KEY)
        found[way] = None if result is None else result["each"]
    floor = found[WAYS[-1]]
    more = {way: None if each is None or floor is None else each - floor for way, each in found.items()}
    return [{"way": way, "each": found[way], "more": more[way] if way != WAYS[-1] else None} for way in WAYS]
