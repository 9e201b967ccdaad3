"""Solve in the workers of taskiq.

The workers:  taskiq worker taskiq_jobs:broker --workers 3 --max-async-tasks 500 --shutdown-timeout 60
A program:    python taskiq_jobs.py https://example.com/1 https://example.com/2
"""

import asyncio
import json
import os
import sys
from contextlib import suppress
from typing import Annotated

from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends, TaskiqEvents, TaskiqState
from taskiq.exceptions import SendTaskError
from taskiq.serializers import JSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from ucaptcha_async import AsyncClient, Turnstile
from ucaptcha_async.redis import RedisInFlight, RedisJournal, RedisRateLimiter

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
LEASE = float(os.environ.get("WORKER_LEASE", "30"))  # seconds after which a silent worker counts as dead
SOLVE = float(os.environ.get("WORKER_SOLVE", "120"))  # seconds that a solve may take
REDELIVER = float(os.environ.get("WORKER_REDELIVER", "150"))  # seconds after which a job is given to another worker

broker = (
    RedisStreamBroker(
        REDIS_URL,
        consumer_id="0",  # from the first job on, also if that was sent before the first worker started
        idle_timeout=int(REDELIVER * 1_000),
        unacknowledged_lock_timeout=10,  # a worker that dies while it looks for lost jobs keeps no lock
        maxlen=100_000,
    )
    .with_result_backend(RedisAsyncResultBackend(REDIS_URL, result_ex_time=600, serializer=JSONSerializer()))
    .with_middlewares(SimpleRetryMiddleware(default_retry_count=3))
)


async def live(state: TaskiqState, ready: asyncio.Event) -> None:
    """Keep everything open in one task, from the worker's start to its end."""
    limiter = RedisRateLimiter(REDIS_URL, name="office", limit=9_000, when_away="wait")
    places = RedisInFlight(REDIS_URL, name="office", limit=5_000, lease=2 * SOLVE)
    journal = RedisJournal(REDIS_URL, name="office", store_solutions=True, lease=LEASE, patience=SOLVE)
    async with limiter, places, journal:
        client = AsyncClient(rate_limit=limiter, max_in_flight=places, journal=journal, timeout=SOLVE)
        async with client:
            state.captcha, state.ends = client, asyncio.Event()
            ready.set()
            await state.ends.wait()


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def startup(state: TaskiqState) -> None:
    """Open the client of this worker."""
    ready = asyncio.Event()
    state.life = asyncio.create_task(live(state, ready))
    opened = asyncio.create_task(ready.wait())
    await asyncio.wait([state.life, opened], return_when=asyncio.FIRST_COMPLETED)
    if state.life.done():
        await state.life  # what went wrong
    state.nudges = asyncio.create_task(nudge_all())


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def shutdown(state: TaskiqState) -> None:
    """Close it. The jobs have ended before."""
    state.nudges.cancel()
    state.ends.set()
    await state.life


@broker.task(task_name="nudge")
async def nudge() -> None:
    """Nothing: a broker looks for lost jobs only after it got a new one."""


async def nudge_all() -> None:
    """See to it that lost jobs are found where no new ones come."""
    while True:
        with suppress(SendTaskError):  # Redis is away
            await nudge.kiq()
        await asyncio.sleep(REDELIVER / 2)


@broker.task(task_name="token_for", retry_on_error=True)
async def token_for(page: str, order: str, context: Annotated[Context, TaskiqDepends()]) -> str:
    """Get a token; however often this runs for one order, one task is paid for."""
    task = Turnstile(website_url=page, website_key="0x4AAAAAAADnPIDROrmt1Wwj")
    solution = await context.state.captcha.solve(task, key=order)
    return solution.token


async def main(pages: list[str]) -> None:
    """Send jobs, and wait for them."""
    await broker.startup()
    jobs = [await token_for.kiq(page, order=page) for page in pages]
    results = [await job.wait_result(timeout=2 * SOLVE) for job in jobs]
    await broker.shutdown()
    print(json.dumps({page: result.return_value for page, result in zip(pages, results, strict=True)}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
