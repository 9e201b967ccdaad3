"""Solve in the workers of Celery.

The workers:  celery -A celery_jobs worker --pool prefork --concurrency 3
A program:    python celery_jobs.py https://example.com/1 https://example.com/2
"""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal
from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from ucaptcha_async import AsyncClient, Turnstile, UCaptchaError
from ucaptcha_async.redis import RedisInFlight, RedisJournal, RedisRateLimiter

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
LEASE = float(os.environ.get("WORKER_LEASE", "30"))  # seconds after which a silent worker counts as dead
SOLVE = float(os.environ.get("WORKER_SOLVE", "120"))  # seconds that a solve may take

app = Celery("celery_jobs", broker=REDIS_URL, backend=REDIS_URL)
app.conf.update(
    task_acks_late=True,  # a job is done when it has ended, not when it was fetched,
    task_reject_on_worker_lost=True,  # and goes to another process if its own was killed,
    broker_transport_options={"visibility_timeout": 10 * SOLVE},  # or if the whole machine is gone
    worker_prefetch_multiplier=1,
    result_expires=600,
)


@asynccontextmanager
async def opened() -> AsyncIterator[AsyncClient]:
    """The client of one process, and what it shares with the others."""
    limiter = RedisRateLimiter(REDIS_URL, name="office", limit=9_000, when_away="wait")
    places = RedisInFlight(REDIS_URL, name="office", limit=5_000, lease=2 * SOLVE)
    journal = RedisJournal(REDIS_URL, name="office", store_solutions=True, lease=LEASE, patience=SOLVE)
    async with limiter, places, journal:
        client = AsyncClient(rate_limit=limiter, max_in_flight=places, journal=journal, timeout=SOLVE)
        async with client:
            yield client


class Captcha:
    """A client in an event loop of its own, in a thread beside the one that runs the jobs."""

    client: AsyncClient
    portal: BlockingPortal

    def __init__(self) -> None:
        self._open = ExitStack()

    def start(self, **_: Any) -> None:
        """Open it, in a process that was just forked."""
        self.portal = self._open.enter_context(start_blocking_portal())
        self.client = self._open.enter_context(self.portal.wrap_async_context_manager(opened()))

    def stop(self, **_: Any) -> None:
        """Close it: what is under way is written into the journal."""
        self._open.close()

    def solve(self, pages: list[str]) -> dict[str, str]:
        """Solve many at once, and wait for them."""
        return self.portal.call(self._solve, pages)

    async def _solve(self, pages: list[str]) -> dict[str, str]:
        tasks = [Turnstile(website_url=page, website_key="0x4AAAAAAADnPIDROrmt1Wwj") for page in pages]
        outcomes = await self.client.gather(tasks, key=lambda task: task.website_url)
        return {outcome.task.website_url: outcome.solution.token for outcome in outcomes}


captcha = Captcha()
worker_process_init.connect(captcha.start)
worker_process_shutdown.connect(captcha.stop)


@app.task(autoretry_for=(UCaptchaError,), retry_backoff=True, max_retries=5)
def tokens_for(pages: list[str]) -> dict[str, str]:
    """Get a token for each page; however often this runs, one task is paid for each."""
    return captcha.solve(pages)


def main(pages: list[str], size: int = 10) -> None:
    """Send jobs of some pages each, and wait for them."""
    jobs = [tokens_for.delay(pages[start : start + size]) for start in range(0, len(pages), size)]
    print(json.dumps({page: token for job in jobs for page, token in job.get(timeout=2 * SOLVE).items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
