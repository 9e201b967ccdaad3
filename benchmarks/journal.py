"""The journal: what writing every solve down costs, by CPU.

The same solves without and with a `SQLiteJournal`, in turns, in one process: as a steady stream, and all handed over at
the same moment. What is solved at once costs one request and two lines of the journal.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import hand

if TYPE_CHECKING:
    from .harness import Bench

WAYS: dict[str, dict[str, Any]] = {
    "500 a second, solved at once": {"rate": 500.0, "count": 2_000, "at_once": True, "rounds": 9},
    "200 a second, a poll or two each": {"rate": 200.0, "count": 1_000, "at_once": False, "rounds": 5},
    "2,000 at the same moment, solved at once": {"rate": None, "count": 2_000, "at_once": True, "rounds": 5},
}

# --- in the measured process ------------------------------------------------------------------------------------------


async def measure(url: str, key: str, file: str, count: int, rate: float | None, rounds: int) -> dict[str, list[float]]:
    """CPU microseconds of a solve without and with a journal, one of each a round, after a round that warms up."""
    from ucaptcha_async import AsyncClient, Polling, RateLimiter, RecaptchaV2, SQLiteJournal

    task = RecaptchaV2(website_url=hand.PAGE, website_key="key")
    options: dict[str, Any] = {"base_url": url, "polling": Polling(first=5.0), "rate_limit": RateLimiter(10_000_000)}
    found: dict[str, list[float]] = {"without": [], "with": []}

    async def run(client: AsyncClient, name: str) -> None:
        cpu, began = time.process_time(), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                if rate is not None and (early := began + number / rate - time.monotonic()) > 0:
                    await asyncio.sleep(early)
                group.create_task(client.solve(task))
        found[name].append(1e6 * (time.process_time() - cpu) / count)

    async with AsyncClient(key, **options) as plain, AsyncClient(key, journal=SQLiteJournal(file), **options) as kept:
        for _ in range(1 + rounds):
            await run(plain, "without")
            await run(kept, "with")
    return {name: values[1:] for name, values in found.items()}


# --- in the command ---------------------------------------------------------------------------------------------------


def run(bench: Bench) -> dict[str, Any]:
    """Each way, in more rounds than elsewhere: the differences are small."""
    from .harness import KEY, Figure, note

    rows = []
    for way, how in WAYS.items():
        note(f"journal: {way}")
        service: dict[str, Any] = {"lightning": {KEY: 10_000_000}} if how["at_once"] else {"solve_time": "4~0.2"}
        with bench.service(rate_limit=10_000_000, **service) as running, tempfile.TemporaryDirectory() as folder:
            found = bench.measure(
                "journal:measure",
                within=400,
                url=running.url,
                key=KEY,
                file=str(Path(folder) / "paid.sqlite"),
                count=how["count"],
                rate=how["rate"],
                rounds=2 if bench.quick else how["rounds"],
            )
        if found is None:
            continue
        added = [kept - plain for plain, kept in zip(found["without"], found["with"], strict=True)]
        rows.append(
            {
                "way": way,
                "without": Figure.of(found["without"]),
                "with": Figure.of(found["with"]),
                "added": Figure.of(added),
            }
        )
    return {"rows": rows}
